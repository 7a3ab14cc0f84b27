"""What a source gives (`Dataset`) and what a federation trains on (`Federation`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tierfed.errors import InputError

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.int8]
Part = Literal["train", "val", "test"]

TRAIN, VAL, TEST, LEFT_OUT = 0, 1, 2, -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Where windows are in continuous recordings; windows may overlap.

    :param segment: [n] the recording
    :param start: [n] first sample of the window in its recording
    :param stop: [n] the sample after the last one of the window
    """

    segment: Ints
    start: Ints
    stop: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """The pool of samples that a source gives; n samples, nobody's yet.

    :param x: [n, *shape], float32, or uint8 for images
    :param y: [n] int64 labels, or [n] / [n, k] float32 targets of a regression
    :param classes: the names of the labels 0, 1, …; none: regression
    :param bits_per_sample: raw size of one sample as a device stores it
    :param features: the names of the columns of x where it has names
    :param devices: names of the natural devices
    :param device: [n] index into `devices`; None: no natural devices
    :param teams: names of the natural teams
    :param team: [len(devices)] index into `teams`; None: no natural teams
    :param split: [n] 0 train, 1 validation, 2 test, as the source gives it; None: it gives none
    :param segment: [n] the recording that a window belongs to; None: samples are no windows
    :param start: [n] first sample of the window in its recording; goes with `segment`
    :param stop: [n] the sample after the last one of the window; goes with `segment`
    :param triples: the channels of x [n, channels, window] that are the axes of the accelerometer and of the gyroscope,
        in this order; none: other data
    """

    name: str
    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    bits_per_sample: int
    features: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    device: Ints | None = None
    teams: tuple[str, ...] = ()
    team: Ints | None = None
    split: Bytes | None = None
    segment: Ints | None = None
    start: Ints | None = None
    stop: Ints | None = None
    triples: tuple[tuple[int, int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def place(self) -> Place | None:
        """Where the windows are; None: samples are no windows."""
        if self.segment is None or self.start is None or self.stop is None:
            return None
        return Place(segment=self.segment, start=self.start, stop=self.stop)

    @property
    def labels(self) -> Ints:
        """[n] labels; zeros for a regression, which has none."""
        return self.labels_at(np.arange(len(self)))

    def labels_at(self, rows: Ints) -> Ints:
        """[len(rows)] labels of these rows; zeros for a regression."""
        return self.y.numpy()[rows].astype(np.int64) if self.classes else np.zeros(len(rows), np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """What turns raw samples into a model's input: (x / divisor - mean) / std, in float64 before it is rounded.

    :param divisor: 255 for bytes
    :param mean: [1, C, 1 ...] per channel, [1, 3, height, 1] per axis and sensor of a bitmap; None: not standardized
    :param std: the same shape, positive
    """

    divisor: float = 1.0
    mean: Tensor | None = None
    std: Tensor | None = None

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Scaled samples [n, *shape] in `dtype`."""
        if self.mean is None or self.std is None:
            return x.to(dtype) if self.divisor == 1 else x.to(dtype).div_(self.divisor)
        x = x.double() if self.divisor == 1 else x.double() / self.divisor
        return ((x - self.mean) / self.std).to(dtype)

    def raw(self, x: Tensor) -> Tensor:
        """The samples that x [n, *shape] was made of: bytes (uint8) exactly, other numbers (float32) up to rounding."""
        x = x.double()
        if self.mean is not None and self.std is not None:
            x = x * self.std + self.mean
        return x.float() if self.divisor == 1 else (x * self.divisor).round().to(torch.uint8)


@dataclass(frozen=True, kw_only=True, eq=False)
class Federation:
    """Who holds what: N devices, each with its training, validation and test rows of one common pool.

    :param x: [n, *shape] floating point, ready for a model
    :param y: [n] int64 labels, or [n] / [n, k] targets of a regression in the type of x
    :param classes: the names of the labels 0, 1, …; none: regression
    :param train: rows per device, ascending; no row occurs twice anywhere, but for those that the cloud shared, and
        unless all devices train on all rows or draw theirs from one pool (then the list computes what it is asked for)
    :param val: rows per device; a device may have none
    :param test: rows per device; a device may have none
    :param devices: N names
    :param natural: [N] natural team of each device, an index into `teams`; None: the data have no natural teams
    :param bits_per_sample: raw size of one sample as a device stores it
    :param scaling: what made x out of the raw samples
    :param features: the names of the columns of x where it has names
    """

    name: str
    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    train: Sequence[Ints]
    val: Sequence[Ints]
    test: Sequence[Ints]
    devices: Sequence[str]
    bits_per_sample: int
    natural: Ints | None = None
    teams: tuple[str, ...] = ()
    scaling: Scaling = Scaling()
    features: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.devices)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    def part(self, part: Part) -> Sequence[Ints]:
        """The rows per device of one part."""
        return {"train": self.train, "val": self.val, "test": self.test}[part]

    def sizes(self, part: Part = "train") -> Ints:
        """[N] rows per device."""
        return lengths(self.part(part))

    def label_counts(self, part: Part = "train", devices: Ints | None = None) -> Ints:
        """[N, C] rows per device and label; C is 0 for a regression.

        :param devices: [K] count those of some devices only, [K, C]
        """
        some = np.arange(len(self)) if devices is None else devices
        if not self.classes:
            return np.zeros((len(some), 0), np.int64)
        y, classes, held = self.y.numpy(), len(self.classes), self.part(part)
        return np.array([np.bincount(y[held[i]], minlength=classes) for i in some], np.int64).reshape(-1, classes)


def evenly(n: int, most: int) -> Ints:
    """At most so many of n places, evenly taken, the first and the last among them; ascending."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def lengths(held: Sequence[Ints]) -> Ints:
    """[N] rows per device; known without its rows where a list computes them."""
    known = getattr(held, "sizes", None)
    return np.array([len(rows) for rows in held], np.int64) if known is None else known


def bits(x: Tensor, bits_per_number: int | None = None) -> int:
    """The raw size of one sample: 8 bits per pixel of an image in bytes, else 32 per number unless told."""
    return math.prod(x.shape[1:]) * (bits_per_number or (8 if x.dtype == torch.uint8 else 32))


def checked(data: Dataset) -> Dataset:
    """The same data set, or the reason why nothing can be trained on it.

    :raises InputError: lengths that differ, labels out of range, a NaN or infinite number
    """
    n = len(data.x)
    if n == 0:
        raise InputError(f"{data.name} has no samples; check the file, or data.window if it has recordings")
    for what in ("y", "device", "split", "segment", "start", "stop"):
        if (array := getattr(data, what)) is not None and len(array) != n:
            raise InputError(f"{data.name}: x has {n} rows but {what} has {len(array)}; give each sample one entry")
    for what, index, names in (("device", data.device, data.devices), ("team", data.team, data.teams)):
        if index is not None and len(index) and (index.min() < 0 or index.max() >= len(names)):
            raise InputError(f"{data.name}: {what} numbers must be 0 … {len(names) - 1}, one for each of its names")
    _check_labels(data)
    _check_finite(data.name, "feature", data.x, data.features)
    return data


def _check_labels(data: Dataset) -> None:
    if not data.classes:
        return _check_finite(data.name, "target", data.y, ())
    low, high = int(data.y.min()), int(data.y.max())
    if low < 0 or high >= len(data.classes):
        bad = low if low < 0 else high
        row = int((data.y == bad).nonzero()[0])
        raise InputError(
            f"{data.name}: label {bad} in row {row} is out of range; "
            f"the {len(data.classes)} classes are 0 … {len(data.classes) - 1}: relabel, or name all classes"
        )
    return None


def _check_finite(name: str, what: str, x: Tensor, columns: tuple[str, ...]) -> None:
    if not x.is_floating_point():
        return
    bad = ~torch.isfinite(x)
    if count := int(bad.sum()):
        row, *rest = bad.nonzero()[0].tolist()
        place = columns[rest[0]] if len(rest) == 1 and columns else ", ".join(map(str, rest)) or "0"
        raise InputError(
            f"{name}: {count} {what} value{'s are' if count > 1 else ' is'} NaN or infinite, the first in row {row} "
            f"(counted from 0), column {place}; fill or remove such rows first"
        )
