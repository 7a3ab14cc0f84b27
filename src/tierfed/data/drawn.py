"""Devices whose rows are drawn from a shared pool when somebody asks for them: no list of all devices is ever made.

The rows of a device are a pure function of the seed, its number and the pool: the same for a device alone and among
many, and whoever else there is.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from tierfed.data.dataset import TEST, TRAIN, VAL, Bytes, Ints
from tierfed.data.partition import ON_DEMAND, apportion
from tierfed.data.settings import PartitionSettings, SplitSettings
from tierfed.errors import InputError

Floats = npt.NDArray[np.float64]
SIZES, ROWS = 108, 109  # purposes of the random streams, beside those of `tierfed.data.loading`
_REMEMBERED = 8192
_PARTS = (TRAIN, VAL, TEST)


class Numbered(Sequence[str]):
    """Names with a number: prefix0 … prefix9, zeros in front as far as the last one needs them."""

    def __init__(self, prefix: str, count: int) -> None:
        self.prefix, self.total, self.width = prefix, count, len(str(count - 1))

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(self.total)[index])
        return f"{self.prefix}{range(self.total)[index]:0{self.width}d}"

    def __iter__(self) -> Iterator[str]:
        return (f"{self.prefix}{i:0{self.width}d}" for i in range(self.total))

    def _number(self, name: object) -> int | None:
        text = name.removeprefix(self.prefix) if isinstance(name, str) else ""
        number = int(text) if text.isascii() and text.isdigit() else self.total
        return number if number < self.total and self[number] == name else None

    def __contains__(self, name: object) -> bool:
        return self._number(name) is not None

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """The number of a name.

        :raises ValueError: no such name
        """
        number = self._number(value)
        if number is None or number not in range(self.total)[start:stop]:
            raise ValueError(f"{value!r} is no name of {self.prefix}0 to {self.total - 1}")
        return number

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Numbered):
            return (self.prefix, self.total) == (other.prefix, other.total)
        return isinstance(other, tuple) and len(other) == self.total and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shelf:
    """The rows of one part of the pool, label after label, those of a label in random order.

    :param rows: [n]
    :param begin: [C] where the rows of each label begin
    :param number: [C] how many there are
    :param strides: of each label, the numbers below `number` that have no divisor in common with it
    """

    rows: Ints
    begin: Ints
    number: Ints
    strides: tuple[Ints, ...]

    @classmethod
    def of(cls, labels: Ints, classes: int, rows: Ints, rng: np.random.Generator) -> "Shelf":
        """:param labels: [pool]; :param rows: those of the part"""
        mixed = rng.permutation(rows)
        mixed = mixed[np.argsort(labels[mixed], kind="stable")]
        number = np.bincount(labels[rows], minlength=classes).astype(np.int64)
        strides = tuple(k[np.gcd(k, m) == 1] for m in number for k in [np.arange(1, max(m, 1) + 1)])
        return cls(rows=mixed.astype(np.int64), begin=np.cumsum(number) - number, number=number, strides=strides)

    def take(self, counts: Ints, rng: np.random.Generator) -> Ints:
        """Rows, ascending, so many of each label [C]: different ones as long as there are any.

        In the shelf's order the rows of a label are first, first + stride, first + 2 stride … modulo their number.
        Every row comes up equally often, and where the number is a prime every pair of rows does; a permutation for
        every device and label would take as long as the training.
        """
        held = np.flatnonzero(counts)
        number, many = self.number[held], counts[held]
        first, pick = rng.integers(0, number), rng.integers(0, [len(self.strides[c]) for c in held])
        stride = np.array([self.strides[c][k] for c, k in zip(held, pick, strict=True)], np.int64)
        label = np.repeat(np.arange(len(held)), many)
        step = np.arange(len(label)) - np.repeat(np.cumsum(many) - many, many)
        return np.sort(self.rows[self.begin[held][label] + (first[label] + stride[label] * step) % number[label]])


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """How devices draw from a pool.

    :param shelves: of training, validation and test rows
    :param sizes: [3, N] rows of each device
    """

    settings: PartitionSettings
    seed: int
    shelves: tuple[Shelf, ...]
    sizes: Ints
    _known: dict[tuple[int, int], Ints] = field(default_factory=dict, repr=False)
    _shares: dict[int, Floats] = field(default_factory=dict, repr=False)

    def rows(self, device: int, part: int) -> Ints:
        """The training, validation or test rows of a device, ascending."""
        size, key = int(self.sizes[part, device]), (device, part)
        if not size:
            return np.zeros(0, np.int64)
        if key in self._known:
            return self._known[key]
        if part != TRAIN and device not in self._shares:
            self.rows(device, TRAIN)
        rng = np.random.default_rng([self.seed, ROWS, device, part])
        share = self._share(rng) if part == TRAIN else self._shares[device]
        counts = apportion(share * size, rng)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
            self._shares.clear()
        if part == TRAIN:  # nobody is tested on a label without training rows of it
            self._shares[device] = np.where(counts > 0, share, 0.0) / share[counts > 0].sum()
        self._known[key] = self.shelves[part].take(counts, rng)
        return self._known[key]

    def _share(self, rng: np.random.Generator) -> Floats:
        """The shares of the labels [C] on one device."""
        there = np.flatnonzero(self.shelves[0].number)
        share = np.zeros(len(self.shelves[0].number))
        if self.settings.classes is None:
            drawn = rng.dirichlet(np.full(len(there), self.settings.alpha))
            # a tiny alpha underflows: all shares are 0 or no number, and one label has everything
            lost = not np.isfinite(drawn).all() or drawn.sum() < 0.5
            share[there] = np.eye(len(there))[rng.integers(len(there))] if lost else drawn
        else:
            share[rng.choice(there, self.settings.classes, replace=False)] = 1 / self.settings.classes
        return share


class Held(Sequence[Ints]):
    """The rows of one part, of every device: a list that computes its entries."""

    def __init__(self, draw: Draw, part: int) -> None:
        self.draw, self.part = draw, part

    @property
    def sizes(self) -> Ints:
        """[N] rows per device."""
        sizes: Ints = self.draw.sizes[self.part]
        return sizes

    def __len__(self) -> int:
        return int(self.draw.sizes.shape[1])

    @overload
    def __getitem__(self, index: int) -> Ints: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Ints, ...]: ...

    def __getitem__(self, index: int | slice) -> Ints | tuple[Ints, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        return self.draw.rows(range(len(self))[index], self.part)

    def mark(self) -> int:
        """A checksum of what all rows are computed from: equal for equal rows."""
        crc = zlib.crc32(repr((self.part, self.draw.settings, self.draw.seed)).encode())
        for array in (self.sizes, *(a for s in self.draw.shelves for a in (s.rows, s.number))):
            crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
        return crc


def draw(
    labels: Ints, classes: tuple[str, ...], parts: Bytes, settings: PartitionSettings, split: SplitSettings, seed: int
) -> tuple[Held, Held, Held]:
    """Every device draws rows of its own from one pool, when it is used: for more devices than there are rows, up to
    millions. `size` rows (varied by `sizes`) with labels from Dir(alpha), or `classes` of them alike; the shares of
    [data.split] test and validate, each drawn from that part of the pool, so that no row is trained on here and tested
    on there. Devices may share rows; a row comes twice on one device only when it wants more of a label than there are.

    :param labels: [pool] 0 … C-1; zeros for a regression
    :param classes: names of the labels; none for a regression
    :param parts: [pool] which part each row of the pool is in
    :raises InputError: more labels per device than there are; a part of the pool without rows of some label
    """
    count = max(1, len(classes))
    rng = np.random.default_rng([seed, ROWS])
    shelves = tuple(Shelf.of(labels, count, np.flatnonzero(parts == part), rng) for part in _PARTS)
    sizes = _parted(_sizes(settings, seed), split)
    _check(classes, shelves, sizes, settings)
    found = Draw(settings=settings, seed=seed, shelves=shelves, sizes=sizes)
    return Held(found, TRAIN), Held(found, VAL), Held(found, TEST)


def _sizes(s: PartitionSettings, seed: int) -> Ints:
    """Rows of each device in all [N], with the mean `size`; what is drawn for a device does not depend on their number.

    :raises InputError: a floor above the mean
    """
    if s.sizes is None:
        return np.full(s.number, s.size)
    if s.min_size > s.size:
        raise InputError(
            f"data.partition.min_size = {s.min_size}, but devices have {s.size} rows on average (size); lower min_size"
        )
    rng = np.random.default_rng([seed, SIZES])
    if s.sizes == "uniform":
        uniform: Ints = rng.integers(s.min_size, 2 * s.size - s.min_size, s.number, endpoint=True)
        return uniform
    z = rng.standard_normal(s.number)
    sizes: Ints = np.maximum(s.min_size, np.rint(s.size * np.exp(s.sigma * z - s.sigma**2 / 2))).astype(np.int64)
    return sizes


def _parted(sizes: Ints, split: SplitSettings) -> Ints:
    """[3, N] training, validation and test rows."""
    test = np.rint(split.test * sizes).astype(np.int64)
    val = np.rint(split.val * (sizes - test)).astype(np.int64)
    return np.stack([sizes - test - val, val, test])


def _check(classes: tuple[str, ...], shelves: tuple[Shelf, ...], sizes: Ints, s: PartitionSettings) -> None:
    there = shelves[0].number > 0
    if s.classes is not None and s.classes > there.sum():
        raise InputError(
            f"data.partition.classes = {s.classes} but there are training rows of {int(there.sum())} labels; use fewer"
        )
    for shelf, wanted, name in zip(shelves, sizes.max(1).tolist(), ("training", "validation", "test"), strict=True):
        missing = np.flatnonzero(there & (shelf.number == 0)) if there.any() else np.zeros(1, np.int64)
        if wanted and len(missing):
            label = f"of label {classes[missing[0]]!r} " if classes else ""
            raise InputError(
                f"data.partition.kind = {ON_DEMAND!r}: the pool has no {name} rows {label}to draw from; set "
                "data.split.by = 'random', another data.split.test or data.split.val, or give more samples"
            )
