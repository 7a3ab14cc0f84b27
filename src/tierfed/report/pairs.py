"""Paired tests of algorithms: Wilcoxon signed-rank over devices and over seeds, with Holm's correction.

Over devices: a pair is one device, its two scores averaged over the seeds that both algorithms ran with. That tells
whether these trained models differ from device to device. Over seeds: a pair is one seed, with the mean over all
devices. That tells whether another seed would show the difference again.
"""

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tierfed.errors import InputError, nearest
from tierfed.metrics import Floats, gain
from tierfed.report.grid import GridFolder, own_model
from tierfed.report.load import RunFolder
from tierfed.report.words import NONE, Grid, metric_name, score

FEWEST = 6
"""Pairs below which no p-value is given: with 5 the smallest possible one is 2 / 2^5 = 0.06."""

_ALL_PAIRS = 6  # algorithms up to which all are tested against all
_OWN, _GLOBAL = "own", "global"
_MODELS = {_OWN: "what a device would use", _GLOBAL: "global"}
_HEADERS = ("compared", "model", "pairs", "n", "median difference", "better : worse", "p", "p, corrected (Holm)")


class Paired(NamedTuple):
    """Two algorithms on one model, over devices or seeds: n pairs, the median of first minus second (positive: the
    first is better), in how many pairs the first is better and worse, p and Holm's p; None: too few pairs."""

    first: str
    second: str
    model: str
    over: str
    n: int
    median: float
    better: int
    worse: int
    p: float | None
    adjusted: float | None = None


def paired_tests(grid: GridFolder, reference: str = "") -> list[Paired]:
    """The tests of all pairs of algorithms, of many algorithms or with a reference of each against that one; Holm's
    correction within each family (model, devices or seeds). Algorithms without a common seed make no pair.

    :param reference: a label of the comparison; empty: of many algorithms the first
    :raises InputError: no such label
    """
    if reference and reference not in grid.labels:
        raise InputError(f"no algorithm {reference!r} in this comparison; {nearest(reference, grid.labels)}")
    if reference or len(grid.labels) > _ALL_PAIRS:
        against = reference or grid.labels[0]
        couples = [(label, against) for label in grid.labels if label != against]
    else:
        couples = list(combinations(grid.labels, 2))
    found = []
    for model in _MODELS:
        for over, differences in (("devices", over_devices), ("seeds", over_seeds)):
            apart = [(a, b, differences(grid, a, b, model)) for a, b in couples]
            found += _family([(a, b, d) for a, b, d in apart if d.size], model, over)
    return found


def _family(apart: Sequence[tuple[str, str, Floats]], model: str, over: str) -> list[Paired]:
    """The tests that are corrected together."""
    tests = [
        Paired(a, b, model, over, d.size, float(np.median(d)), int((d > 0).sum()), int((d < 0).sum()), p_value(d))
        for a, b, d in apart
    ]
    adjusted = iter(holm([t.p for t in tests if t.p is not None]))
    return [t if t.p is None else t._replace(adjusted=next(adjusted)) for t in tests]


def p_value(differences: Floats) -> float | None:
    """Two-sided p of the Wilcoxon signed-rank test; None: fewer than `FEWEST` pairs. Pairs without a difference count
    for neither side (Pratt)."""
    if differences.size < FEWEST:
        return None
    if not differences.any():
        return 1.0
    from scipy.stats import wilcoxon  # noqa: PLC0415  (takes a second, which no other command should wait)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few pairs scipy says that the normal law is rough
        return float(wilcoxon(differences, zero_method="pratt").pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's corrected p-values: sorted, the i-th of m times m - i (from 0), never falling, at most 1 (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    factors = len(p) - np.arange(len(p))
    grown = np.minimum(np.maximum.accumulate(np.asarray(p, np.float64)[order] * factors), 1.0)
    out = np.empty(len(p))
    out[order] = grown
    return [float(v) for v in out]


def over_devices(grid: GridFolder, first: str, second: str, model: str) -> Floats:
    """How much better the first is on each device that both have scored, mean over common seeds [devices]."""
    sums: dict[str, list[float]] = {}
    for a, b in _couples(grid, first, second):
        names = [_model(r, model) for r in (a, b)]
        if not all(names):
            continue
        mine, theirs = a.last_scores(names[0]), b.last_scores(names[1])
        left = {a.devices.names[i]: v for i, v in zip(mine.devices.tolist(), mine.values.tolist(), strict=True)}
        right = {b.devices.names[i]: v for i, v in zip(theirs.devices.tolist(), theirs.values.tolist(), strict=True)}
        for name in (n for n in left if n in right):
            sums.setdefault(name, []).append(float(gain([left[name]], [right[name]], a.higher_is_better)[0]))
    return _finite([float(np.mean(v)) for v in sums.values()])


def over_seeds(grid: GridFolder, first: str, second: str, model: str) -> Floats:
    """How much better the mean over devices, weighted by test samples, is with each common seed [seeds]."""
    found = []
    for a, b in _couples(grid, first, second):
        names = [_model(r, model) for r in (a, b)]
        if all(names):
            means = [r.statistics(n)["weighted"] for r, n in zip((a, b), names, strict=True)]
            found.append(float(gain([means[0]], [means[1]], a.higher_is_better)[0]))
    return _finite(found)


def paired_grid(tests: Sequence[Paired], metric: str) -> Grid | None:
    """The tests as a table."""
    if not tests:
        return None
    rows = [
        [
            f"{t.first} against {t.second}",
            _MODELS[t.model],
            t.over,
            str(t.n),
            score(t.median, metric, signed=True),
            f"{t.better} : {t.worse}",
            p_text(t.p) if t.p is not None else "too few pairs",
            p_text(t.adjusted),
        ]
        for t in tests
    ]
    return Grid(
        _HEADERS,
        rows,
        f"Wilcoxon signed-rank tests on the {metric_name(metric)} of the last evaluated round, two-sided. Positive: "
        "the first one is better. A pair is a device, averaged over the seeds that both have, or a seed, averaged "
        "over its devices. Tests over devices tell whether these trained models differ from device to device; only "
        "tests over seeds tell whether training again would show it again. The correction is for all tests of one "
        "model over devices or seeds. "
        f"With fewer than {FEWEST} pairs no difference, however large, could have p < 0.05.",
        3,
    )


def p_text(p: float | None) -> str:
    """A p-value with two digits."""
    return NONE if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _couples(grid: GridFolder, first: str, second: str) -> list[tuple[RunFolder, RunFolder]]:
    """The runs of two algorithms with the same seed."""
    left, right = ({m.run.seed: m.run for m in grid.of_label(label)} for label in (first, second))
    return [(left[s], right[s]) for s in sorted(left.keys() & right.keys())]


def _model(run: RunFolder, model: str) -> str:
    return own_model(run) if model == _OWN else model if model in run.models else ""


def _finite(values: npt.ArrayLike) -> Floats:
    found = np.asarray(values, np.float64)
    return found[np.isfinite(found)]
