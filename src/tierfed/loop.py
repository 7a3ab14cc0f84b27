"""A run and its folder: begin, loop, stop, resume."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from tierfed.augment.gan import Tell
from tierfed.checkpoint import as_begun, begun_with, check_config, check_data, identity, keep_begun, replay
from tierfed.computing import keep_memory, on_threads, repeatable
from tierfed.config import Config, GridSettings, from_table, load_config, to_toml
from tierfed.data import Dataset, Federation
from tierfed.engine import Engine
from tierfed.errors import InputError
from tierfed.evaluation import evaluate
from tierfed.folders import default_folder, make_folder, read_baseline, read_run, refuse_existing, run_tables
from tierfed.frames import dataset
from tierfed.ledger import check_budgets
from tierfed.metrics import Row, Scores, write_atomic
from tierfed.result import Progress, Result, Watcher
from tierfed.selection import BEST, selection
from tierfed.session import Scorer, Session, on_disk
from tierfed.setup import World, prepare, threads
from tierfed.start import Start, left_by
from tierfed.store import DiskStore, MemoryStore
from tierfed.track import tracked

__all__ = [
    "Progress",
    "Result",
    "Watcher",
    "begun",
    "open_run",
    "resume",
    "run",
]


class Over(NamedTuple):
    """Where rounds are walked: in this process, or by others."""

    engine: Callable[[World, DiskStore | MemoryStore, Tell | None], Engine]
    score: Scorer
    federation: Federation | None = None
    """Who holds what, in the place of [data]."""
    check: Callable[[World], None] = lambda world: None
    """Raises InputError where they cannot, before anything is written."""


HERE = Over(World.engine, evaluate)
GIVEN = "given:"  # in the place of a name in a config: what the caller had at hand


def run(
    config: Config | Mapping[str, Any] | str | Path,
    *,
    data: Any = None,
    module: nn.Module | None = None,
    watch: Watcher | None = None,
    folder: bool = True,
    before: Result | None = None,
    over: Over = HERE,
) -> Result:
    """Trains one run from the start; of a config with [personalize] the training alone.

    :param config: a `Config`, a dict of its tables, a TOML file or the name of a preset. A [grid] in it is for the
        command line: here [algorithm] is trained with run.seed
    :param data: in the place of data.source: a `Dataset`, or a table (pandas, polars, pyarrow, a dict of columns) whose
        columns [data.columns] names; "label" and "device" by default
    :param module: in the place of model.name: any nn.Module; the run works on a copy
    :param watch: is told after every round
    :param folder: write the run folder; without it nothing outlives the process
    :param before: a run in this process, in the place of the folder start.run
    :param over: where rounds are walked
    :raises InputError: anything in the config that does not fit; the folder exists; the disk is full
    """
    config, data = with_given(replace(load_config(config), grid=GridSettings()), data, module)
    path = Path(config.run.out or default_folder(config))
    if folder:
        config = replace(config, run=replace(config.run, out=str(path)))
        refuse_existing(path)
    tell = _teller(config, path if folder else None, watch)
    world = prepare(config, data, module, federation=over.federation, tell=tell)
    over.check(world)
    baseline = read_baseline(world)
    selection(world)  # what it refuses, it refuses before there is a folder
    check_budgets(world)
    start = _left(world, data, module) if before is None else left_by(before, world)
    if not folder:
        return _loop(world, MemoryStore(), None, [], [], watch, baseline, start, over)
    make_folder(path)
    store = None
    try:
        with on_disk(path):
            write_atomic(path / "config.toml", to_toml(config))
        store = DiskStore(path / "state", world.device)
        keep_begun(store, world, module)
        return _loop(world, store, path, [], [], watch, baseline, start, over)
    except InputError:
        if store is None or not store.meta:  # not even the first commit: nothing that could be resumed
            shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        if store is not None:
            store.close()


def resume(
    path: Path | str,
    *,
    rounds: int | None = None,
    engine: Mapping[str, Any] | None = None,
    data: Any = None,
    module: nn.Module | None = None,
    watch: Watcher | None = None,
    over: Over = HERE,
) -> Result:
    """Goes on with a run after its last committed round; the same bits as if it had never stopped.

    :param rounds: another number of rounds than the run was begun with
    :param engine: keys of [engine] that are other ones from now on: name, workers, address, gpus
    :param data: what was given to `run`; :param module: the same
    :param over: where rounds are walked
    :raises InputError: no run folder, another config, data or model than the run began with, a damaged checkpoint,
        another process at work on it, private states that are elsewhere
    """
    path = Path(path)
    config = begun(path, data, module)
    if rounds is not None or engine:
        tables = run_tables(path)
        run = {**tables["run"], **({} if rounds is None else {"rounds": rounds})}
        config = from_table({**tables, "run": run, "engine": {**tables.get("engine", {}), **(engine or {})}})
    if data is not None:
        data = dataset(data, config.data.columns)
    store = DiskStore(path / "state")
    try:
        check_config(store, path, config)
        if store.meta.get("elsewhere") and over is HERE:
            raise InputError(f"the run in {path} cannot go on here: {store.meta['elsewhere']}")
        if module is not None:
            module = as_begun(store, module)
        world = prepare(
            config,
            data,
            module,
            federation=over.federation,
            begun=begun_with(store),
            computed=store.meta.get("computed"),
            tell=_teller(config, path, watch),
        )
        store.move(world.device)
        baseline = read_baseline(world)
        check_data(store, path, world)
        if store.meta and (rounds is not None or engine):
            with on_disk(path):
                write_atomic(path / "config.toml", to_toml(config))
        if not store.meta:
            keep_begun(store, world, module)
        start = None if store.meta else _left(world, data, module)
        rows, happened = replay(store)
        return _loop(world, store, path, rows, happened, watch, baseline, start, over)
    finally:
        store.close()


@contextmanager
def open_run(
    path: Path | str, *, data: Any = None, module: nn.Module | None = None, best: bool = False
) -> Iterator[Result]:
    """A run as its last commit left it, to take models and scores from; nothing is trained, nothing written.

    :param data: what was given to `run`; :param module: the same
    :param best: as the best round left it, where the config asks for it ([select])
    :raises InputError: as `resume`; also a run without a committed round, or without a best one
    """
    path = Path(path)
    config = begun(path, data, module)
    where = path / (BEST if best else "state")
    if best and not (where / "data.mdb").is_file():
        raise InputError(f"the run in {path} has kept no best round; ask for it with select.by when it is trained")
    none = InputError(f"the run in {path} has no committed round; go on with it: `tierfed resume {path}`")
    if not (where / "data.mdb").is_file():
        raise none
    store = DiskStore(where)
    try:
        if not store.meta:
            raise none
        check_config(store, path, config)
        world = prepare(
            replace(config, engine=config.engine.here),
            None if data is None else dataset(data, config.data.columns),
            None if module is None else as_begun(store, module),
            begun=begun_with(store),
            computed=store.meta.get("computed"),
        )
        store.move(world.device)
        check_data(store, path, world)
        rows, happened = replay(store)
        session = Session(world, world.engine(store), store, path, rows, happened, None, None, identity(world))
        session.engine.restore(store.meta)
        yield Result(
            folder=path,
            rows=rows,
            events=happened,
            world=session.world,
            engine=session.engine,
            recorded=session.ties.known,
            trained=0,
        )
    finally:
        store.close()


def with_given(config: Config, data: Any, module: nn.Module | None) -> tuple[Config, Dataset | None]:
    """The config of a run with what the caller has at hand, and that as a data set.

    :raises InputError: no table, no module
    """
    if data is not None:
        data = dataset(data, config.data.columns)
        config = replace(config, data=replace(config.data, source=GIVEN + data.name, path=None))
    if module is not None:
        if not isinstance(module, nn.Module):
            raise InputError(f"module is {module!r:.80}; wanted an nn.Module, for example module=Net()")
        config = replace(config, model=replace(config.model, name=GIVEN + type(module).__name__))
    return config, data


@contextmanager
def at_best(run: Result) -> Iterator[Result]:
    """A run at hand as its best round left it.

    :raises InputError: it has kept none
    """
    if run.folder is None or not (run.folder / BEST / "data.mdb").is_file():
        raise InputError("the run has kept no best round; it needs a folder, and select.by in its config")
    store = DiskStore(run.folder / BEST, run.world.device)
    try:
        engine = run.world.engine(store)
        engine.restore(store.meta)
        yield replace(run, engine=engine)
    finally:
        store.close()


def _left(world: World, data: Any, module: nn.Module | None) -> Start | None:
    """What the run that start.run names has left."""
    where = world.config.start.run
    if where is None:
        return None
    with open_run(where, data=data, module=module) as before:
        return left_by(before, world)


def begun(path: Path, data: Any, module: nn.Module | None, call: str = "resume") -> Config:
    """The config of a run that has a checkpoint, or none yet.

    :param call: what the caller wants of it, for messages
    :raises InputError: no run folder, or what it was begun with in Python was not given
    """
    config = read_run(path)
    for given, name, what in ((data, config.data.source, "data"), (module, config.model.name, "module")):
        if name.startswith(GIVEN) and given is None:
            raise InputError(
                f"the run in {path} was begun in Python with {what}= ({name.removeprefix(GIVEN)}); go on with it "
                f"there: tierfed.{call}({str(path)!r}, {what}=…)"
            )
    data_file = path / "state" / "data.mdb"
    if (path / "metrics.parquet").exists() and not (data_file.exists() and data_file.stat().st_size):
        raise InputError(
            f"{path} has metrics, but its checkpoint ({data_file}) is missing or empty; restore it from a copy, or "
            "delete the folder and start the run again"
        )
    return config


def _teller(config: Config, path: Path | None, watch: Watcher | None) -> Callable[[str], None] | None:
    """Tells a watcher what goes on before round 0."""
    if watch is None:
        return None
    start = Progress(
        name=path.name if path else "run", round=0, rounds=config.run.rounds, scores={}, evaluated=False, bytes=0
    )
    return lambda text: watch(replace(start, doing=text))


def _loop(
    world: World,
    store: DiskStore | MemoryStore,
    path: Path | None,
    rows: list[Row],
    happened: list[dict[str, Any]],
    watch: Watcher | None,
    baseline: Scores | None,
    start: Start | None,
    over: Over,
) -> Result:
    with tracked(world.config, path, watch) as tell:
        config, engine = world.config, over.engine(world, store, _teller(world.config, path, tell))
        session = Session(
            world, engine, store, path, rows, happened, tell, baseline, identity(world), start, over.score
        )
        keep_memory()
        interrupted, first = False, int(store.meta.get("round", 0))
        with on_threads(threads(config, [t.module for t in world.tasks])), repeatable(world.device):
            try:
                engine.open()
                if store.meta:
                    engine.restore(store.meta)
                    session.keep_best()  # a kill may have come between the commit and the copy
                    session.note({"round": engine.round, "event": "resume"})
                    session.export()
                else:
                    session.begin()
                while engine.round < config.run.rounds and not store.meta.get("stopped"):
                    session.round()
                session.note({"round": engine.round, "event": "done"})
            except KeyboardInterrupt:
                store.discard()
                interrupted = True
            finally:
                engine.close()
        session.export()
        trained = int(store.meta.get("round", 0)) - first
        return Result(
            folder=path,
            rows=rows,
            events=happened,
            world=session.world,  # with the teams that were formed
            engine=engine,
            recorded=session.ties.known,
            trained=trained,
            interrupted=interrupted,
        )
