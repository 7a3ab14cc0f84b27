"""What an exported file does on a device's test data, beside what PyTorch does."""

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tierfed.errors import InputError
from tierfed.metrics import Kind, main_metric, per_sample_scores
from tierfed.task import Loss

SAME = 0.999  # share of the test samples with the same prediction
_CLOSE = 1e-4  # of a regression: difference of one prediction, relative to the largest
_LOSS = 0.01  # of accuracy, or of the error relatively, that is worth a warning


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One stage of an export, as a file.

    :param name: float, pruned, tuned or int8
    :param score: accuracy, or the mean absolute error of a regression, of the file on the device's test samples
    :param same: share of them with PyTorch's prediction for the same float weights
    :param largest_difference: between outputs of the file and of PyTorch
    :param weights: numbers in linear layers and convolutions
    :param nonzeros: of them
    :param bytes: size of the file
    :param zipped_bytes: of the file under deflate (zip, gzip), where the zeros of a pruned model cost little
    """

    name: str
    score: float
    same: float
    largest_difference: float
    weights: int
    nonzeros: int
    bytes: int
    zipped_bytes: int


def compared(
    name: str,
    content: bytes,
    got: npt.NDArray[np.floating],
    expected: Tensor,
    y: Tensor,
    kind: Kind,
    loss: Loss,
    weights: list[Tensor],
) -> Variant:
    """The facts of one stage.

    :param got: outputs of the file [n, C]
    :param expected: outputs of PyTorch for the same float weights [n, C]
    :param y: labels [n] or targets [n, ...]
    """
    out = torch.from_numpy(got).to(expected.dtype)
    scores = per_sample_scores(out, y, kind, loss(out, y))[main_metric(kind)]
    difference = (out - expected).abs().flatten(1).amax(1)
    if kind == "classification":
        same = out.argmax(1) == expected.argmax(1)
    else:
        same = difference <= _CLOSE * max(1.0, float(expected.abs().max()))
    return Variant(
        name=name,
        score=float(scores.double().mean()),
        same=float(same.double().mean()),
        largest_difference=float(difference.max()),
        weights=sum(w.numel() for w in weights),
        nonzeros=sum(int(w.count_nonzero()) for w in weights),
        bytes=len(content),
        zipped_bytes=len(zlib.compress(content, 9)),
    )


def refuse_other_predictions(variant: Variant, samples: int) -> None:
    """:raises InputError: a file in float does not predict what PyTorch does"""
    if not variant.same >= SAME:
        raise InputError(
            f"the exported {variant.name} model predicts as PyTorch does on {variant.same:.2%} of {samples} test "
            f"samples (largest difference of outputs {variant.largest_difference:.3g}); wanted {SAME:.1%}. Nothing was "
            "written: the model has outputs that are not finite, or a layer that the format computes in another way"
        )


def losses(variants: tuple[Variant, ...], kind: Kind, samples: int) -> tuple[str, ...]:
    """What pruning and quantization cost, each against the stage before it, where it is worth a warning."""
    floats = [v for v in variants if v.name != "int8"]
    pairs = [(floats[0], floats[-1]), *([(floats[-1], variants[-1])] if len(variants) > len(floats) else [])]
    out = []

    def change(before: Variant, after: Variant, form: str) -> str:
        return f"{before.score:{form}} -> {after.score:{form}} on {samples} test samples"

    for before, after in pairs:
        what = "pruning" if after.name != "int8" else "int8"
        if kind == "classification" and before.score - after.score > _LOSS:
            points = 100 * (before.score - after.score)
            out.append(f"{what} costs {points:.1f} points of accuracy ({change(before, after, '.1%')})")
        elif kind == "regression" and after.score > (1 + _LOSS) * before.score:
            more = after.score / max(before.score, 1e-12) - 1
            out.append(f"{what} makes the error larger by {more:.1%} ({change(before, after, '.4g')})")
    return tuple(out)
