"""Federated augmentation (Jeong et al. 2018, arXiv 1811.11479): what a device lacks, and which samples it gives."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tierfed.augment.settings import AugmentSettings
from tierfed.data import Federation
from tierfed.data.dataset import Ints
from tierfed.errors import InputError

SEEDS = 203  # purpose of the random stream

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Seeds:
    """What devices lack and give.

    :param targets: [N, C] labels of which a device has too few samples
    :param redundant: [N, C] labels of which it gives samples although it has enough
    :param missing: [N, C] samples that it lacks of its target labels
    :param rows: rows of the pool that each device gives
    """

    targets: Flags
    redundant: Flags
    missing: Ints
    rows: tuple[Ints, ...]

    @property
    def leakage(self) -> npt.NDArray[np.float64]:
        """Privacy leakage of each device that has targets: targets / (targets + redundant labels)."""
        t, r = self.targets.sum(1), self.redundant.sum(1)
        return np.asarray(t[t > 0] / (t + r)[t > 0])


def collect(federation: Federation, settings: AugmentSettings, seed: int) -> Seeds:
    """Target labels by `tau`, redundant ones by chance, and `seeds` samples of each of them, as far as there are.

    A device without target labels gives nothing.

    :raises InputError: somebody lacks a label of which nobody gives a sample
    """
    counts = federation.label_counts()
    most = counts.max(1, keepdims=True)
    targets = counts < settings.tau * most
    redundant = np.zeros_like(targets)
    y, rows = federation.y.numpy(), []
    for i, own in enumerate(federation.train):
        rng = np.random.default_rng([seed, SEEDS, i])
        if targets[i].any():
            others = np.flatnonzero(~targets[i] & (counts[i] > 0))
            redundant[i, rng.permutation(others)[: settings.redundant]] = True
        order = rng.permutation(own)
        given = [order[y[order] == c][: settings.seeds] for c in np.flatnonzero(targets[i] | redundant[i])]
        rows.append(np.sort(np.concatenate([np.zeros(0, np.int64), *given])))
    _check_seeds(federation, targets, counts, y[np.concatenate(rows)], settings)
    missing = np.where(targets, most - counts, 0)
    return Seeds(targets=targets, redundant=redundant, missing=missing, rows=tuple(rows))


def _check_seeds(federation: Federation, targets: Flags, counts: Ints, given: Ints, settings: AugmentSettings) -> None:
    without = np.setdiff1d(np.flatnonzero(targets.any(0)), given)
    if not len(without):
        return
    label = int(without[0])
    name, lack = federation.classes[label], int(targets[:, label].sum())
    if not counts[:, label].any():
        raise InputError(
            f"no seed samples of {name!r}: no device has a training sample of it; leave the class out of the data, or "
            "deal them out another way (data.partition)"
        )
    raise InputError(
        f"no seed samples of {name!r}: no device that lacks it ({lack} of {len(targets)}) has any, and those that have "
        f"it give none; set augment.redundant (now {settings.redundant}) to {settings.redundant + 1} or more, so that "
        "devices also give samples of labels that they have enough of, or augment.tau higher"
    )
