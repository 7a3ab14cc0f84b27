"""Who holds what: pure functions of the labels and a random stream to the rows of every device.

Every kind here uses a row at most once (`tierfed.data.drawn` has one for more devices than rows). What a kind draws for
the training rows is carried over to other rows by `follow`: same labels, same proportions.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tierfed.data.dataset import Ints
from tierfed.data.settings import PartitionSettings
from tierfed.errors import InputError

Floats = npt.NDArray[np.float64]
Partitioner = Callable[[Ints, int, PartitionSettings, np.random.Generator], list[Ints]]

ATTEMPTS = 1000


def partition(labels: Ints, classes: int, settings: PartitionSettings, rng: np.random.Generator) -> list[Ints]:
    """Deals rows out to `settings.number` devices by `settings.kind` (not natural).

    :param labels: [n] labels 0 … classes-1
    :returns: N arrays of rows, each ascending, no row twice
    :raises InputError: a partition that these labels do not allow
    """
    n, devices = len(labels), settings.number
    if devices > n:
        raise InputError(f"data.partition.devices = {devices} but only {n} samples can be dealt out; use fewer devices")
    groups = DRAWN[settings.kind](labels, classes, settings, rng)
    return [np.sort(rows).astype(np.int64) for rows in groups]


def follow(labels: Ints, groups: list[Ints], other: Ints, classes: int, rng: np.random.Generator) -> list[Ints]:
    """Deals other rows out as the first ones were: per label in the same proportions, whole rows by largest remainder.

    A device gets no label that it has not in `groups`. Where `groups` use only a share of a label's rows, the same
    share of the other rows is used.

    :param labels: [n] labels of the rows that `groups` deals out
    :param other: [m] labels of the rows to deal out
    :returns: N arrays of rows of `other`, each ascending
    """
    counts = np.stack([np.bincount(labels[rows], minlength=classes) for rows in groups])  # [N, C]
    given: list[list[Ints]] = [[] for _ in groups]
    for label, total in enumerate(np.bincount(labels, minlength=classes)):
        rows = rng.permutation(np.flatnonzero(other == label))
        if total == 0:
            continue
        quota = apportion(counts[:, label] / total * len(rows), rng)
        for device, part in enumerate(np.split(rows, np.cumsum(quota))[: len(groups)]):
            given[device].append(part)
    return [np.sort(np.concatenate([np.zeros(0, np.int64), *parts])).astype(np.int64) for parts in given]


def keep_labels(labels: Ints, settings: PartitionSettings, rng: np.random.Generator, device: str) -> Ints:
    """The k labels that a natural device keeps, drawn from those it has.

    :raises InputError: it has fewer than k
    """
    has, k = np.unique(labels), settings.classes or CLASSES["classes"]
    if len(has) < k:
        raise InputError(
            f"data.partition.classes = {k} but device {device!r} has {len(has)} labels; use at most so many"
        )
    return rng.choice(has, k, replace=False)


def apportion(exact: Floats, rng: np.random.Generator) -> Ints:
    """Whole numbers near `exact` with its rounded sum, by largest remainder, ties by chance; 0 stays 0."""
    # Quotients like 3 * (1/3) must not lose a whole row to rounding.
    whole = np.floor(exact + 1e-9).astype(np.int64)
    missing = round(float(exact.sum())) - int(whole.sum())
    remainder = np.where(exact > 0, exact - whole, -1.0)
    order = np.lexsort((rng.random(len(exact)), -np.round(remainder, 9)))
    whole[order[: max(0, missing)]] += 1
    return whole


def _iid(labels: Ints, classes: int, s: PartitionSettings, rng: np.random.Generator) -> list[Ints]:
    """Shuffled, equal sizes (EPFLU type 1)."""
    return np.array_split(rng.permutation(len(labels)), s.number)


def _dirichlet(labels: Ints, classes: int, s: PartitionSettings, rng: np.random.Generator) -> list[Ints]:
    """Each label's rows are dealt out in shares from Dir(alpha), drawn anew until every device has min_size rows."""
    _spare(labels, s)  # refuses what no draw can give
    devices = s.number
    total = np.bincount(labels, minlength=classes)
    for _ in range(ATTEMPTS):
        share = np.cumsum(rng.dirichlet(np.full(devices, s.alpha), classes), 1)
        cuts = np.rint(share * total[:, None]).astype(np.int64)
        cuts[:, -1] = total  # the shares sum to 1 only up to rounding
        if np.diff(cuts, axis=1, prepend=0).sum(0).min() >= s.min_size:
            parts = [np.split(rows, cuts[c, :-1]) for c, rows in enumerate(_shuffled_by_label(labels, classes, rng))]
            return [np.concatenate([part[device] for part in parts]) for device in range(devices)]
    raise InputError(
        f"data.partition: {ATTEMPTS} draws with alpha = {s.alpha} for {devices} devices left somebody with fewer than "
        f"min_size = {s.min_size} samples; raise alpha, or lower min_size or devices"
    )


