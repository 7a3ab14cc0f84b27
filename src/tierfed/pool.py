"""Several runs at the same time: a pool of processes that Ctrl-C stops after a round and that dies with its parent."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

from tierfed.config import Config
from tierfed.errors import InputError
from tierfed.folders import read_run
from tierfed.pipeline import clear_leftover, resume, run
from tierfed.result import Progress, Watcher
from tierfed.session import fingerprint


class Done(NamedTuple):
    """What became of a run in this call."""

    finished: bool
    seconds: float
    refused: str = ""  # why it could not run, where that is no error


def run_all(
    runs: dict[str, Config], jobs: int, again: str, watch: Watcher | None = None, tolerant: bool = False
) -> dict[str, Done]:
    """All runs from where they are, `jobs` at a time (0: as many as there are cores); those not begun are left out.

    :param again: how the work goes on, said when a process died
    :param tolerant: what a run refuses is noted as `Done.refused`, and the others go on
    :raises InputError: a folder holds another run; whatever a run refuses; a process died
    """
    jobs = min(jobs or os.cpu_count() or 1, len(runs))
    if jobs <= 1:
        return _in_turn(runs, watch, tolerant)
    context = multiprocessing.get_context("spawn")
    queue: Queue[Progress] = context.Queue()
    stop = context.Event()
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(queue, stop)) as pool:
        with _deaf():
            futures = {n: pool.submit(_worker, _single(c), tolerant) for n, c in runs.items()}
        _follow(futures, queue, stop, watch)
    failed = {n: err for n, f in futures.items() if not f.cancelled() and (err := f.exception()) is not None}
    for name, err in failed.items():
        if isinstance(err, BrokenProcessPool):
            raise InputError(
                f"a process died (killed, or out of memory); {again}; one run at a time takes the least memory"
            ) from None
        raise InputError(f"{name}: {err}") from None if isinstance(err, InputError) else err
    return {n: f.result() for n, f in futures.items() if not f.cancelled()}


def begun(config: Config) -> Config | None:
    """What the folder of a run was begun with; None: there is no run yet.

    :raises InputError: it holds another run
    """
    path = Path(str(config.run.out))
    if not (path / "config.toml").exists():
        return None
    before = read_run(path)
    if fingerprint(before) != fingerprint(config):
        raise InputError(
            f"{path / 'config.toml'} is another setting than what shall run here; undo the change, choose another "
            "folder (--out), or delete that one"
        )
    return before


def carry_on(config: Config, watch: Watcher | None = None) -> bool:
    """One run from where it is, begun where there is none; whether it came to its end.

    :raises InputError: its folder holds another run, or has trained more rounds than are wanted
    """
    path, before = Path(str(config.run.out)), begun(config)
    if before is not None:
        rounds = None if before.run.rounds == config.run.rounds else config.run.rounds
        return not resume(path, rounds=rounds, watch=watch).interrupted
    clear_leftover(path)
    return not run(config, watch=watch).interrupted


def _in_turn(runs: dict[str, Config], watch: Watcher | None, tolerant: bool) -> dict[str, Done]:
    out: dict[str, Done] = {}
    for name, config in runs.items():
        out[name] = _timed(config, watch, tolerant)
        if not (out[name].finished or out[name].refused):
            break
    return out


def _timed(config: Config, watch: Watcher | None, tolerant: bool) -> Done:
    start = time.monotonic()
    try:
        return Done(carry_on(config, watch), time.monotonic() - start)
    except InputError as err:
        if not tolerant:
            raise
        return Done(False, time.monotonic() - start, str(err))


def _follow(futures: "dict[str, Future[Done]]", queue: "Queue[Progress]", stop: Event, watch: Watcher | None) -> None:
    """Waits for runs and tells of them; Ctrl-C lets every run finish its round and begins no other."""
    try:
        while not all(f.done() for f in futures.values()):
            _drain(queue, watch)
        _drain(queue, watch)
    except KeyboardInterrupt:
        stop.set()
        for future in futures.values():
            future.cancel()


def _single(config: Config) -> Config:
    """Runs side by side share the cores."""
    run, engine = replace(config.run, threads=config.run.threads or 1), config.engine
    return replace(config, run=run, engine=replace(engine, workers=engine.workers or 1))


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


def _worker(config: Config, tolerant: bool) -> Done:
    if _Parent.stop is not None and _Parent.stop.is_set():
        return Done(False, 0.0)
    return _timed(config, _tell, tolerant)


def _tell(progress: Progress) -> None:
    if _Parent.queue is not None:
        _Parent.queue.put(progress)
    if _Parent.stop is not None and _Parent.stop.is_set() and progress.round < progress.rounds and not progress.doing:
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
