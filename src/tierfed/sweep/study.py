"""A sweep and its folder: which settings are tried, the runs of them, the best one; it goes on where it was stopped."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tierfed import objective as objectives
from tierfed.around import SweepSettings
from tierfed.config import Config, GridSettings, load_config, to_toml
from tierfed.disk import locked
from tierfed.errors import InputError
from tierfed.evaluation import kind
from tierfed.folders import make_folder, read_run, refuse_existing
from tierfed.metrics import Row, main_metric, write_atomic
from tierfed.objective import Objective
from tierfed.pool import Done, run_all
from tierfed.result import Progress, Watcher
from tierfed.session import fingerprint, on_disk
from tierfed.settings import table
from tierfed.setup import prepare
from tierfed.sweep.space import Values, decoded, encoded, grid, space

STUDY = "study"  # the folder of Optuna's data base
_DEFAULT_TRIALS = 20
_FIRST = ("algorithm.name", "personalize.mechanism")  # what they name decides about the other keys
_SEEDS = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting that was tried."""

    number: int
    params: dict[str, Any]
    state: str
    """complete, pruned, failed, or running where the sweep was stopped."""
    value: float | None = None
    why: str = ""
    values: tuple[float, ...] = ()
    """Of each seed, where there are several; `value` is their mean."""

    @property
    def name(self) -> str:
        """The folder of its run, inside that of the sweep; with several seeds that of a seed has "-s" and it behind."""
        return f"trial-{self.number:03d}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a sweep has found."""

    folder: Path
    objective: str
    higher: bool
    trials: tuple[Trial, ...]
    """Best first, those without a value at the end."""
    finished: bool
    wanted: int

    @property
    def best(self) -> Trial | None:
        """The best one; none: no trial has come to its end."""
        return next((t for t in self.trials if t.state == "complete"), None)


def is_sweep_folder(folder: Path) -> bool:
    """Whether a folder holds a sweep."""
    return (folder / STUDY / "sweep.db").is_file()


def sweep(config: Config, folder: Path, watch: Watcher | None = None) -> Outcome:
    """Tries settings until there are as many trials as [sweep] asks for; goes on with what is in the folder.

    :param config: the run, and what to choose from in [sweep]; a [grid] in it is left aside
    :param folder: of the sweep: a run folder for each trial, `best.toml`, `trials.json`, Optuna's data base
    :raises InputError: what is no range or no objective, a config that does not fit, another sweep in the folder
    """
    settings, chosen = config.sweep, space(config.sweep.params)
    points = grid(chosen) if settings.method == "grid" else []
    wanted = min(settings.trials or len(points), len(points)) if points else settings.trials or _DEFAULT_TRIALS
    goal = objectives.parse(settings.objective, "sweep.objective")
    jobs = min(settings.jobs or cpu_count() or 1, wanted)
    if settings.prune and (jobs > 1 or len(settings.seeds) > 1):
        what = f"sweep.jobs = 1 (here it is {jobs})" if jobs > 1 else "sweep.seeds to one of them"
        raise InputError(f"sweep.prune works with one trial at a time; set {what}")
    if len(set(settings.seeds)) < len(settings.seeds) or (settings.seeds and "run.seed" in chosen):
        what = "run.seed of sweep.params" if "run.seed" in chosen else "what is twice"
        raise InputError(f"sweep.seeds = {list(settings.seeds)}: wanted each seed once; leave out {what}")
    first = points[0] if points else {key: _middle(v) for key, v in chosen.items()}
    world = prepare(next(iter(_members(config, first, folder, 0).values())), draft=True)
    sign = goal.sign(main_metric(kind(world)))
    _folder(config, folder)
    lock = locked(folder / STUDY)
    try:
        with _study(folder, sign) as study:
            work = _Work(config, folder, chosen, points, goal, sign, jobs, watch, study)
            finished = work.until(wanted)
            trials = work.trials()
    finally:
        lock.close()
    out = Outcome(folder=folder, objective=goal.text, higher=sign > 0, trials=trials, finished=finished, wanted=wanted)
    _write(config, out)
    return out


