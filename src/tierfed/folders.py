"""Run folders: their names, their configs, and what another run has measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tierfed.config import Config, from_table, read
from tierfed.disk import disk_error
from tierfed.errors import InputError
from tierfed.evaluation import kind
from tierfed.lookup import near_run
from tierfed.metrics import Scores, main_metric
from tierfed.setup import World


def read_run(path: Path) -> Config:
    """The config of a run folder.

    :raises InputError: it is none, or its config cannot be read
    """
    return from_table(run_tables(path))


def run_tables(path: Path) -> dict[str, Any]:
    """The config of a run folder as it lies there.

    :raises InputError: it is no run folder
    """
    if not (path / "config.toml").is_file():
        hint = near_run(path) or "; give the folder of a run"
        raise InputError(f"{path} is no run folder (it has no config.toml){hint}")
    return read(str(path / "config.toml"))


def default_folder(config: Config) -> Path:
    """runs/<data set>-<algorithm>-s<seed>"""
    name = str(config.algorithm.get("label", config.algorithm.get("name")))
    return Path("runs") / f"{config.data.source}-{name}-s{config.run.seed}".replace(":", ".").replace("/", ".")


def refuse_existing(path: Path) -> None:
    """:raises InputError: there is something at the place of a new run folder"""
    if path.exists() or path.is_symlink():
        hint = f"`tierfed resume {path}` goes on with it; " if (path / "config.toml").exists() else ""
        raise InputError(f"the run folder {path} exists; {hint}for a new run choose another one with run.out")


def make_folder(path: Path) -> None:
    """A new folder for a run.

    :raises InputError: it exists, or cannot be made
    """
    refuse_existing(path)
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        refuse_existing(path)
        raise InputError(
            f"the run folder {path} cannot be made: a file is in its way; choose another run.out"
        ) from None
    except OSError as err:
        raise disk_error(path, err) from None


def read_baseline(world: World) -> Scores | None:
    """The main metric of a finished local-only run on the same devices, personal_post of its last evaluation.

    :raises InputError: eval.baseline is no such run. Where one of the two evaluates a sample of the devices, some that
        both have are enough
    """
    where = world.config.eval.baseline
    if where is None:
        return None
    try:
        metrics = pq.read_table(Path(where) / "metrics.parquet")
    except (OSError, pa.ArrowException) as err:
        raise InputError(
            f"eval.baseline = {where!r} cannot be read: {err}"
            f"{near_run(Path(where)) or '; give the folder of a finished run'}"
        ) from None
    wanted = {"model": "personal_post", "tier": "device", "metric": main_metric(kind(world))}
    for column, value in wanted.items():
        metrics = metrics.filter(pc.equal(metrics[column], value))
    metrics = metrics.filter(pc.equal(metrics["round"], pc.max(metrics["round"])))
    found = dict(zip(metrics["node"].to_pylist(), metrics["value"].to_pylist(), strict=True))
    federation = world.federation
    known = [i for i, name in enumerate(federation.devices) if name in found]
    missing = [d for d, rows in zip(federation.devices, federation.test, strict=True) if len(rows) and d not in found]
    if known and missing and (world.config.eval.devices or read_run(Path(where)).eval.devices):
        missing = []
    if missing:
        raise InputError(
            f"eval.baseline = {where!r} has no personal_post score of device {missing[0]!r}; "
            "give a finished local-only run on the same data"
        )
    return Scores(np.array(known, np.int64), np.array([found[federation.devices[i]] for i in known]))
