"""What an exported file says about itself: which network, what its input is made of, where it comes from."""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor

from tierfed.data.dataset import Scaling
from tierfed.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Everything beside the numbers of a model; JSON in the metadata of a file, under the name "tierfed".

    :param model: a name of `tierfed.models.MODELS`, or "package.module:Class" of the user's own class
    :param options: arguments of the network
    :param shape: of one sample
    :param outputs: numbers per sample
    :param classes: the names of the labels 0, 1, …; none: regression
    :param dtype: of what the model computes in
    :param raw_dtype: of the samples as the source gives them: "uint8" or "float32"
    :param divisor: with mean and std (none: not standardized) what makes an input: (raw / divisor - mean) / std; they
        have a number per channel [C], or where the rows of a picture are different sensors per channel and row [C * H]
    :param device: whose model it is
    :param kind: personal, personal_post, team or global
    :param data: name of the data set
    :param algorithm: that trained it
    :param run: name of the run folder; empty: it had none
    :param round: of the cloud
    :param sparsity: share of the weights that was pruned; none: not pruned
    :param int8: whether the file holds 8-bit weights
    :param tierfed: the version that wrote the file
    """

    model: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...]
    dtype: str
    raw_dtype: str
    divisor: float
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    device: str
    kind: str
    data: str
    algorithm: str
    run: str
    round: int
    sparsity: float | None
    int8: bool
    tierfed: str

    @property
    def scaling(self) -> Scaling:
        """What turns raw samples into the model's input."""
        if self.mean is None or self.std is None:
            return Scaling(divisor=self.divisor)
        mean, std = (_broadcast(values, self.shape) for values in (self.mean, self.std))
        return Scaling(divisor=self.divisor, mean=mean, std=std)

    def prepare(self, raw: Tensor) -> Tensor:
        """The model's input [n, *shape] from samples as the source gave them [n, *shape]."""
        return self.scaling(raw, cast("torch.dtype", getattr(torch, self.dtype)))

    def to_json(self) -> str:
        """One line of JSON; `from_json` of it is the same card."""
        return json.dumps(asdict(self))


def _broadcast(values: tuple[float, ...], shape: tuple[int, ...]) -> Tensor:
    """[C] or [C, H] in one list as [1, C, 1 ...] or [1, C, H, 1 ...], for samples of a shape [C, H ...]."""
    leading = next(k for k in range(1, len(shape) + 1) if math.prod(shape[:k]) == len(values))
    ones = [1] * (len(shape) - leading)
    return torch.tensor(values, dtype=torch.float64).view(1, *shape[:leading], *ones)


def from_json(text: str, where: object) -> ModelCard:
    """The card of a file.

    :param where: the name of the file, for messages
    :raises InputError: this is no card
    """
    try:
        found = json.loads(text)
        lists = {k: tuple(v) for k, v in found.items() if isinstance(v, list)}
        return ModelCard(**{**{f.name: found[f.name] for f in fields(ModelCard)}, **lists})
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise InputError(
            f"{where} has metadata of tierfed that cannot be read ({type(err).__name__}: {err}); export the model again"
        ) from None
