"""Several runs in one folder, for comparison: every algorithm with every seed, a few at a time."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty
from typing import Any

from tierfed.config import Config, GridSettings, local_training, to_toml
from tierfed.errors import InputError
from tierfed.loop import make_folder, read_baseline, read_run, refuse_existing, resume, run
from tierfed.metrics import write_atomic
from tierfed.result import Progress, Watcher
from tierfed.session import fingerprint, on_disk
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
        read_baseline(prepare(member))
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
    runs = members(config, folder)
    if not (folder / "grid.json").exists():
        with on_disk(folder):
            write_atomic(folder / "grid.json", json.dumps({"runs": list(runs)}))
    return _all(runs, config.run.jobs, folder, watch)


def _all(runs: dict[str, Config], jobs: int, folder: Path, watch: Watcher | None) -> bool:
    jobs = min(jobs or os.cpu_count() or 1, len(runs))
    if jobs == 1:
        return all(_one(c, watch) for c in runs.values())
    context = multiprocessing.get_context("spawn")
    queue: Queue[Progress] = context.Queue()
    stop = context.Event()
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(queue, stop)) as pool:
        with _deaf():
            futures = {n: pool.submit(_worker, _single(c)) for n, c in runs.items()}
        finished = _followed(futures, queue, stop, watch)
    failed = {n: err for n, f in futures.items() if not f.cancelled() and (err := f.exception()) is not None}
    for name, err in failed.items():
        if isinstance(err, BrokenProcessPool):
            raise InputError(
                f"a process of the grid died (killed, or out of memory); `tierfed resume {folder}` goes on with what "
                "is unfinished; run.jobs = 1 takes the least memory"
            ) from None
        raise InputError(f"{name}: {err}") from None if isinstance(err, InputError) else err
    return finished and all(f.result() for f in futures.values())


def _followed(futures: "dict[str, Future[bool]]", queue: "Queue[Progress]", stop: Event, watch: Watcher | None) -> bool:
    """Waits for runs and tells of them; False after Ctrl-C, which lets every run finish its round."""
    try:
        while not all(f.done() for f in futures.values()):
            _drain(queue, watch)
        _drain(queue, watch)
    except KeyboardInterrupt:
        stop.set()
        for future in futures.values():
            future.cancel()
        return False
    return True


def _single(config: Config) -> Config:
    """Runs side by side share the cores."""
    return replace(config, run=replace(config.run, threads=config.run.threads or 1))


def _one(config: Config, watch: Watcher | None) -> bool:
    """One run, from where it is; whether it came to its end."""
    path = Path(str(config.run.out))
    if (path / "config.toml").exists():
        if fingerprint(read_run(path)) != fingerprint(config):
            raise InputError(
                f"{path / 'config.toml'} differs from what {path.parent / 'config.toml'} says; undo the change, or "
                "start a new grid"
            )
        return not resume(path, watch=watch).interrupted
    if path.is_dir() and all(p.name.startswith(".") for p in path.iterdir()):
        for leftover in path.iterdir():
            leftover.unlink()
        path.rmdir()  # it was made, and then the process was killed
    return not run(config, watch=watch).interrupted


class _Parent:
    """What a worker process knows of the process that began it."""

    queue: "Queue[Progress] | None" = None
    stop: Event | None = None


def _begin(queue: "Queue[Progress]", stop: Event) -> None:
    # Ctrl-C reaches all processes of a terminal; the parent alone decides, and asks the workers to stop after a round
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Parent.queue, _Parent.stop = queue, stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on unseen, or wait for work for ever; its commits are safe."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _worker(config: Config) -> bool:
    if _Parent.stop is not None and _Parent.stop.is_set():
        return False
    return _one(config, _tell)


def _tell(progress: Progress) -> None:
    if _Parent.queue is not None:
        _Parent.queue.put(progress)
    if _Parent.stop is not None and _Parent.stop.is_set() and progress.round < progress.rounds:
        raise KeyboardInterrupt


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that begin here do not hear Ctrl-C, not even before they can say so themselves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _drain(queue: "Queue[Progress]", watch: Watcher | None) -> None:
    with suppress(Empty):
        while True:
            progress: Any = queue.get(timeout=0.2)
            if watch is not None:
                watch(progress)
