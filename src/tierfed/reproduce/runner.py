"""Runs a study: every config with every seed, each in a folder of its own. What is finished is not trained again."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tierfed.algorithms import known
from tierfed.config import Config, from_table
from tierfed.data import open_source
from tierfed.errors import InputError, nearest
from tierfed.metrics import write_atomic
from tierfed.pool import begun, run_all
from tierfed.report.load import RunFolder
from tierfed.reproduce.study import Case, Line, Study, merged
from tierfed.result import Watcher
from tierfed.session import on_disk

TIMES = "times.json"
NOT_ASKED = "not asked for"
Numbers = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a study is run.

    :param scale: share of the rounds; 1: the study's setting
    :param local: share of the local epochs; 1: the study's setting
    :param methods: what shall be run, as `Case.method` calls it; none: all
    :param clients: numbers of devices that shall be run; none: all
    :param accuracy: also what is costly
    :param jobs: runs at the same time, on one thread each; 0: as many as there are cores
    """

    scale: float = 1.0
    local: float = 1.0
    seeds: tuple[int, ...] = (0,)
    data_dir: str | None = None
    methods: tuple[str, ...] = ()
    clients: tuple[int, ...] = ()
    accuracy: bool = False
    jobs: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise InputError(f"--scale {self.scale:g}: wanted a share of the rounds, above 0 and at most 1")
        if not 0 < self.local <= 1:
            raise InputError(f"--local-scale {self.local:g}: wanted a share of the local epochs, above 0 and at most 1")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise InputError(
                f"--seeds {','.join(map(str, self.seeds))}: wanted different whole numbers of 0 or more, "
                "for example --seeds 0,1,2"
            )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line with what was found: one value per seed, or why there is none."""

    line: Line
    values: Numbers = ()
    missing: str = ""

    @property
    def ours(self) -> float | None:
        """The mean over seeds."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def std(self) -> float | None:
        """The sample standard deviation over seeds; None with one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.line.paper is None else self.ours - self.line.paper


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A study as far as it went.

    :param rounds: (trained, of the study's setting) of every run that is complete
    :param seconds: of every run and count, over all calls that worked on it
    :param runs: the finished ones by case, for figures
    """

    study: Study
    options: Options
    entries: tuple[Entry, ...]
    rounds: dict[str, tuple[int, int]]
    seconds: dict[str, float]
    finished: bool
    runs: dict[str, list[RunFolder]] = field(default_factory=dict, repr=False)

    @property
    def scaled(self) -> bool:
        """Whether a run had fewer rounds or local epochs than the study's setting."""
        return bool(self.rounds) and (self.options.local < 1 or any(a < b for a, b in self.rounds.values()))


def config_of(case: Case, seed: int, options: Options, folder: Path) -> Config:
    """The config of one run of a case.

    :raises InputError: the case's tables are no config
    """
    rounds = max(1, round(options.scale * case.tables["run"]["rounds"]))
    own = {"run": {"seed": seed, "rounds": rounds, "threads": 1, "out": str(folder / f"{case.key}-s{seed}")}}
    place = {"data": {"dir": options.data_dir}} if options.data_dir else {}
    epochs = {k: v for k, v in case.tables["algorithm"].items() if k in ("epochs", "head_epochs")}
    fewer = {"algorithm": {k: max(1, round(options.local * v)) for k, v in epochs.items()}}
    return from_table(merged(case.tables, own, place, fewer))


def reproduce(study: Study, folder: Path, options: Options, watch: Watcher | None = None) -> Outcome:
    """Runs what is unfinished of a study and reads everything that is finished.

    :param folder: holds the runs, one folder each; it is made when missing
    :raises InputError: an unknown method, a folder that holds another setting, anything that does not fit a config
    """
    wanted = _wanted(study, options)
    with on_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    missing = {case.key: _reason(case, options, wanted) for case in study.cases}
    missing |= _without_data([c for c in study.cases if not missing[c.key]], options, folder)
    times = _Times(folder)
    runs: dict[str, list[RunFolder]] = {}
    rounds: dict[str, tuple[int, int]] = {}
    wanted_runs = {
        f"{case.key}-s{seed}": (case, config_of(case, seed, options, folder))
        for case in study.cases
        if not missing[case.key]
        for seed in options.seeds
    }
    left = {name: config for name, (_, config) in wanted_runs.items() if not complete(config)}
    federated = {name: config for name, config in left.items() if wanted_runs[name][0].work is None}
    done = run_all(federated, options.jobs, "the same command goes on", watch, study.tolerant)
    for name, one in done.items():
        times.add(name, one.seconds)
        if one.refused:
            missing[wanted_runs[name][0].key] = f"does not run: {one.refused}"
    finished = len(done) == len(federated) and all(one.finished or one.refused for one in done.values())
    for name, config in left.items() if finished else ():
        if (work := wanted_runs[name][0].work) is not None:
            start = time.monotonic()
            work(config, watch)
            times.add(name, time.monotonic() - start)
    for name, (case, _) in wanted_runs.items() if finished else ():
        if missing[case.key]:
            continue
        found = RunFolder.read(folder / name)
        runs.setdefault(case.key, []).append(found)
        rounds[name] = (found.last_round, int(case.tables["run"]["rounds"]))
    entries = tuple(
        _entry(line, runs, missing, wanted, times) if finished else _read(line, runs) for line in study.lines
    )
    shown = [*rounds, *(counted(e.line) for e in entries if e.line.count is not None and e.values)]
    seconds = {name: times.seconds[name] for name in shown if name in times.seconds}
    return Outcome(
        study=study,
        options=options,
        entries=entries,
        rounds=rounds,
        seconds=seconds,
        finished=finished,
        runs=runs,
    )


