"""Metrics: scores of one sample, statistics over devices, and the long-form table that a run writes.

Everything here is a pure function, except `write_atomic`. The statistics follow one rule throughout: the *bad* side is
the low one for an accuracy and the high one for an error or a loss.
"""

import math
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from tierfed.errors import InputError

Floats = npt.NDArray[np.float64]
Kind = Literal["classification", "regression"]

MODELS = ("global", "team", "personal_pre", "personal_post")
LABELS = "labels.parquet"
"""The file of accuracies of single labels at the end of a run, in the form of `METRICS`."""
BY_LABEL = "accuracy/label/"
"""Before the number of a label: the accuracy of a device on its test samples of that label."""
STATISTICS = ("weighted", "mean", "std", "p10", "worst")

METRICS = pa.schema(
    [
        pa.field("round", pa.int32(), nullable=False),
        pa.field("tier", pa.string(), nullable=False),
        pa.field("node", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""The columns of `metrics.parquet`, one measured number a row."""


TIES = pa.schema(
    [
        pa.field("round", pa.int32(), nullable=False),
        pa.field("node", pa.string(), nullable=False),
        pa.field("layer", pa.string(), nullable=False),
        pa.field("device", pa.string(), nullable=False),
        pa.field("other", pa.string(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
    ]
)
"""The columns of `ties.parquet`: at `node`, after `round`, what `device` gets holds `weight` of `layer` of `other`."""


class Scores(NamedTuple):
    """One metric of one model on some devices: ascending places among the devices of a run [n], and values [n]."""

    devices: npt.NDArray[np.int64]
    values: Floats


class Row(NamedTuple):
    """One row of `metrics.parquet`: what was measured, where, on which model."""

    round: int
    tier: str
    node: str
    model: str
    split: str
    metric: str
    value: float


def to_table(rows: Iterable[Row]) -> pa.Table:
    """The rows as a table with the schema `METRICS`; no rows give an empty table."""
    columns = list(zip(*rows, strict=True)) or [()] * len(METRICS)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, METRICS, strict=True)], schema=METRICS)


def write_atomic(path: Path, content: pa.Table | str | bytes) -> None:
    """Write a table (as parquet), a text (UTF-8) or bytes so that a reader never sees half a file, even after a crash.

    :raises OSError: the folder is missing or not writable; the old file, if any, is then intact
    """
    # not tempfile: its files are for their owner only, whatever the umask of the user
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as sink:
            if isinstance(content, pa.Table):
                pq.write_table(content, sink, compression="zstd")
            else:
                sink.write(content.encode() if isinstance(content, str) else content)
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def higher_is_better(metric: str) -> bool:
    """True for an accuracy or a gain; False for errors and losses.

    >>> higher_is_better("accuracy"), higher_is_better("abs_error")
    (True, False)
    """
    return metric.partition("/")[0] == "accuracy" or metric.endswith("/gain")


def main_metric(kind: Kind) -> str:
    """The metric that headlines and comparisons of a task show: "accuracy" or "abs_error"."""
    return "accuracy" if kind == "classification" else "abs_error"


def summarize(
    values: npt.ArrayLike, samples: npt.ArrayLike, worst_share: float = 0.1, higher_is_better: bool = True
) -> dict[str, float]:
    """Statistics of one metric over devices, by the names in `STATISTICS`.

    `weighted` is the mean weighted by test samples, `mean` the plain mean over devices, `std` the population standard
    deviation, `p10` the 10th percentile (the 90th where lower is better: always the bad side) by linear interpolation,
    `worst` the mean over the worst `worst_share` of the devices, rounded up, one device at least. Devices without
    samples have no score and are left out; if none is left, every statistic is NaN. A NaN score ranks as the worst.

    :param values: the score of each device, [N]
    :param samples: how many samples each score was measured on, [N]
    :raises InputError: different lengths, a negative sample count, or a share outside [0, 1]
    """
    value, weight = np.asarray(values, np.float64), np.asarray(samples, np.float64)
    if value.ndim != 1 or value.shape != weight.shape:
        raise InputError(
            f"got scores of shape {value.shape} and sample counts of shape {weight.shape}, wanted two vectors of one "
            "length; give one score and one count for each device"
        )
    if not 0 <= worst_share <= 1 or (weight < 0).any() or not np.isfinite(weight).all():
        raise InputError(
            f"got worst_share={worst_share} and sample counts from {weight.min(initial=0)}, wanted a share within "
            "[0, 1] and finite counts of at least 0; correct the value"
        )
    value, weight = value[weight > 0], weight[weight > 0]
    if not value.size:
        return dict.fromkeys(STATISTICS, math.nan)
    ranked = value[from_worst(value, higher_is_better)]
    count = worst_count(value.size, worst_share)
    # inf - inf is a NaN that the reader should see, not a warning
    with np.errstate(invalid="ignore", over="ignore"):
        numbers = (
            np.sum(value * (weight / weight.sum())),
            value.mean(),
            value.std(),
            _interpolate(ranked, 0.1 * (value.size - 1)),
            ranked[:count].mean(),
        )
    return {name: float(number) for name, number in zip(STATISTICS, numbers, strict=True)}


def from_worst(value: Floats, higher_is_better: bool) -> npt.NDArray[np.int64]:
    """The places of scores [N] from the worst to the best, NaN first."""
    signed = value if higher_is_better else -value
    return np.argsort(np.where(np.isnan(signed), -np.inf, signed), kind="stable")


def worst_count(devices: int, share: float = 0.1) -> int:
    """How many devices are the worst `share` of them: rounded up, one at least."""
    return max(1, math.ceil(share * devices - 1e-9))


def _interpolate(ranked: Floats, position: float) -> float:
    low = math.floor(position)
    rest = position - low
    # 0 * inf is NaN: an exact hit must not look at its neighbor
    return float(ranked[low] if rest < 1e-9 else ranked[low] * (1 - rest) + ranked[low + 1] * rest)


def confidence(
    values: npt.ArrayLike, population: int, samples: npt.ArrayLike | None = None, drawn: int | None = None
) -> float:
    """Half width of the 95 % confidence interval for the mean over all devices, from a simple random sample of them.

    t sqrt((1 - f) s^2 / n) with n scores, drawn without replacement: t the 97.5 % quantile of Student's distribution
    with n - 1 degrees of freedom, s^2 the variance of the sample (n - 1 below), f the share of the devices that were
    drawn. Of the mean weighted by samples, s^2 is that of w_i (v_i - mean) / mean(w), the linearized ratio estimator
    (Cochran 1977, section 6.3). 0 when all devices were drawn; NaN for a single score, which says nothing of its error,
    and where a score is not finite.

    :param values: the scores of the devices that were drawn and have one, [n]
    :param population: devices in all
    :param samples: weights [n]; None: the plain mean
    :param drawn: devices that were drawn, where some of them have no score
    """
    value = np.asarray(values, np.float64)
    n, share = value.size, (value.size if drawn is None else drawn) / population
    if share >= 1 and n and np.isfinite(value).all():
        return 0.0
    if n < 2 or not np.isfinite(value).all():
        return math.nan
    weight = np.ones(n) if samples is None else np.asarray(samples, np.float64)
    from scipy.special import stdtrit  # noqa: PLC0415  (only sampled runs need it)

    apart = weight * (value - np.sum(value * weight) / weight.sum()) / weight.mean()
    return float(stdtrit(n - 1, 0.975)) * math.sqrt((1 - share) * float(np.sum(apart**2)) / (n - 1) / n)


def gain(values: npt.ArrayLike, baseline: npt.ArrayLike, higher_is_better: bool = True) -> Floats:
    """How much better each device does than under the baseline (local-only training, say), [N]; positive is better.

    :param values: the score of each device, [N]
    :param baseline: the score of the same devices in the same order under the baseline, [N]
    :raises InputError: different lengths
    """
    value, base = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if value.shape != base.shape:
        raise InputError(
            f"got {value.shape} scores and {base.shape} baseline scores, wanted the same devices in both; "
            "compare runs on the same data"
        )
    with np.errstate(invalid="ignore"):
        difference: Floats = value - base if higher_is_better else base - value
    return difference


def per_sample_scores(outputs: Tensor, y: Tensor, kind: Kind, loss_each: Tensor) -> dict[str, Tensor]:
    """The scores of each sample, [n] each: accuracy and loss, or abs_error, squared_error and loss.

    Errors are means over the dimensions of the target. An output with a NaN counts as a wrong answer; a non-finite
    loss or error stays as it is. No step depends on the values, so the function works under `torch.func.vmap`.

    :param outputs: the model's outputs: logits [n, C], or predictions [n] or [n, D]
    :param y: labels [n], or targets of the shape of `outputs` ([n] and [n, 1] are the same)
    :param loss_each: the loss of each sample, [n]
    :raises InputError: outputs and targets that do not belong together
    """
    if kind == "classification":
        if outputs.ndim != 2 or y.ndim != 1 or len(outputs) != len(y):
            raise InputError(
                f"got outputs {list(outputs.shape)} for labels {list(y.shape)}, wanted logits [n, classes] for labels "
                "[n]; let the model return one row of logits for each sample"
            )
        right = (outputs.argmax(1) == y) & ~torch.isnan(outputs).any(1)
        return {"accuracy": right.to(loss_each.dtype), "loss": loss_each}
    flat, target = outputs.reshape(len(outputs), -1), y.reshape(len(y), -1)
    if flat.shape != target.shape:
        raise InputError(
            f"got predictions {list(outputs.shape)} for targets {list(y.shape)}, wanted one prediction for each "
            "target value; let the model return the shape of the target"
        )
    error = flat - target
    return {"abs_error": error.abs().mean(1), "squared_error": error.square().mean(1), "loss": loss_each}
