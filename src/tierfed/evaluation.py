"""Evaluated models on test data: the scores of every device, or of a sample of the devices."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import vmap

from tierfed.engine import Engine
from tierfed.engine.evaluate import Cohort, Each, cohorts, convolves, mixes, same
from tierfed.metrics import BY_LABEL, MODELS, Floats, Kind, Scores, per_sample_scores
from tierfed.plan import Plan
from tierfed.rng import Purpose, sample
from tierfed.setup import World
from tierfed.task import Task
from tierfed.tree import Params

Ints = npt.NDArray[np.int64]
Found = dict[str, dict[str, Scores]]
"""Model -> metric -> scores."""

_ROWS_AT_ONCE, _PICTURES_AT_ONCE = 2048, 512
_SECONDS = 2.0  # before the first word on how far it is


def kind(world: World) -> Kind:
    """Classification or regression."""
    return "classification" if world.federation.classes else "regression"


def evaluated(world: World, round_: int, last: bool = False) -> Ints:
    """The devices [n] that are evaluated after a round, ascending: all, or a sample that is drawn anew each time, as a
    pure function of seed and round.

    :param last: whether the run ends with this round
    """
    settings, devices = world.config.eval, len(world.federation)
    if not settings.devices or (last and settings.final == "all"):
        return np.arange(devices)
    return sample(settings.devices, devices, world.config.run.seed, Purpose.EVALUATION, round_)


def evaluate(
    engine: Engine,
    test: Sequence[Ints],
    kind: Kind,
    devices: Ints,
    post: bool = True,
    chunk: int = 0,
    tell: Callable[[str], None] | None = None,
    labels: int = 0,
) -> Found:
    """Scores of every evaluated model on the test data of some devices; those without test data have none.

    :param test: rows of the pool of each device [N]
    :param kind: classification or regression
    :param post: also personal_post, which costs a local training of every device
    :param chunk: devices whose models are in memory at once; 0: by the size of the models. Changes no score
    :param tell: is told after two seconds how far it is, and after twice as long each time
    :param labels: of so many labels also the accuracy of each (`BY_LABEL`); NaN where a device has no test sample of it
    """
    order = _ordered(engine, devices[[len(test[i]) > 0 for i in devices]], test)
    parts: dict[tuple[str, str], list[Scores]] = {}
    began, wait, done = time.monotonic(), _SECONDS, 0
    for cohort in cohorts(engine, order, post, chunk):
        for key, part in scored(engine, test, kind, cohort, labels):
            parts.setdefault(key, []).append(part)
        done += len(cohort.devices)
        if tell is not None and time.monotonic() - began > wait:
            tell(f"evaluating: {done:,} of {len(order):,} devices")
            wait *= 2
    return found(parts)


def scored(
    engine: Engine, test: Sequence[Ints], kind: Kind, cohort: Cohort, labels: int = 0
) -> Iterator[tuple[tuple[str, str], Scores]]:
    """(model, metric) and scores of some of the devices of a cohort at a time."""
    for ids, name, scores in _scored(engine, test, kind, cohort, labels):
        for metric, values in scores.items():
            yield (name, metric), Scores(ids, values)


def found(parts: Mapping[tuple[str, str], list[Scores]]) -> Found:
    """Scores of different devices by (model, metric), put together."""
    out: Found = {}
    for name in MODELS:
        for (model, metric), scores in parts.items():
            if model == name:
                out.setdefault(name, {})[metric] = _joined(scores)
    return out


def _ordered(engine: Engine, devices: Ints, test: Sequence[Ints]) -> Ints:
    """Devices in an order in which those that follow each other have much in common: the architecture, the batch width,
    about as many test samples, the parent.
    """
    if not len(devices):
        return devices
    kinds = np.zeros(len(devices), np.int64) if engine.kinds is None else engine.kinds[devices]
    widths = np.array([engine.plan.width(int(i)) for i in devices])
    size = np.ceil(np.log2([len(test[i]) for i in devices]))
    return devices[np.lexsort((engine.topology.parents[-1][devices], size, widths, kinds))]


def _joined(parts: list[Scores]) -> Scores:
    """Scores of different devices as one, by ascending device."""
    devices, values = np.concatenate([p.devices for p in parts]), np.concatenate([p.values for p in parts])
    order = np.argsort(devices)
    return Scores(devices[order], values[order])


class _Rows(NamedTuple):
    """The test samples of some devices, one device after the other."""

    x: Tensor  # [T, ...]
    y: Tensor  # [T, ...]
    sizes: Ints  # [C] of each device

    def of(self, low: int, high: int) -> "_Rows":
        """Those of devices low to high."""
        begin, end = int(self.sizes[:low].sum()), int(self.sizes[:high].sum())
        return _Rows(self.x[begin:end], self.y[begin:end], self.sizes[low:high])


class _Run(NamedTuple):
    """One model of neighbors in a part of a cohort: the same for all of them, or stacked."""

    name: str
    low: int
    high: int
    params: Params
    stacked: bool

    def like(self, other: "_Run") -> bool:
        """Whether two are the same model of the same devices."""
        return self[1:3] == other[1:3] and self.stacked == other.stacked and same(self.params, other.params)


def _scored(
    engine: Engine, test: Sequence[Ints], kind: Kind, cohort: Cohort, labels: int
) -> Iterator[tuple[Ints, str, dict[str, Floats]]]:
    """Devices [n], model, metric -> mean over the samples of each device [n]; for some devices at a time."""
    task = engine.task(int(cohort.devices[0]))
    sizes = np.array([len(test[i]) for i in cohort.devices], np.int64)
    each = {
        "global": [cohort.global_model] * len(sizes),
        "team": cohort.teams,
        "personal_pre": cohort.personal_pre,
        "personal_post": cohort.personal_post,
    }
    most = _PICTURES_AT_ONCE if convolves(task.module) else _ROWS_AT_ONCE
    if mixes(task.module):
        most = 0
    for begin, end in pairwise(_cuts(sizes, most)):
        ids = cohort.devices[begin:end]
        runs = [
            _Run(name, *run)
            for name, models in each.items()
            for run in _runs(models, begin, end)
            if run[2].keys() >= set(task.keys)  # else the algorithm has no complete model of this kind
        ]
        sums: list[dict[str, Floats]] = [{} for _ in runs]
        for rows in _samples(engine.plan, [test[i] for i in ids], most):
            for total, more in zip(sums, _sums(kind, task, rows, runs, labels), strict=True):
                for metric, value in more.items():
                    total[metric] = total.get(metric, 0.0) + value
        held = np.array([_counts(engine.plan, test[i], labels) for i in ids]) if labels else sizes[begin:end, None]
        for run, total in zip(runs, sums, strict=True):
            n = torch.from_numpy(sizes[begin + run.low : begin + run.high]).to(engine.plan.dtype)
            right = [total.pop(f"{BY_LABEL}{k}") for k in range(labels)]
            means = {k: (torch.from_numpy(v).to(n.dtype) / n).double().numpy() for k, v in total.items()}
            with np.errstate(invalid="ignore"):
                shares = [v / held[run.low : run.high, k] for k, v in enumerate(right)]
            means |= {f"{BY_LABEL}{k}": share for k, share in enumerate(shares)}
            yield ids[run.low : run.high], run.name, means


def _counts(plan: Plan, rows: Ints, labels: int) -> Ints:
    """How many samples of each label [L] are among some rows."""
    return np.bincount(plan.y[torch.from_numpy(rows).to(plan.y.device)].cpu().numpy(), minlength=labels)


def _cuts(sizes: Ints, most: int) -> list[int]:
    """Where to cut a cohort so that no part has more rows than fit, padded ones counted; a device is not cut.
    0: every device alone.
    """
    cuts, widest = [0], 0
    for j, size in enumerate(sizes.tolist()):
        widest = max(widest, size)
        if j > cuts[-1] and (j + 1 - cuts[-1]) * widest > most:
            cuts.append(j)
            widest = size
    return [*cuts, len(sizes)]


def _samples(plan: Plan, test: list[Ints], most: int) -> Iterator[_Rows]:
    """The test samples of devices; those of a single one in several parts if they are many, unless `most` is 0."""
    rows = torch.from_numpy(np.concatenate(test)).to(plan.x.device)
    for part in rows.split(most) if len(test) == 1 and most else (rows,):
        sizes = [len(part)] if len(test) == 1 else [len(t) for t in test]
        yield _Rows(plan.x[part], plan.y[part], np.array(sizes, np.int64))


def _runs(
    models: Each | Sequence[Params | None] | None, begin: int, end: int
) -> Iterator[tuple[int, int, Params, bool]]:
    """The models of devices begin to end of a cohort: neighbors with the same one together, low and high from begin."""
    if isinstance(models, dict):
        some = {k: t[begin:end] for k, t in models.items()}
        common = end - begin == 1 or all(t.stride(0) == 0 for t in some.values())
        yield 0, end - begin, {k: t[0] for k, t in some.items()} if common else some, not common
    elif models is not None:
        low = begin
        for j in range(begin + 1, end + 1):
            one = models[low]
            if j == end or not same(one, models[j]):
                if one is not None:
                    yield low - begin, j - begin, one, False
                low = j


def _sums(kind: Kind, task: Task, rows: _Rows, runs: list[_Run], labels: int) -> list[dict[str, Floats]]:
    """Metric -> sum over the samples of each device [n], for every run; what is the same is computed once."""
    out: list[dict[str, Floats]] = []
    for j, run in enumerate(runs):
        before = next((i for i in range(j) if runs[i].like(run)), None)
        mine = rows.of(run.low, run.high)
        out.append(_sum(kind, task, mine, run, labels) if before is None else out[before])
    return out


def _sum(kind: Kind, task: Task, rows: _Rows, run: _Run, labels: int) -> dict[str, Floats]:
    """Metric -> sum over the samples of each device [n]."""
    with torch.no_grad():
        out = _outputs(task, run, rows)
        scores = per_sample_scores(out, rows.y, kind, task.loss(out, rows.y))
        scores |= {f"{BY_LABEL}{k}": scores["accuracy"] * (rows.y == k) for k in range(labels)}
    begin = np.cumsum(rows.sizes) - rows.sizes
    return {k: np.add.reduceat(v.double().cpu().numpy(), begin) for k, v in scores.items()}


def _outputs(task: Task, run: _Run, rows: _Rows) -> Tensor:
    """Outputs [T, ...] of the samples of some devices, each under its own model where they are stacked."""
    if not run.stacked:
        return task.outputs(run.params, rows.x)
    shared = {k: None if t.stride(0) == 0 else 0 for k, t in run.params.items()}
    params = {k: t[0] if shared[k] is None else t for k, t in run.params.items()}
    outputs, n = vmap(task.outputs, (shared, 0)), len(rows.sizes)
    if len(rows.x) == n * rows.sizes[0] == n * rows.sizes.max():
        return outputs(params, rows.x.unflatten(0, (n, -1))).flatten(0, 1)  # type: ignore[no-any-return]
    place = np.arange(rows.sizes.max())
    live = place < rows.sizes[:, None]
    begin = np.cumsum(rows.sizes) - rows.sizes
    padded = torch.from_numpy(begin[:, None] + np.minimum(place, rows.sizes[:, None] - 1)).to(rows.x.device)
    return outputs(params, rows.x[padded])[torch.from_numpy(live).to(rows.x.device)]  # type: ignore[no-any-return]
