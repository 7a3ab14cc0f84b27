"""A grid folder: runs of several algorithms and seeds on the same data, and the numbers that compare them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tierfed.errors import InputError
from tierfed.metrics import Floats, Scores, confidence, gain
from tierfed.report.load import RunFolder, read_json

BASELINE = "local"
MOST_LETTERS = 40
"""Of the settings in the label of a run; with more it is a numbered variant."""

Setting = tuple[str, str]


class Member(NamedTuple):
    """One run of a grid: its name, its folder, and the label of the curve or row it belongs to."""

    name: str
    run: RunFolder
    label: str
    baseline: RunFolder | None


class Column(NamedTuple):
    """One number of a run to compare; `metric` says how to write it, `higher` which side is better, None for costs."""

    key: str
    title: str
    metric: str
    higher: bool | None
    value: Callable[[Member], float | None]
    margin: Callable[[Member], float | None] | None = None
    """Half width of its 95 % confidence interval, where a sample of the devices was evaluated."""


@dataclass(frozen=True, kw_only=True)
class GridFolder:
    """Runs on the same devices. Make one with `GridFolder.read`."""

    path: Path
    members: tuple[Member, ...]
    notes: tuple[str, ...] = ()
    """What a reader has to know of how the runs were brought together."""

    @classmethod
    def read(cls, path: Path) -> "GridFolder":
        """Read `grid.json` and every run it names.

        :raises InputError: the list or a run is missing or damaged, or the runs cannot be compared
        """
        listed = read_json(path, "grid.json")
        names = listed.get("runs") if isinstance(listed, dict) else None
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise InputError(
                f'{path / "grid.json"} lists no runs, wanted {{"runs": ["fedavg-s0", ...]}}; name the run folders in it'
            )
        return cls.of(path, {name: RunFolder.read(path / name) for name in names})

    @classmethod
    def of(cls, path: Path, runs: dict[str, RunFolder], notes: tuple[str, ...] = ()) -> "GridFolder":
        """A grid of runs that are already read, by name. Of runs that only their names tell apart, each has its own
        label.

        :raises InputError: the runs measured different things
        """
        first_name, first = next(iter(runs.items()))
        for name, run in runs.items():
            if run.metric != first.metric:
                raise InputError(
                    f"{name} measured {run.metric} and {first_name} {first.metric}, wanted one task; "
                    "compare runs on the same data"
                )
        differing = _differing(runs)
        bases = {(r.seed, _data(differing[n])): r for n, r in runs.items() if r.algorithm == BASELINE}
        members: list[Member] = []
        variants: dict[str, list[tuple[Setting, ...]]] = {}
        for name, run in runs.items():
            known = variants.setdefault(run.algorithm, [])
            if differing[name] not in known:
                known.append(differing[name])
            extra = ", ".join(f"{key.removeprefix('algorithm.')}={value}" for key, value in differing[name])
            if len(extra) > MOST_LETTERS:
                variant = f"variant {known.index(differing[name]) + 1}"
                notes = tuple(dict.fromkeys((*notes, f"{run.algorithm}, {variant}: {extra}.")))
                extra = variant
            label = f"{run.algorithm} ({extra})" if extra else run.algorithm
            if any(m.label == label and m.run.seed == run.seed for m in members):
                label = f"{label} [{name}]"
            members.append(Member(name, run, label, bases.get((run.seed, _data(differing[name])))))
        return cls(path=path, members=tuple(members), notes=notes)

    @property
    def metric(self) -> str:
        """The headline metric that all runs share."""
        return self.members[0].run.metric

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of the runs."""
        return tuple(dict.fromkeys(m.label for m in self.members))

    def of_label(self, label: str) -> list[Member]:
        """The runs under one label: one for each seed."""
        return [m for m in self.members if m.label == label]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, sorted."""
        return tuple(sorted({m.run.seed for m in self.members}))

    @property
    def sample(self) -> str:
        """What the last evaluations drew, in words; empty: all devices."""
        return " and ".join(sorted({m.run.sample for m in self.members} - {""}))

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The numbers to compare, in the order of the table."""
        metric, higher = self.metric, self.members[0].run.higher_is_better
        side = "10th percentile" if higher else "90th percentile"
        stage = (
            Column("personalized", "after personalization", metric, higher, _personalized, _half_personalized),
        ) * any(m.run.later is not None for m in self.members)
        return (
            Column("global", "global", metric, higher, lambda m: _weighted(m, "global"), lambda m: _half(m, "global")),
            Column(
                "personal_post",
                "personal, after training",
                metric,
                higher,
                lambda m: _weighted(m, "personal_post"),
                lambda m: _half(m, "personal_post"),
            ),
            Column(
                "personal_pre",
                "personal, before training",
                metric,
                higher,
                lambda m: _weighted(m, "personal_pre"),
                lambda m: _half(m, "personal_pre"),
            ),
            *stage,
            Column("p10", side, metric, higher, lambda m: _own(m, "p10")),
            Column("worst", "worst 10 % of devices", metric, higher, lambda m: _own(m, "worst")),
            Column("gain", "gain over local-only", metric, True, _gain, _half_gain),
            Column("bytes", "traffic", "bytes", None, lambda m: m.run.total_bytes),
            Column("joules", "energy", "joules", None, lambda m: m.run.total("cloud", "joules")),
        )

    def values(self, label: str, column: Column) -> Floats:
        """One number for each run under a label, [seeds]; NaN where a run has none."""
        found = [column.value(m) for m in self.of_label(label)]
        return np.array([np.nan if v is None else v for v in found])

    def best(self, column: Column) -> str:
        """The label with the best mean over seeds, "" if the column has no winner."""
        if column.higher is None:
            return ""
        means = {label: self.values(label, column) for label in self.labels}
        known = {label: float(v[~np.isnan(v)].mean()) for label, v in means.items() if not np.isnan(v).all()}
        known = {label: v for label, v in known.items() if np.isfinite(v)}
        if len(known) < 2:
            return ""
        return (max if column.higher else min)(known, key=known.__getitem__)