def _quantity(labels: Ints, classes: int, s: PartitionSettings, rng: np.random.Generator) -> list[Ints]:
    """IID labels, uneven sizes: min_size each, the rest in lognormal(0, sigma) or Dirichlet(alpha) shares."""
    devices, dirichlet = s.number, s.law == "dirichlet"
    share = rng.dirichlet(np.full(devices, s.alpha)) if dirichlet else rng.lognormal(0, s.sigma, devices)
    size = s.min_size + apportion(share / share.sum() * _spare(labels, s), rng)
    return np.split(rng.permutation(len(labels)), np.cumsum(size)[:-1])


def _spare(labels: Ints, s: PartitionSettings) -> int:
    """Rows that are left when everybody has min_size."""
    spare = len(labels) - s.min_size * s.number
    if spare < 0:
        raise InputError(
            f"data.partition.min_size = {s.min_size} for {s.number} devices needs {s.min_size * s.number} samples, "
            f"there are {len(labels)}; lower one of them"
        )
    return spare


def _classes(labels: Ints, classes: int, s: PartitionSettings, rng: np.random.Generator) -> list[Ints]:
    """Exactly k labels per device; a label's rows are divided evenly among those who hold it."""
    held = _deal_labels(classes, s.number, s.classes or CLASSES["classes"], rng)
    parts: list[list[Ints]] = [[] for _ in range(s.number)]
    for label, rows in enumerate(_shuffled_by_label(labels, classes, rng)):
        holders = np.flatnonzero((held == label).any(1))
        if len(rows) < len(holders):
            raise InputError(
                f"label {label} has {len(rows)} samples for {len(holders)} devices that shall hold it; use fewer "
                f"data.partition.devices or data.partition.classes"
            )
        for device, part in zip(rng.permutation(holders), np.array_split(rows, max(1, len(holders))), strict=False):
            parts[device].append(part)
    return [np.concatenate(p) for p in parts]


def _shards(labels: Ints, classes: int, s: PartitionSettings, rng: np.random.Generator) -> list[Ints]:
    """Sorted by label and cut into equal shards that are dealt out at random (EPFLU and JobFed, types 1 to 4).

    Type 1: no shards, IID. Type 2: the same number of shards for all. Type 3: U{min_shards..max_shards} shards for
    each, as many shards in all as are dealt. Type 4: as type 3, but `iid_share` of the devices get as many rows at
    random.
    """
    if s.type == 1:
        return _iid(labels, classes, s, rng)
    devices = s.number
    if s.min_shards > s.max_shards:
        raise InputError(f"data.partition.min_shards = {s.min_shards} is above max_shards = {s.max_shards}; swap them")
    if s.type == 2:
        number = np.full(devices, s.shards)
    else:
        number = rng.integers(s.min_shards, s.max_shards, devices, endpoint=True)
    if number.sum() > len(labels):
        raise InputError(
            f"{number.sum()} shards for {devices} devices but only {len(labels)} samples; use fewer devices or shards"
        )
    mixed = rng.permutation(devices)[: round(s.iid_share * devices)] if s.type == 4 else np.zeros(0, np.int64)
    rows = rng.permutation(len(labels))
    loose = round(len(labels) * number[mixed].sum() / number.sum())
    groups: list[Ints] = [np.zeros(0, np.int64)] * devices
    if len(mixed):
        bounds = np.rint(np.cumsum(number[mixed]) / number[mixed].sum() * loose).astype(np.int64)
        for device, part in zip(mixed, np.split(rows[:loose], bounds[:-1]), strict=True):
            groups[device] = part
    rest = np.setdiff1d(np.arange(devices), mixed)
    ordered = rows[loose:][np.argsort(labels[rows[loose:]], kind="stable")]
    if len(rest):
        shards = np.array_split(ordered, number[rest].sum())
        dealt = np.split(rng.permutation(len(shards)), np.cumsum(number[rest])[:-1])
        for device, mine in zip(rest, dealt, strict=True):
            groups[device] = np.concatenate([shards[i] for i in mine])
    return groups


def _pfedla1(labels: Ints, classes: int, s: PartitionSettings, rng: np.random.Generator) -> list[Ints]:
    """pFedLA non-IID 1: `size` rows of k random labels, the same number of each."""
    held = _deal_labels(classes, s.number, s.classes or CLASSES["pfedla1"], rng)
    share = np.zeros((s.number, classes))
    np.put_along_axis(share, held, 1 / held.shape[1], 1)
    return _by_share(labels, share, s, rng)


