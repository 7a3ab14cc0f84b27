"""Watchers that write what a run tells to where people look: TensorBoard, MLflow, Weights & Biases, CSV, Parquet.

    with tierfed.track.TensorBoard("boards/first") as board:
        tierfed.run(config, watch=board)

`[track]` in a config attaches them by name. Each has the numbers of a round under the names of `Progress.metrics`; a
run that goes on continues what was begun. Libraries are extras (track: TensorBoard; mlflow; wandb), imported when used.
"""

import hashlib
import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tierfed.around import TrackSettings
from tierfed.config import Config, to_toml
from tierfed.errors import InputError
from tierfed.metrics import write_atomic
from tierfed.result import Progress, Watcher
from tierfed.settings import flat, table

PLACES = ("csv", "mlflow", "parquet", "tensorboard", "wandb")
_MOST_PARAM = 250  # characters of a value that MLflow takes


class Tracker:
    """A watcher that is closed at the end; also a context manager."""

    def __call__(self, progress: Progress) -> None:
        """Told after every round."""
        if progress.metrics and not progress.doing:
            self.log(progress.round, progress.metrics)

    def log(self, round_: int, numbers: Mapping[str, float]) -> None:
        """The numbers of one round."""
        raise NotImplementedError

    def begin(self, config: Config) -> None:
        """The settings of the run, before its first round."""

    def close(self) -> None:
        """What is left is written."""

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Table(Tracker):
    """A file with one row per round and a column for every number; the end of its name says how: .csv or .parquet.

    :param path: an existing file is gone on with, from the first round on that comes again
    :raises InputError: another kind of file, or one that cannot be read
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        if self._path.suffix not in (".csv", ".parquet"):
            raise InputError(f"{self._path}: wanted a name that ends with .csv or .parquet")
        self._rows = self._read() if self._path.exists() else []

    def _read(self) -> list[dict[str, Any]]:
        try:
            found = pa.csv.read_csv(self._path) if self._path.suffix == ".csv" else pq.read_table(self._path)
        except (OSError, pa.ArrowException) as err:
            raise InputError(f"{self._path} cannot be gone on with: {err}; delete it, or choose another one") from None
        return [{k: v for k, v in row.items() if v is not None} for row in found.to_pylist()]

    def log(self, round_: int, numbers: Mapping[str, float]) -> None:
        self._rows = [r for r in self._rows if r["round"] < round_]
        self._rows.append({"round": round_, **numbers})
        if any(name.startswith(("global/", "personal_", "team/")) for name in numbers):
            self.close()

    def close(self) -> None:
        if not self._rows:
            return
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        found = pa.table({n: pa.array([row.get(n) for row in self._rows]) for n in names})
        if self._path.suffix == ".parquet":
            write_atomic(self._path, found)
            return
        sink = pa.BufferOutputStream()
        pa.csv.write_csv(found, sink)
        write_atomic(self._path, sink.getvalue().to_pybytes())


class TensorBoard(Tracker):
    """Scalars for `tensorboard --logdir FOLDER`, by round.

    :param folder: of the event files; what was written of rounds that come again is hidden
    :raises InputError: TensorBoard is not installed
    """

    def __init__(self, folder: Path | str) -> None:
        writers = _library("torch.utils.tensorboard", "tensorboard", "tierfed[track]")
        self._make, self._folder, self._writer = writers.SummaryWriter, str(folder), None
        self._text = ""

    def _open(self, round_: int) -> Any:
        if self._writer is None:
            self._writer = self._make(self._folder, purge_step=round_)
        return self._writer

    def begin(self, config: Config) -> None:
        self._text = "\n".join(f"    {line}" for line in to_toml(config).splitlines())

    def log(self, round_: int, numbers: Mapping[str, float]) -> None:
        fresh = self._writer is None
        writer = self._open(round_)
        if fresh and round_ == 0 and self._text:
            writer.add_text("config", self._text, 0)
        for name, value in numbers.items():
            writer.add_scalar(name, value, round_)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MLflow(Tracker):
    """A run of MLflow, in a local SQLite file unless another place is named.

    :param uri: sqlite:///FILE, or the address of a server
    :param experiment: its name
    :param run: the name of the run; one of this name that was begun here before is gone on with
    :raises InputError: MLflow is not installed
    """

    def __init__(self, uri: str = "sqlite:///mlflow.db", experiment: str = "tierfed", run: str = "run") -> None:
        self._mlflow = _library("mlflow", "mlflow", "tierfed[mlflow]")
        self._client = self._mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(experiment)
        where = self._client.create_experiment(experiment) if found is None else found.experiment_id
        name = run.replace("'", " ")
        before = self._client.search_runs([where], f"attributes.run_name = '{name}'", max_results=1)
        self._fresh = not before
        self._id = (before[0] if before else self._client.create_run(where, run_name=name)).info.run_id
        if before:
            self._client.update_run(self._id, status="RUNNING")

    def begin(self, config: Config) -> None:
        if self._fresh:
            for key, value in flat(table(config)):
                self._client.log_param(self._id, key, str(value)[:_MOST_PARAM])

    def log(self, round_: int, numbers: Mapping[str, float]) -> None:
        metric = self._mlflow.entities.Metric
        now = self._mlflow.utils.time.get_current_time_millis()
        self._client.log_batch(self._id, [metric(name, value, now, round_) for name, value in numbers.items()])

    def close(self) -> None:
        self._client.set_terminated(self._id)


class WandB(Tracker):
    """A run of Weights & Biases, offline unless told otherwise: files below `folder`, for `wandb sync`.

    :param folder: where its files go
    :param project: its name
    :param run: the name of the run; the same name in the same folder goes on with it
    :param mode: "offline" or "online"
    :raises InputError: wandb is not installed
    """

    def __init__(
        self, folder: Path | str = ".", project: str = "tierfed", run: str = "run", mode: str = "offline"
    ) -> None:
        wandb = _library("wandb", "wandb", "tierfed[wandb]")
        Path(folder).mkdir(parents=True, exist_ok=True)
        ident = hashlib.sha256(f"{Path(folder).resolve()}/{run}".encode()).hexdigest()[:16]
        # online, "allow" goes on with the run of this id; offline it is merged by its id when it is synced
        self._run = wandb.init(
            dir=str(folder), project=project, name=run, id=ident, mode=mode, resume="allow", reinit="create_new"
        )

    def begin(self, config: Config) -> None:
        self._run.config.update(table(config), allow_val_change=True)

    def log(self, round_: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=round_)

    def close(self) -> None:
        self._run.finish()


def together(*watchers: Watcher | None) -> Watcher:
    """One watcher that tells several, those that are None left out."""

    def tell(progress: Progress) -> None:
        for watcher in watchers:
            if watcher is not None:
                watcher(progress)

    return tell


@contextmanager
def tracked(config: Config, path: Path | None, watch: Watcher | None) -> Iterator[Watcher | None]:
    """A watcher that tells `watch` and all that [track] names. A tracker that fails later on is left out, with a
    warning: a run is worth more than its curves.

    :param path: the run folder; None: there is none, and files go to the working folder
    :raises InputError: a library that is not installed, a file that cannot be gone on with
    """
    if not config.track.to:
        yield watch
        return
    folder = path or Path.cwd()
    with ExitStack() as closing:
        trackers = [_guarded(_made(name, config.track, folder), name, config, closing) for name in config.track.to]
        yield together(*trackers, watch)


def _guarded(tracker: Tracker, name: str, config: Config, closing: ExitStack) -> Watcher:
    """A tracker whose errors are warnings."""
    broken: list[str] = []

    def guarded(what: Any, *arguments: Any) -> None:
        if broken:
            return
        try:
            what(*arguments)
        except Exception as err:  # whatever a library or its server does
            broken.append(name)
            warnings.warn(f"track: {name} stopped: {type(err).__name__}: {err}", RuntimeWarning, stacklevel=2)

    closing.callback(guarded, tracker.close)
    guarded(tracker.begin, config)
    return lambda progress: guarded(tracker, progress)


def _made(name: str, settings: TrackSettings, folder: Path) -> Tracker:
    """The tracker of a name, with its files in the run folder; MLflow's data base is beside it, for all runs there."""
    try:
        return _begun(name, settings, folder)
    except InputError:
        raise
    except Exception as err:  # whatever a library or its server does
        raise InputError(f"track.to: {name} cannot be begun: {type(err).__name__}: {err}") from None


def _begun(name: str, settings: TrackSettings, folder: Path) -> Tracker:
    if name in ("csv", "parquet"):
        return Table(folder / f"track.{name}")
    if name == "tensorboard":
        return TensorBoard(folder / "tensorboard")
    if name == "mlflow":
        uri = settings.uri or f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"
        return MLflow(uri, settings.project, folder.name)
    return WandB(folder, settings.project, folder.name, settings.mode)


def _library(module: str, package: str, install: str) -> ModuleType | Any:
    """:raises InputError: the library is not installed"""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] != package:
            raise
        raise InputError(f"{package} is not installed; pip install '{install}', or leave it out of track.to") from None
