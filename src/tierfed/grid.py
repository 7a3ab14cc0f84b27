"""Several runs in one folder, for comparison: every algorithm with every seed, a few at a time."""

import json
from dataclasses import replace
from pathlib import Path

from tierfed.config import Config, GridSettings, local_training, to_toml
from tierfed.errors import InputError
from tierfed.folders import make_folder, read_baseline, read_run, refuse_existing
from tierfed.metrics import write_atomic
from tierfed.pool import run_all
from tierfed.result import Watcher
from tierfed.session import on_disk
from tierfed.setup import prepare


def members(config: Config, folder: Path) -> dict[str, Config]:
    """The runs of a grid by name: <algorithm or label>-s<seed>."""
    tables = config.grid.algorithms or (config.algorithm,)
    out: dict[str, Config] = {}
    for own in tables:
        same = own.get("name", config.algorithm.get("name")) == config.algorithm.get("name")
        algorithm = {**(config.algorithm if same else local_training(config.algorithm)), **own}
        for seed in config.grid.seeds or (config.run.seed,):
            label = str(algorithm.get("label", algorithm.get("name", "fedavg")))
            name = f"{label.replace(':', '.').replace('/', '.')}-s{seed}"
            if name in out:
                raise InputError(f"grid: two runs are named {name!r}; give the algorithms a label of their own")
            settings = replace(config.run, seed=seed, out=str(folder / name))
            out[name] = replace(config, run=settings, algorithm=algorithm, grid=GridSettings())
    return out


def is_grid(config: Config) -> bool:
    return bool(config.grid.algorithms or config.grid.seeds)


def is_grid_folder(folder: Path) -> bool:
    """Whether a folder holds a grid; with one file alone when its process was killed between the two."""
    return (folder / "grid.json").exists() or ((folder / "config.toml").exists() and is_grid(read_run(folder)))


def run_grid(config: Config, folder: Path, watch: Watcher | None = None) -> bool:
    """All runs of a grid from the start; whether all of them came to their end.

    :raises InputError: anything in a config that does not fit (before the first run begins); the folder exists; a
        process of the grid died
    """
    refuse_existing(folder)
    runs = members(config, folder)
    for member in runs.values():
        read_baseline(prepare(member, draft=True))
    make_folder(folder)
    try:
        with on_disk(folder):
            write_atomic(folder / "config.toml", to_toml(config))
            write_atomic(folder / "grid.json", json.dumps({"runs": list(runs)}))
    except InputError:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        raise
    return _all(runs, config.run.jobs, folder, watch)


def resume_grid(folder: Path, watch: Watcher | None = None) -> bool:
    """Goes on with what is unfinished in a grid folder; whether all of it came to its end.

    :raises InputError: the folder is damaged, or was changed; a process of the grid died
    """
    config = read_run(folder)
    runs = {name: _own_rounds(member) for name, member in members(config, folder).items()}
    if not (folder / "grid.json").exists():
        with on_disk(folder):
            write_atomic(folder / "grid.json", json.dumps({"runs": list(runs)}))
    return _all(runs, config.run.jobs, folder, watch)


def _all(runs: dict[str, Config], jobs: int, folder: Path, watch: Watcher | None) -> bool:
    done = run_all(runs, jobs, f"`tierfed resume {folder}` goes on with what is unfinished", watch)
    return len(done) == len(runs) and all(d.finished for d in done.values())


def _own_rounds(member: Config) -> Config:
    """A run that was given other rounds by itself keeps them."""
    path = Path(str(member.run.out))
    if not (path / "config.toml").exists():
        return member
    return replace(member, run=replace(member.run, rounds=read_run(path).run.rounds))
