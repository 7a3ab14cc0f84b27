"""From settings to a federation: source, split, partition, standardization, checks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tierfed.data import split
from tierfed.data.dataset import TEST, TRAIN, VAL, Bytes, Dataset, Federation, Ints, Scaling, checked
from tierfed.data.drawn import Numbered, draw
from tierfed.data.layout import bitmap
from tierfed.data.partition import KINDS, ON_DEMAND, POOLING, follow, keep_labels, partition
from tierfed.data.settings import DataSettings, DrawSettings
from tierfed.data.sources import open_source
from tierfed.errors import InputError, nearest

Held = tuple[Ints, ...]  # rows of each device

# Purposes of the random streams: no two draws depend on each other.
PARTITION, FOLLOW, SPLIT, KEEP, LABELS, DEVICES, DRAW = 101, 102, 103, 104, 105, 106, 107


def load(settings: DataSettings, seed: int, dtype: torch.dtype = torch.float32) -> Federation:
    """Everybody's data: a pure function of the settings, the files and the seed.

    :param dtype: of x, and of the targets of a regression; standardized in float64 before it is rounded
    :raises InputError: a missing file, data that cannot be trained on, a partition that cannot be made
    """
    return federate(open_source(settings), settings, seed, dtype)


def federate(data: Dataset, settings: DataSettings, seed: int, dtype: torch.dtype = torch.float32) -> Federation:
    """Everybody's part of a pool that is at hand already (a custom source); see `load`."""
    checked(data)
    if settings.layout == "bitmap":
        data = bitmap(data)
    own = _own_devices(data, settings)
    by = _resolve(data, settings, own)
    pool = _pool_parts(data, by, settings)
    if settings.partition.kind == ON_DEMAND:
        return _on_demand(data, by, pool, settings, seed, dtype)
    if own is None:
        groups = _drawn(data, pool, settings, seed)
        width = len(str(len(groups) - 1))
        names = tuple(f"device-{i:0{width}d}" for i in range(len(groups)))
    else:
        groups, names = _limited(data, own, pool, settings, seed), data.devices
    parts = [_device_parts(data, rows, pool, settings, (by, seed, i)) for i, rows in enumerate(groups)]
    sizes = np.array([(p == TRAIN).sum() for p in parts], np.int64)
    among = _chosen(data.name, sizes, own is not None, settings, seed)
    kept = among[_large_enough(data.name, tuple(names[i] for i in among), sizes[among], settings)]
    train, val, test = (tuple(groups[i][parts[i] == part] for i in kept) for part in (TRAIN, VAL, TEST))
    natural = data.team[kept] if own is not None and data.team is not None else None
    used = [] if natural is None else np.unique(natural).tolist()
    if settings.draw.train is not None or settings.draw.test is not None:
        data, (train, val, test) = _used(data, (train, val, test))
    return _federation(
        data,
        _scaling(data.x, np.concatenate(train), settings),
        dtype,
        train=_pooled(train, settings) if settings.pooled else train,
        val=val,
        test=test,
        devices=tuple(names[i] for i in kept),
        natural=None if natural is None else np.searchsorted(used, natural).astype(np.int64),
        teams=tuple(data.teams[t] for t in used),
    )


def _federation(data: Dataset, scaling: Scaling, dtype: torch.dtype, **parts: Any) -> Federation:
    """The pool, scaled, and who holds what of it."""
    return Federation(
        name=data.name,
        x=scaling(data.x, dtype),
        scaling=scaling,
        features=data.features,
        y=data.y if data.classes else data.y.to(dtype),
        classes=data.classes,
        bits_per_sample=data.bits_per_sample,
        **parts,
    )


def _on_demand(
    data: Dataset, by: str, pool: Bytes | None, settings: DataSettings, seed: int, dtype: torch.dtype
) -> Federation:
    """Devices that draw their rows from the parts of the pool when they are asked for them."""
    refused = {
        "devices": settings.devices is not None,
        "train_fraction": settings.train_fraction != 1.0,
        "public": settings.public > 0,
        "pooled": settings.pooled,
        "draw": settings.draw != DrawSettings(),
        "too_small": settings.too_small != "error",
    }
    for name in (n for n, given in refused.items() if given):
        raise InputError(
            f"data.{name} needs the rows of all devices, but data.partition.kind = {ON_DEMAND!r} computes them one by "
            "one when they are used; leave it out (data.partition.size sets the rows per device)"
        )
    parts = _device_parts(data, np.arange(len(data)), pool, settings, (by, seed, 0))
    train, val, test = draw(data.labels, data.classes, parts, settings.partition, settings.split, seed)
    names = Numbered("device-", len(train))
    _large_enough(data.name, names, train.sizes, settings)
    scaling = _scaling(data.x, np.flatnonzero(parts == TRAIN), settings)
    return _federation(data, scaling, dtype, train=train, val=val, test=test, devices=names)