def _pfedla2(labels: Ints, classes: int, s: PartitionSettings, rng: np.random.Generator) -> list[Ints]:
    """pFedLA non-IID 2: `size` rows of all labels, k random ones of which have the share `dominance` together."""
    k = s.classes or CLASSES["pfedla2"]
    held = _deal_labels(classes, s.number, k, rng)
    if k == classes:
        raise InputError(f"data.partition.classes = {k} labels cannot dominate, there are only {classes}; use fewer")
    share = np.full((s.number, classes), (1 - s.dominance) / (classes - k))
    np.put_along_axis(share, held, s.dominance / k, 1)
    return _by_share(labels, share, s, rng)


def _permfl(labels: Ints, classes: int, s: PartitionSettings, rng: np.random.Generator) -> list[Ints]:
    """PerMFL (as pFedMe before it): device u holds labels u, u+1 … u+k-1 modulo C.

    10 rows of each; then, device after device, a lognormal(0, 2) part and U{300..600} more (twice that for at most 20
    devices), provided that the label still has more rows than that. The lognormal draws are shares of the label's rows
    over an array [C, N, k] of which only the rows u // (N / C) are used, as in the authors' generator.
    """
    k, devices = s.classes or CLASSES["permfl"], s.number
    if k > classes:
        raise InputError(f"data.partition.classes = {k} but there are only {classes} labels; use at most these")
    pools = _shuffled_by_label(labels, classes, rng)
    total = np.array([len(rows) for rows in pools])
    shares = rng.lognormal(0, 2, (classes, devices, k))
    shares *= (total - devices)[:, None, None] / shares.sum((1, 2), keepdims=True)
    extra = rng.integers(300, 600, (devices, k), endpoint=True)
    used = np.zeros(classes, np.int64)
    parts: list[list[Ints]] = [[] for _ in range(devices)]

    def give(device: int, label: int, number: int) -> None:
        parts[device].append(pools[label][used[label] : used[label] + number])
        used[label] += number

    pairs = [(u, j, (u + j) % classes) for u in range(devices) for j in range(k)]
    for u, _, label in pairs:
        if used[label] + 10 > total[label]:
            raise InputError(
                f"label {label} has {total[label]} samples, too few for 10 on each device that holds it; "
                f"use fewer data.partition.devices"
            )
        give(u, label, 10)
    group = max(1, devices // classes)
    for u, j, label in pairs:
        number = max(0, int(shares[label, u // group, j])) + int(extra[u, j])
        number *= 2 if devices <= 20 else 1
        if used[label] + number < total[label]:
            give(u, label, number)
    return [np.concatenate(p) for p in parts]


def _shuffled_by_label(labels: Ints, classes: int, rng: np.random.Generator) -> list[Ints]:
    """The rows of each label in random order."""
    return [rng.permutation(np.flatnonzero(labels == label)) for label in range(classes)]


def _deal_labels(classes: int, devices: int, k: int, rng: np.random.Generator) -> Ints:
    """[N, k] different labels for each device; every label gets the same number of holders, give or take one."""
    if k > classes:
        raise InputError(f"data.partition.classes = {k} but there are only {classes} labels; use at most these")
    holders, held = np.zeros(classes, np.int64), np.zeros((devices, k), np.int64)
    for device in range(devices):
        held[device] = np.lexsort((rng.random(classes), holders))[:k]
        holders[held[device]] += 1
    return held


def _by_share(labels: Ints, share: Floats, s: PartitionSettings, rng: np.random.Generator) -> list[Ints]:
    """`size` rows for each device, the labels in the shares [N, C]."""
    counts = np.stack([apportion(row * s.size, rng) for row in share])
    pools = _shuffled_by_label(labels, share.shape[1], rng)
    for label, rows in enumerate(pools):
        if (wanted := counts[:, label].sum()) > len(rows):
            raise InputError(
                f"data.partition.size = {s.size} for {len(share)} devices needs {wanted} samples of label {label}, "
                f"there are {len(rows)}; use a size of at most {int(s.size * len(rows) / wanted)}, or fewer devices"
            )
    pieces = [np.split(rows, np.cumsum(counts[:, label])) for label, rows in enumerate(pools)]
    return [np.concatenate([piece[device] for piece in pieces]) for device in range(len(share))]


DRAWN: dict[str, Partitioner] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "classes": _classes,
    "shards": _shards,
    "pfedla1": _pfedla1,
    "pfedla2": _pfedla2,
    "permfl": _permfl,
    "quantity": _quantity,
}
ON_DEMAND = "drawn"
KINDS = ("natural", *DRAWN, ON_DEMAND)
# These take training and test rows of the source as one pool and split every device anew.
POOLING = frozenset({"pfedla1", "pfedla2", "permfl"})
# Labels per device where the settings do not tell.
CLASSES = {"classes": 2, "pfedla1": 4, "pfedla2": 2, "permfl": 2}