def _middle(values: Values) -> Any:
    """A value to check the config with before any trial begins."""
    if values.kind == "choice":
        return values.choices[0]
    middle = math.sqrt(values.low * values.high) if values.kind == "log" else (values.low + values.high) / 2
    return int(middle) if values.kind == "int" else middle


def _members(config: Config, params: Mapping[str, Any], folder: Path, number: int) -> dict[str, Config]:
    """The configs of one trial by the names of their folders: one, or one for each seed."""
    if not config.sweep.seeds:
        return {_name(number): _member(config, params, folder / _name(number))}
    return {
        f"{_name(number)}-s{seed}": _member(config, {**params, "run.seed": seed}, folder / f"{_name(number)}-s{seed}")
        for seed in config.sweep.seeds
    }


def _member(config: Config, params: Mapping[str, Any], out: Path) -> Config:
    """The config of one run."""
    ordered = {k: params[k] for k in sorted(params, key=lambda k: k not in _FIRST)}
    plain = replace(config, sweep=SweepSettings(), grid=GridSettings(), run=replace(config.run, out=str(out)))
    return load_config(plain, ordered)


def _folder(config: Config, folder: Path) -> None:
    """Makes the folder, or checks that it holds the same sweep; the number of trials may be another one."""
    if not is_sweep_folder(folder):
        if not (folder / "config.toml").exists() or not read_run(folder).sweep.params:
            refuse_existing(folder)
            make_folder(folder)
    elif _search(read_run(folder)) != _search(config):
        raise InputError(
            f"{folder} holds another sweep (see its config.toml); choose another folder (--out), or delete that one"
        )
    with on_disk(folder):
        write_atomic(folder / "config.toml", to_toml(config))
        (folder / STUDY).mkdir(exist_ok=True)


def _search(config: Config) -> str:
    """What must not change while a sweep goes on."""
    settings = {**table(config.sweep), "trials": 0}
    return json.dumps([settings, fingerprint(replace(config, grid=GridSettings()))], sort_keys=True)


@contextmanager
def _study(folder: Path, sign: int) -> Iterator[Any]:
    """Optuna's study in the folder."""
    optuna = optuna_or_explain()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder.resolve() / STUDY / 'sweep.db'}")
    try:
        yield optuna.create_study(
            storage=storage,
            study_name="sweep",
            direction="maximize" if sign > 0 else "minimize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=0),
        )
    finally:
        storage.engine.dispose()


def optuna_or_explain() -> Any:
    """:raises InputError: the library is an extra that is not installed"""
    try:
        import optuna  # noqa: PLC0415
    except ModuleNotFoundError as err:
        if err.name != "optuna":
            raise
        raise InputError("a sweep needs Optuna, which is not installed; pip install 'tierfed[sweep]'") from None
    return optuna