def _own_devices(data: Dataset, settings: DataSettings) -> list[Ints] | None:
    """The rows of the source's own devices, where the partition is about them."""
    p = settings.partition
    if p.kind not in KINDS:
        raise InputError(f"data.partition.kind = {p.kind!r} is unknown; {nearest(p.kind, KINDS)}")
    if data.device is None and p.kind == "natural":
        raise InputError(
            f"{data.name} has no devices of its own; choose data.partition.kind = 'dirichlet', 'classes', 'shards', "
            f"'iid' …, or name the column that tells them apart (data.columns.device)"
        )
    if data.device is None or p.kind not in ("natural", "classes") or (p.kind == "classes" and p.devices is not None):
        return None
    if p.devices not in (None, len(data.devices)):
        raise InputError(
            f"data.partition.devices = {p.devices} but {data.name} has {len(data.devices)} devices of its own; "
            f"keep some of them with data.devices, or choose another data.partition.kind"
        )
    order = np.argsort(data.device, kind="stable")
    bounds = np.searchsorted(data.device[order], np.arange(1, len(data.devices)))
    return [rows.astype(np.int64) for rows in np.split(order, bounds)]


def _chosen(name: str, sizes: Ints, own: bool, settings: DataSettings, seed: int) -> Ints:
    """The devices that are used, ascending: all, or `settings.devices` of the source's own.

    Whom a smaller number takes, a larger one takes too, and nobody's rows and split depend on the number.

    :param sizes: training rows of each device
    """
    n = settings.devices
    if n is None:
        return np.arange(len(sizes))
    if not own:
        raise InputError(
            f"data.devices = {n} takes some of the devices that the data have, but data.partition.kind = "
            f"{settings.partition.kind!r} draws new ones; set data.partition.devices in its place"
        )
    order = np.random.default_rng([seed, DEVICES]).permutation(len(sizes))
    if settings.too_small == "drop":
        order = order[sizes[order] >= settings.min_samples]
    if n > len(order):
        enough = f" with data.min_samples = {settings.min_samples} or more" if len(order) < len(sizes) else ""
        raise InputError(
            f"data.devices = {n}, but {name} has {len(order)} devices{enough}; take at most that, or leave it out"
        )
    return np.sort(order[:n])


def _resolve(data: Dataset, settings: DataSettings, own: list[Ints] | None) -> str:
    """What `data.split.by = "auto"` means here: "time", "given" or "random"."""
    by = settings.split.by
    if by == "given" and data.split is None:
        raise InputError(f"{data.name} gives no split of its own; choose data.split.by = 'time' or 'random'")
    if by != "auto":
        return by
    if data.place is not None:
        return "time"
    if data.split is None:
        return "random"
    if own is None:
        return "random" if settings.partition.kind in POOLING else "given"
    parts = [data.split[rows] for rows in own]
    return "given" if all((p == TRAIN).any() and (p == TEST).any() for p in parts) else "random"


def _pool_parts(data: Dataset, by: str, settings: DataSettings) -> Bytes | None:
    """[n] the part of every row of the pool; None where each device splits its own rows.

    Recordings are split before they are dealt out: windows overlap, and one device's training window must not share
    samples with another's test window.
    """
    s = settings.split
    if by == "time" and data.place is not None:
        return split.by_recording(data.place, s.test, s.val)
    if by != "given" or data.split is None:
        return None
    if data.place is not None and not (data.split == VAL).any():
        carved = split.by_recording(data.place, 0, s.val, np.flatnonzero(data.split == TRAIN))
        return np.where(data.split == TEST, np.int8(TEST), carved)
    return data.split


def _drawn(data: Dataset, pool: Bytes | None, settings: DataSettings, seed: int) -> list[Ints]:
    """The rows of drawn devices: training rows by the partition, all others in the same proportions."""
    p = settings.partition
    if not data.classes and p.kind not in ("iid", "quantity"):
        raise InputError(f"data.partition.kind = {p.kind!r} needs labels and {data.name} has none; use 'iid'")
    labels, classes = data.labels, max(1, len(data.classes))
    rng = np.random.default_rng([seed, PARTITION])
    if pool is None:
        return partition(labels, classes, p, rng)
    fit = np.flatnonzero(pool == TRAIN)
    train = partition(labels[fit], classes, p, rng)
    dealt = [[fit[rows]] for rows in train]
    for part in (VAL, TEST):
        rest = np.flatnonzero(pool == part)
        chosen = follow(labels[fit], train, labels[rest], classes, np.random.default_rng([seed, FOLLOW, part]))
        for mine, rows in zip(dealt, chosen, strict=True):
            mine.append(rest[rows])
    return [np.sort(np.concatenate(mine)) for mine in dealt]