def member_of(run: RunFolder) -> Member:
    """A run by itself, with the local-only run that it names (`eval.baseline`) or lies beside in a grid, if that can be
    read."""
    where, parent = run.setting("eval", "baseline"), run.path.resolve().parent
    baseline = None
    try:
        if run.algorithm == BASELINE:
            pass
        elif where is not None:
            baseline = RunFolder.read(Path(where))
        elif (parent / "grid.json").exists():
            grid = GridFolder.read(parent)
            baseline = next((m.baseline for m in grid.members if m.run.path.resolve() == run.path.resolve()), None)
    except InputError:  # a report does not need it
        pass
    return Member(run.path.name, run, run.algorithm, baseline)


def own_model(run: RunFolder) -> str:
    """The model that a device would use: the personal one where the algorithm has one, else the global one."""
    return next((m for m in ("personal_post", "personal_pre", "team", "global") if m in run.models), "")


def gains(member: Member) -> Scores | None:
    """How much better each device that both runs have evaluated does than in the local-only run of the same seed, or
    None.

    :raises InputError: the two runs have different devices
    """
    run, base = member.run, member.baseline
    if base is None or not own_model(run) or not own_model(base):
        return None
    if run.devices.names != base.devices.names:
        raise InputError(
            f"{member.name} and its local-only run have different devices, wanted the same; "
            "compare runs with the same data and seed"
        )
    mine, theirs = run.last_scores(own_model(run)), base.last_scores(own_model(base))
    _, i, j = np.intersect1d(mine.devices, theirs.devices, assume_unique=True, return_indices=True)
    if not len(i):
        return None
    return Scores(mine.devices[i], gain(mine.values[i], theirs.values[j], run.higher_is_better))


def _weighted(member: Member, model: str) -> float | None:
    return member.run.statistics(model)["weighted"] if model in member.run.models else None


def _personalized(member: Member) -> float | None:
    later = member.run.later
    model = "" if later is None else own_model(later)
    return later.statistics(model)["weighted"] if later is not None and model else None


def _own(member: Member, statistic: str) -> float | None:
    model = own_model(member.run)
    return member.run.statistics(model)[statistic] if model else None


def _gain(member: Member) -> float | None:
    each = None if member.run is member.baseline else gains(member)
    return None if each is None else float(each.values.mean())


def _half(member: Member, model: str) -> float | None:
    return member.run.statistics(model).get("weighted_ci95") if model in member.run.models else None


def _half_personalized(member: Member) -> float | None:
    later = member.run.later
    return None if later is None else later.statistics(own_model(later)).get("weighted_ci95")


def _half_gain(member: Member) -> float | None:
    """Of devices that both runs have drawn, or that the one did where the other had all."""
    each = None if member.run is member.baseline else gains(member)
    sampled = member.run.sampled or (member.baseline is not None and member.baseline.sampled)
    return confidence(each.values, len(member.run.devices.names)) if each is not None and sampled else None


def _differing(runs: dict[str, RunFolder]) -> dict[str, tuple[Setting, ...]]:
    """For each run, the settings in which runs of the same algorithm differ, apart from seeds, [run] and
    [engine]."""
    found = {}
    for name, run in runs.items():
        own = dict(_flat(run.config))
        peers = [dict(_flat(r.config)) for r in runs.values() if r.algorithm == run.algorithm]
        keys = sorted({key for peer in peers for key in peer})
        found[name] = tuple(
            (key, own.get(key, "unset")) for key in keys if len({peer.get(key, "unset") for peer in peers}) > 1
        )
    return found


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[Setting]:
    for key, value in config.items():
        path = f"{prefix}{key}"
        if path in ("run", "engine") or key == "seed":
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{path}.")
        else:
            yield path, str(value)


def _data(settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """What a local-only run depends on, of the settings that differ."""
    return tuple(s for s in settings if s[0].startswith(("data.", "model.")))