def complete(config: Config) -> bool:
    """Whether a run came to its end.

    :raises InputError: its folder holds another setting
    """
    path, before = Path(str(config.run.out)), begun(config)
    if before is None or before.run.rounds != config.run.rounds:
        return False
    try:
        found = RunFolder.read(path)
    except InputError:  # resuming writes the files anew
        return False
    return bool(found.events_of("done")) and found.last_round in (int(found.setting("run", "rounds")), *_stops(found))


def _stops(found: RunFolder) -> list[int]:
    return [int(e["round"]) for e in found.events_of("stop")]


def _wanted(study: Study, options: Options) -> set[str]:
    """The methods that are asked for.

    :raises InputError: a study has no such method, or number of devices
    """
    names = {c.method for c in study.cases} | {line.algorithm for line in study.lines if line.count is not None}
    for name in options.methods:
        if name not in names:
            raise InputError(f"--methods {name!r} is no method of {study.name}; {nearest(name, names)}")
    there = sorted({c.clients for c in study.cases})
    for count in options.clients:
        if count not in there:
            raise InputError(f"--clients {count}: {study.name} has {' and '.join(map(str, there))}")
    return set(options.methods) or names


def _reason(case: Case, options: Options, wanted: set[str]) -> str:
    """Why a case is not run, whatever data there are; empty: it is."""
    if case.work is None and case.algorithm not in known():
        return _unknown(case.algorithm)
    if case.method not in wanted or (options.clients and case.clients not in options.clients):
        return NOT_ASKED
    return "not trained: needs --accuracy" if case.costly and not options.accuracy else ""


def _unknown(algorithm: str) -> str:
    return f"not available: no algorithm {algorithm!r} in this version"


def _without_data(cases: list[Case], options: Options, folder: Path) -> dict[str, str]:
    """The cases whose data are not to be had, with the reason."""
    reasons: dict[str, str] = {}
    for case in cases:
        if case.source in reasons:
            continue
        try:
            open_source(config_of(case, 0, options, folder).data)
            reasons[case.source] = ""
        except InputError as err:
            reasons[case.source] = f"skipped: {err}"
    return {c.key: reasons[c.source] for c in cases}


def counted(line: Line) -> str:
    """The name of a count among the wall times."""
    return f"{line.data}, {line.method}: {line.quantity}"


def _entry(
    line: Line, runs: dict[str, list[RunFolder]], missing: dict[str, str], wanted: set[str], times: "_Times"
) -> Entry:
    if line.count is None:
        return _read(line, runs, missing.get(line.case, ""))
    if line.algorithm not in known():
        return Entry(line=line, missing=_unknown(line.algorithm))
    if line.algorithm not in wanted:
        return Entry(line=line, missing=NOT_ASKED)
    start = time.monotonic()
    value = line.count()
    times.put(counted(line), time.monotonic() - start)
    return Entry(line=line, values=(value,))


def _read(line: Line, runs: dict[str, list[RunFolder]], missing: str = "") -> Entry:
    found = runs.get(line.case, [])
    if line.read is None or not found:
        return Entry(line=line, missing=missing or "not finished")
    values = tuple(line.read(one) for one in found)
    if not np.isfinite(values).all():
        return Entry(line=line, missing="the method has no such model, or its scores are not finite")
    return Entry(line=line, values=values)


class _Times:
    """Seconds of work by name, kept in the study's folder over several calls."""

    def __init__(self, folder: Path) -> None:
        self.path, self.seconds = folder / TIMES, dict[str, float]()
        try:
            self.seconds = {str(k): float(v) for k, v in json.loads(self.path.read_text("utf-8")).items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError, TypeError) as err:
            raise InputError(f"{self.path} cannot be read: {err}; delete it (the wall times are then lost)") from None

    def add(self, name: str, seconds: float) -> None:
        """More seconds of a run; nothing is noted of instants."""
        if name not in self.seconds or seconds > 0.5:
            self.put(name, self.seconds.get(name, 0.0) + seconds)

    def put(self, name: str, seconds: float) -> None:
        self.seconds[name] = seconds
        with on_disk(self.path.parent):
            write_atomic(self.path, json.dumps(self.seconds, indent=1) + "\n")