def _limited(data: Dataset, own: list[Ints], pool: Bytes | None, settings: DataSettings, seed: int) -> list[Ints]:
    """The rows of natural devices; only k labels of each where the partition is `classes`."""
    if settings.partition.kind == "natural":
        return own
    if not data.classes:
        raise InputError(f"data.partition.kind = 'classes' needs labels and {data.name} has none; use 'natural'")
    labels, groups = data.labels, []
    for i, rows in enumerate(own):
        known = labels[rows if pool is None else rows[pool[rows] == TRAIN]]
        kept = keep_labels(known, settings.partition, np.random.default_rng([seed, LABELS, i]), data.devices[i])
        groups.append(rows[np.isin(labels[rows], kept)])
    return groups


def _device_parts(
    data: Dataset, rows: Ints, pool: Bytes | None, settings: DataSettings, key: tuple[str, int, int]
) -> Bytes:
    """[m] the part of each of one device's rows; key is (by, seed, device)."""
    by, seed, device = key
    labels, rng = data.labels_at(rows), np.random.default_rng([seed, SPLIT, device])
    if pool is None:
        parts = split.local(labels, by, settings.split, rng)
    else:
        carve = by == "given" and data.place is None and data.split is not None and not (data.split == VAL).any()
        parts = split.moved(labels, pool[rows], VAL, settings.split.val, rng) if carve else pool[rows]
    kept = split.thinned(labels, parts, settings.train_fraction, np.random.default_rng([seed, KEEP, device]))
    return split.drawn(labels, kept, settings.draw, np.random.default_rng([seed, DRAW, device]))


def _large_enough(name: str, devices: Sequence[str], sizes: Ints, settings: DataSettings) -> Ints:
    """The devices that have enough training rows.

    :raises InputError: some have not, unless they may be dropped; or none has
    """
    small = np.flatnonzero(sizes < settings.min_samples)
    if len(small) and (settings.too_small == "error" or len(small) == len(sizes)):
        more = f" (and {len(small) - 1} more devices)" if len(small) > 1 else ""
        drop = "data.too_small = 'drop', " if len(small) < len(sizes) else "a lower data.min_samples, "
        raise InputError(
            f"{name}: device {devices[small[0]]!r}{more} has too few training samples: {sizes[small[0]]}, but "
            f"data.min_samples = {settings.min_samples}; use {drop}fewer devices, fewer labels per device or a larger "
            f"data.partition.alpha"
        )
    return np.flatnonzero(sizes >= settings.min_samples)


def _used(data: Dataset, parts: Sequence[Held]) -> tuple[Dataset, list[Held]]:
    """The pool without the samples that nobody holds, and the rows of every part in it."""
    rows = np.unique(np.concatenate([r for part in parts for r in part]))
    at = torch.from_numpy(rows)
    moved = [tuple(np.searchsorted(rows, r).astype(np.int64) for r in part) for part in parts]
    return replace(data, x=data.x[at], y=data.y[at]), moved


def _pooled(train: Held, settings: DataSettings) -> Held:
    """Everybody's training rows on every device."""
    if settings.public:
        raise InputError(
            f"data.pooled = true lets every device train on all rows, and data.public = {settings.public} would take "
            "some of them away; leave out one of both"
        )
    return (np.sort(np.concatenate(train)),) * len(train)


def _scaling(x: Tensor, train: Ints, settings: DataSettings) -> Scaling:
    """Bytes divided by 255; mean 0 and variance 1 per channel (dimension 1) where wanted, in a bitmap per sensor."""
    image, standardize = x.dtype == torch.uint8, settings.standardize
    divisor = 255.0 if image else 1.0
    if standardize is False or (standardize == "auto" and image):
        return Scaling(divisor=divisor)
    rows = x[torch.from_numpy(train)].double() / divisor
    if settings.layout == "bitmap":  # the two sensors have other units
        halves = [_moments(half, [0, 2, 3]) for half in rows.chunk(2, 2)]
        mean, std = (torch.cat([half[i].expand(-1, -1, x.shape[2] // 2, -1) for half in halves], 2) for i in (0, 1))
    else:
        mean, std = _moments(rows, [0, *range(2, x.ndim)])
    # A feature that never changes carries nothing: it becomes 0, not 0/0.
    return Scaling(divisor=divisor, mean=mean, std=torch.where(std > 0, std, 1.0))


def _moments(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    return x.mean(axes, keepdim=True), x.std(axes, correction=0, keepdim=True)