class _Work:
    """Rounds of asking, running and telling. A round has as many trials as run at the same time, and the next ones are
    chosen when all of them are known: the search does not depend on which of them ends first, or on a kill.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        chosen: Mapping[str, Values],
        points: Sequence[Mapping[str, Any]],
        goal: Objective,
        sign: int,
        jobs: int,
        watch: Watcher | None,
        study: Any,
    ) -> None:
        self.config, self.folder, self.chosen, self.points = config, folder, chosen, points
        self.goal, self.sign, self.jobs, self.watch, self.study = goal, sign, jobs, watch, study
        self.optuna = optuna_or_explain()

    def until(self, wanted: int) -> bool:
        """Whether there are as many trials as wanted in the end; not, if it was stopped."""
        # what does not depend on earlier trials is asked for in larger parts, which keep all processes at work
        size = self.jobs if self.config.sweep.method == "tpe" else 4 * self.jobs
        while True:
            asked, open_ = len(self.study.get_trials(deepcopy=False)), self._open()
            begun = asked if asked % size else asked + size * (not open_)  # a round that a kill has cut short is filled
            for number in range(asked, min(wanted, -(-begun // size) * size)):
                self._ask(number)
            open_ = self._open()
            if not open_:
                return True
            if not self._run(open_):
                return False

    def _open(self) -> list[Any]:
        running = self.optuna.trial.TrialState.RUNNING
        return [t for t in self.study.get_trials(deepcopy=False) if t.state == running]

    def _ask(self, number: int) -> None:
        """The next trial: a function of the seed, its number, and the trials that are known."""
        seed = (self.config.run.seed * _SEEDS + number) % 2**32
        samplers = self.optuna.samplers
        if self.points:
            self.study.enqueue_trial({k: encoded(v) for k, v in self.points[number].items()})
            distributions = {
                k: self.optuna.distributions.CategoricalDistribution([encoded(p) for p in v.points(k)])
                for k, v in self.chosen.items()
            }
        else:
            distributions = {k: _distribution(self.optuna, v) for k, v in self.chosen.items()}
        tpe = self.config.sweep.method == "tpe"
        self.study.sampler = (
            samplers.TPESampler(seed=seed, constant_liar=True) if tpe else samplers.RandomSampler(seed=seed)
        )
        self.study.ask(distributions)

    def _run(self, open_: list[Any]) -> bool:
        """Trains some trials and tells how good they are; whether all of them came to their end."""
        configs = {}
        for frozen in open_:
            try:
                configs[frozen.number] = _members(self.config, self._params(frozen), self.folder, frozen.number)
            except InputError as err:  # a combination that cannot be
                self._tell(frozen, "FAIL", why=str(err))
        again = f"`tierfed sweep {self.folder}` goes on"
        if self.config.sweep.prune:
            return all(self._watched(t, configs[t.number], again) for t in open_ if t.number in configs)
        runs = {name: config for members in configs.values() for name, config in members.items()}
        done = run_all(runs, self.jobs, again, self.watch, tolerant=True)
        known = [t for t in open_ if t.number in configs]
        ended = [self._judge(t, {name: done.get(name) for name in configs[t.number]}) for t in known]
        return all(ended)

    def _watched(self, frozen: Any, members: dict[str, Config], again: str) -> bool:
        """One trial that ends where it is worse than the median of earlier ones."""
        trial = self.optuna.trial.Trial(self.study, frozen._trial_id)
        pruned = []

        def told(progress: Progress) -> None:
            if self.watch is not None:
                self.watch(progress)
            if not progress.evaluated or progress.round >= progress.rounds or progress.round == 0:
                return
            value = self.goal.value(_rows(progress))
            if value is not None and math.isfinite(value):
                trial.report(value, progress.round)
                if trial.should_prune():
                    pruned.append(progress.round)
                    raise KeyboardInterrupt

        done = run_all(members, 1, again, told, tolerant=True)
        if pruned:
            self._tell(frozen, "PRUNED", why=f"worse than the median at round {pruned[0]}")
            return True
        return self._judge(frozen, done)

    def _judge(self, frozen: Any, done: Mapping[str, Done | None]) -> bool:
        """Tells Optuna how good a trial was; whether it came to its end.

        :param done: what became of its runs, by the names of their folders
        """
        refused = next((d.refused for d in done.values() if d is not None and d.refused), "")
        if not refused and any(d is None or not d.finished for d in done.values()):
            return False
        if refused:
            self._tell(frozen, "FAIL", why=refused)
            return True
        values = [self._value(self.folder / name) for name in done]
        if all(map(math.isfinite, values)):
            if len(values) > 1:
                self.study._storage.set_trial_user_attr(frozen._trial_id, "values", values)
            self._tell(frozen, "COMPLETE", math.fsum(values) / len(values))
        else:
            bad = next(v for v in values if not math.isfinite(v))
            self._tell(frozen, "FAIL", why=f"the objective is {bad}: the training has diverged")
        return True

    def _value(self, run: Path) -> float:
        """How good a run was."""
        value = self.goal.value(read_rows(run))
        if value is None:
            raise InputError(
                f"sweep.objective = {self.goal.text!r} was not measured by {run}; the algorithm may have no such "
                "model, or eval.post or eval.baseline is needed for it"
            )
        return value

    def _tell(self, frozen: Any, state: str, value: float | None = None, why: str = "") -> None:
        if why:
            self.study._storage.set_trial_user_attr(frozen._trial_id, "why", why)
        self.study.tell(frozen.number, value, state=getattr(self.optuna.trial.TrialState, state))

    def _params(self, frozen: Any) -> dict[str, Any]:
        return {k: decoded(self.chosen[k], v) for k, v in frozen.params.items()}

    def trials(self) -> tuple[Trial, ...]:
        """All trials, best first."""
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        found = [
            Trial(
                number=t.number,
                params=self._params(t),
                state=names.get(t.state.name, "running"),
                value=t.value if t.state.name == "COMPLETE" else None,
                why=t.user_attrs.get("why", ""),
                values=tuple(t.user_attrs.get("values", ())),
            )
            for t in self.study.get_trials(deepcopy=False)
        ]
        return tuple(sorted(found, key=lambda t: (t.value is None, -self.sign * (t.value or 0.0), t.number)))


def _name(number: int) -> str:
    return f"trial-{number:03d}"


def _distribution(optuna: Any, values: Values) -> Any:
    d = optuna.distributions
    if values.kind == "choice":
        return d.CategoricalDistribution([encoded(c) for c in values.choices])
    if values.kind == "int":
        return d.IntDistribution(int(values.low), int(values.high), step=int(values.step or 1))
    if values.kind == "log":
        return d.FloatDistribution(values.low, values.high, log=True)
    return d.FloatDistribution(values.low, values.high, step=values.step)


def _rows(progress: Progress) -> list[Row]:
    """The numbers that a watcher is told, as rows of metrics."""
    parts = ((*name.partition("/"), value) for name, value in progress.metrics.items())
    return [Row(progress.round, "cloud", "cloud", model, "test", metric, value) for model, _, metric, value in parts]


def read_rows(run: Path) -> list[Row]:
    """The metrics of a run folder without those of single devices.

    :raises InputError: they cannot be read
    """
    try:
        found = pq.read_table(run / "metrics.parquet")
    except (OSError, pa.ArrowException) as err:
        raise InputError(f"the metrics of {run} cannot be read: {err}; delete that folder, and sweep again") from None
    rows = (Row(**row) for row in found.filter((pa.compute.field("model") == "") | _at_cloud()).to_pylist())
    return list(rows)


def _at_cloud() -> Any:
    return pa.compute.field("tier") == "cloud"


def _write(config: Config, out: Outcome) -> None:
    """What a sweep leaves beside its runs: the table, the best config, and the list that reports are made from."""
    seeds = config.sweep.seeds
    done = [t.name for t in out.trials if t.state == "complete"]
    runs = [f"{name}-s{seed}" for name in done for seed in seeds] if seeds else done
    rows = [_row(t) for t in out.trials]
    with on_disk(out.folder):
        write_atomic(out.folder / "trials.json", json.dumps(rows, indent=2))
        if runs:
            write_atomic(out.folder / "grid.json", json.dumps({"runs": runs}))
        if out.best is not None:
            best = _member(config, {**out.best.params, **({"run.seed": seeds[0]} if seeds else {})}, out.folder)
            again = GridSettings(seeds=seeds if len(seeds) > 1 else ())
            write_atomic(out.folder / "best.toml", to_toml(replace(best, run=replace(best.run, out=None), grid=again)))


def _row(trial: Trial) -> dict[str, Any]:
    """What `trials.json` says of a trial."""
    spread = {"values": list(trial.values)} if trial.values else {}
    return {"trial": trial.name, "value": trial.value, **spread, "state": trial.state, **trial.params, "why": trial.why}
