"""Data sharing: a few samples of every class at the cloud, which devices train on beside their own."""

import numpy as np

from tierfed.data import Federation
from tierfed.data.dataset import Ints
from tierfed.errors import InputError

# Purposes of the random streams: no two draws depend on each other, nor on those of tierfed.data (101 to 106).
CARVE, GIVE = 201, 202


def quota(federation: Federation, beta: float, public: Ints | None) -> int:
    """Samples of every class that the cloud holds: beta times all training samples, over the classes, rounded.

    :param public: rows of the pool that are at the cloud already, to be drawn from in the place of the devices' rows
    :raises InputError: less than one, or a class that has fewer
    """
    classes = federation.classes
    total = int(federation.sizes().sum()) + (0 if public is None else len(public))
    number = round(beta * total / len(classes))
    if number < 1:
        raise InputError(
            f"augment.beta = {beta:g} of {total} training samples is less than one of each of the {len(classes)} "
            f"classes; set it to {len(classes) / total:.2g} or more"
        )
    rows = np.concatenate(federation.train) if public is None else public
    counts = np.bincount(federation.y.numpy()[rows], minlength=len(classes))
    least, who = int(counts.argmin()), "the devices have" if public is None else "the public samples at the cloud have"
    if counts[least] < number:
        few = f"only {counts[least]}" if counts[least] else "none"
        ways = ["set augment.beta lower"] * bool(counts[least]) + ["set data.public higher"] * (public is not None)
        raise InputError(
            f"augment.beta = {beta:g} asks for {number} samples of each of the {len(classes)} classes, but {who} {few} "
            f"of {classes[least]!r}; {', or '.join([*ways, 'leave the class out of the data'])}"
        )
    return number


def drawn(federation: Federation, number: int, public: Ints, seed: int) -> Ints:
    """`number` of the public rows of every class, ascending."""
    order = np.random.default_rng([seed, CARVE]).permutation(public)
    return np.sort(order[_rank(federation.y.numpy()[order]) < number])


def carved(federation: Federation, number: int, seed: int) -> tuple[tuple[Ints, ...], Ints]:
    """(rows that each device keeps, the cloud's rows): `number` of every class, taken as evenly as the classes allow.

    Of each class in turn one row is given by the device that has given the smallest share of its rows so far, among
    those that have the class and would have one row left. Which of its rows of the class these are is drawn.

    :raises InputError: the devices cannot spare that many
    """
    size, left = federation.sizes(), federation.label_counts()
    given, total = np.zeros_like(left), np.zeros_like(size)
    for k in range(number * len(federation.classes)):
        c = k % len(federation.classes)
        able = np.flatnonzero((left[:, c] > 0) & (size - total > 1))
        if not len(able):
            raise InputError(
                f"the cloud wants {number} samples of every class, but the devices can spare only {given[:, c].sum()} "
                f"of {federation.classes[c]!r}, for each keeps one sample at least; set augment.beta lower"
            )
        i = able[(total[able] / size[able]).argmin()]
        left[i, c] -= 1
        given[i, c] += 1
        total[i] += 1
    y, kept, cloud = federation.y.numpy(), [], []
    for i, rows in enumerate(federation.train):
        order = np.random.default_rng([seed, CARVE, i]).permutation(rows)
        gone = _rank(y[order]) < given[i][y[order]]
        cloud.append(order[gone])
        kept.append(np.sort(order[~gone]))
    return tuple(kept), np.sort(np.concatenate(cloud))


def shares(cloud: Ints, alpha: float, devices: int, seed: int) -> list[Ints]:
    """The share alpha of the cloud's rows that each device gets, drawn for each; a larger alpha adds to a smaller."""
    number = round(alpha * len(cloud))
    return [np.random.default_rng([seed, GIVE, i]).permutation(cloud)[:number] for i in range(devices)]


def _rank(labels: Ints) -> Ints:
    """How many entries of the same label come before each entry. [n]"""
    order = np.argsort(labels, kind="stable")
    count = np.bincount(labels)
    out = np.empty_like(order)
    out[order] = np.arange(len(labels)) - np.repeat(np.cumsum(count) - count, count)
    return out
