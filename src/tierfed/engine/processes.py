"""A crew of worker processes on this machine, with one thread each.

A worker is begun with what visits are computed with, and then told what to compute; models, private states and the
data lie in shared memory, only places and numbers go through the pipes. Workers keep nothing between two calls, so one
that is lost is an error of this call alone: what was committed before stays.
"""

import os
import pickle  # on private pipes between a process and its own children
import struct
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import IO, Any

import cloudpickle
import torch

from tierfed.computing import keep_memory
from tierfed.engine.arena import Arena, Windows
from tierfed.engine.visits import Job, States, Visited, Workplace
from tierfed.errors import InputError
from tierfed.tree import Tree, tmap

_LENGTH = struct.Struct("<Q")
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # PyTorch's words on CPU and GPU
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
# blocks of some megabytes go back to the heap and not to the system: each return costs page faults at the next use
HEAP = {"MALLOC_MMAP_THRESHOLD_": 1 << 25, "MALLOC_TRIM_THRESHOLD_": 1 << 29, "MALLOC_TOP_PAD_": 1 << 26}


class Processes:
    """Workers that are begun with the first visit and ended by `close`, or with this process.

    :param place: what visits are computed with
    :param workers: how many processes
    """

    def __init__(self, place: Workplace, workers: int) -> None:
        self.workers = workers
        self._place = place
        self._down, self._data, self._windows = Arena(), Arena(), Windows()
        self.begun: list[subprocess.Popen[bytes]] = []
        self._end = weakref.finalize(self, _stop, self.begun)

    def visit(self, jobs: Sequence[Job], messages: Tree, states: States) -> list[Visited]:
        """What every job came to, in their order; valid until the next call.

        :raises InputError: a worker was lost, or has no memory left; whatever a visit raises
        """
        try:
            if not self.begun:
                self._begin()
            self._down.clear()
            there = self._down.put(messages)
            asked = [(job, self._down.put(states(job.ids))) for job in jobs]
            shares = self._shares(jobs)
            for worker, share in zip(self.begun, shares, strict=True):
                if share:
                    _send(_pipe(worker.stdin), (there, [asked[i] for i in share]))
            places: dict[int, tuple[Any, Any]] = dict.fromkeys(range(len(jobs)), ({}, {}))
            for worker, share in zip(self.begun, shares, strict=True):
                for i, visited in zip(share, self._hear(worker) if share else [], strict=True):
                    places[i] = visited
            self._windows.keep(part for visited in places.values() for part in visited)
            out = [(self._windows.get(up), self._windows.get(own)) for up, own in places.values()]
        except BaseException:
            self.close()
            raise
        return out

    def close(self) -> None:
        """Ends the workers; the next visit begins others."""
        _stop(self.begun)
        self.begun.clear()

    def _begin(self) -> None:
        """What is only ever read lies in shared memory once."""
        plan = self._place.plan
        (x, plan_x), (y, plan_y) = self._data.share(plan.x), self._data.share(plan.y)
        self._place = replace(self._place, plan=replace(plan, x=plan_x, y=plan_y))
        bare = replace(self._place, plan=replace(plan, x=torch.empty(0), y=torch.empty(0)))
        hello = cloudpickle.dumps((bare, x, y, torch.get_default_dtype()))
        path = os.pathsep.join(p for p in sys.path if p)
        heap = {name: str(size) for name, size in HEAP.items()}
        environment = {**os.environ, **_ONE_THREAD, **heap, "PYTHONPATH": path}
        for _ in range(self.workers):
            self.begun.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tierfed.engine.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                    start_new_session=True,  # Ctrl-C reaches this process alone, which ends the workers
                )
            )
        for worker in self.begun:
            _send(_pipe(worker.stdin), hello)

    def _shares(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Which jobs each worker gets: the next one always goes to whoever has the least."""
        place = self._place
        load, shares = [0] * self.workers, [list[int]() for _ in range(self.workers)]
        for i, job in enumerate(jobs):
            least = load.index(min(load))
            shares[least].append(i)
            load[least] += int(place.plan.work(job.ids, place.algorithm).sum())
        return shares

    def _hear(self, worker: "subprocess.Popen[bytes]") -> list[tuple[Any, Any]]:
        try:
            kind, said = _receive(_pipe(worker.stdout))
        except (EOFError, OSError):
            code = worker.wait()
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            raise InputError(
                f"a worker process died ({how}); if the system killed it, memory was short: take fewer workers "
                "(engine.workers) or devices at once (engine.chunk), then `tierfed resume` goes on from the last "
                "committed round"
            ) from None
        return heard(kind, said)  # type: ignore[no-any-return]


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("the process was begun without pipes")
    return stream


def _send(stream: IO[bytes], message: Any) -> None:
    frame = message if isinstance(message, bytes) else pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    with suppress(BrokenPipeError):  # the reader is gone; whoever waits for its answer hears so
        stream.write(_LENGTH.pack(len(frame)))
        stream.write(frame)
        stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    """:raises EOFError: the other end is gone"""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    size = _LENGTH.unpack(head)[0]
    frame = stream.read(size)
    if len(frame) < size:
        raise EOFError
    return pickle.loads(frame)  # noqa: S301  from a process of our own


def _stop(workers: "list[subprocess.Popen[bytes]]") -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.wait()
        for stream in (worker.stdin, worker.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """What a worker process does until its parent is gone: visits, as it is told."""
    windows, mine = Windows(), Arena()
    torch.set_num_threads(1)
    keep_memory()
    try:
        place, x, y, dtype = _receive(source)
        torch.set_default_dtype(dtype)
        data = Windows().get({"x": x, "y": y})
        place = replace(place, plan=replace(place.plan, **data))
        while True:
            there, asked = _receive(source)
            mine.clear()
            windows.keep((there, *(own for _, own in asked)))
            _send(sink, _answer(place, windows, mine, there, asked))
    except EOFError:
        return


def _answer(place: Workplace, windows: Windows, mine: Arena, there: Any, asked: list[tuple[Job, Any]]) -> Any:
    def compute() -> Any:
        messages = windows.get(there)
        done = [place.visit(job, messages, windows.get(own)) for job, own in asked]
        return [tuple(mine.put(tmap(torch.detach, part)) for part in visited) for visited in done]

    return answer(compute)


def answer(compute: Callable[[], Any]) -> tuple[str, Any]:
    """What a worker says: ("done", whatever was computed), or why it was not: "refused", an input error, or "failed", a
    traceback.
    """
    try:
        return "done", compute()
    except InputError as err:
        return "refused", str(err)
    except Exception as err:  # whatever a user's model raises is shown where the run was begun
        if not isinstance(err, MemoryError) and not any(text in str(err) for text in _NO_MEMORY):
            return "failed", traceback.format_exc()
        return "refused", (
            "a worker process has no memory left; take fewer workers (engine.workers), fewer devices at once "
            "(engine.chunk) or a smaller model"
        )


def heard(kind: str, said: Any) -> Any:
    """What a worker has computed.

    :raises InputError: it refused; :raises RuntimeError: a visit failed
    """
    if kind == "refused":
        raise InputError(said)
    if kind == "failed":
        raise RuntimeError(f"a visit failed in a worker process:\n{said}")
    return said
