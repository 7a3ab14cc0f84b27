"""A crew of Ray actors: visits on any number of machines, each actor a process with one thread.

The data are put into Ray's object store once, whose copy on a machine all actors there read; messages, private states
and replies pass through it as arrays. What was committed is here alone. When an actor or its machine is lost, what it
had to compute is computed by others, in the same call, and to the same bits: a visit is a pure function of its job.
"""

import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tierfed.engine.processes import HEAP, heard
from tierfed.engine.ray_cluster import Cluster, line
from tierfed.engine.ray_worker import Worker, received, sent, versions
from tierfed.engine.visits import Job, States, Visited, Workplace
from tierfed.errors import InputError
from tierfed.tree import Tree, leaves, nbytes, row

_TRIES = 3  # of a job whose worker was lost
_AHEAD = 2  # jobs that an actor has at a time: it need not wait for the next one
_HELD_BYTES = 1 << 28
_BEGIN_SECONDS, _TELL_SECONDS = 60.0, 2.0
_RESUME = "`tierfed resume` goes on from the last committed round"


@dataclass(eq=False)
class _Actor:
    """A worker that has begun."""

    handle: Any
    node: str
    queue: deque[int] = field(default_factory=deque)  # jobs that it will be given
    running: int = 0


class RayCrew:
    """Actors that are begun with the first visit and ended by `close`, or with this process.

    :param place: what visits are computed with
    :param workers: how many actors; 0: as many as the cluster has processors (or GPUs, where actors have some)
    :param address: of the cluster, as engine.address
    :param gpus: of each actor
    :param tell: is told what goes on until the actors have begun
    """

    def __init__(
        self,
        place: Workplace,
        *,
        workers: int = 0,
        address: str = "",
        gpus: float = 0.0,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.place, self._wanted, self._address, self._gpus = place, workers, address, gpus
        self._tell = tell or (lambda text: None)
        self.actors: list[_Actor] = []
        self.coming: dict[Any, Any] = {}  # what an actor will say when it has begun -> the actor
        self.lost: set[str] = set()  # machines on which an actor was lost
        self._hello: tuple[Any, ...] = ()  # what actors begin with
        self._missing = 0  # actors that were lost and have no successor
        self._begun: list[Cluster] = []
        self._end = weakref.finalize(self, _close, self._begun)

    @property
    def workers(self) -> int:
        if not self._wanted:
            self._begin()
        return self._wanted

    def visit(self, jobs: Sequence[Job], messages: Tree, states: States) -> list[Visited]:
        """What every job came to, in their order.

        :raises InputError: Ray cannot be reached or has no room; all workers were lost, or those of one job again and
            again; a worker has no memory left; whatever a visit raises
        """
        try:
            self._begin()
            self._recover()
            return _Call(self, jobs, messages, states).done()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the actors, and the cluster if it was begun here; the next visit begins others."""
        for handle in [*(actor.handle for actor in self.actors), *self.coming.values()]:
            with suppress(Exception):  # the connection may be what was lost
                self.ray.kill(handle)
        self.actors.clear()
        self.coming.clear()
        self.lost.clear()
        self._missing, self._hello = 0, ()
        _close(self._begun)

    @property
    def ray(self) -> Any:
        return self._begun[0].ray

    def drop(self, actor: _Actor) -> None:
        """Does without an actor that was lost."""
        self.actors.remove(actor)
        self.lost.add(actor.node)
        self._missing += 1
        self.ray.kill(actor.handle)

    def join(self, ref: Any) -> str:
        """Takes an actor that was to come, or says why it cannot be used."""
        handle = self.coming.pop(ref)
        try:
            kind, hello = self.ray.get(ref)
        except self.ray.exceptions.RayError as err:
            return str(err).strip().splitlines()[-1][:400]  # of a traceback the last line says what is missing
        if kind != "done":
            return str(hello).splitlines()[-1]
        if hello.versions != versions():
            return f"it has {hello.versions}, and this process {versions()}"
        self.actors.append(_Actor(handle, hello.node))
        return ""

    def usable(self) -> list[_Actor]:
        """Those who get what a lost actor had to do: on other machines than those that it happened on, if there are."""
        return [a for a in self.actors if a.node not in self.lost] or self.actors

    def _begin(self) -> None:
        if self._begun:
            return
        plan, start = self.place.plan, time.monotonic()
        self._tell("starting Ray" if not self._address else f"connecting to Ray at {self._address}")
        self._begun.append(Cluster(self._address, self._wanted, nbytes({"x": plan.x, "y": plan.y})))
        self._wanted = self._counted()
        put, bare = self.ray.put, replace(plan, x=torch.empty(0), y=torch.empty(0))
        try:
            data = put(plan.x.numpy()), put(plan.y.numpy())
            self._hello = put(replace(self.place, plan=bare)), *data, torch.get_default_dtype(), self._gpus > 0
        except self.ray.exceptions.RayError as err:
            raise _no_room(err) from None
        self._call_in(self._wanted)
        while self.coming and time.monotonic() - start < _BEGIN_SECONDS:
            done, _ = self.ray.wait(list(self.coming), num_returns=1, timeout=_TELL_SECONDS)
            for why in filter(None, map(self.join, done)):
                raise InputError(
                    f"a Ray worker cannot begin: {why}; every machine needs the same environment: the same versions "
                    "of packages, tierfed among them, and the code of your own that the run uses"
                )
            self._tell(f"starting Ray: {len(self.actors)} of {self._wanted} workers")
        if not self.actors:
            raise InputError(
                f"no Ray worker could begin within {_BEGIN_SECONDS:.0f} seconds: the processors of the cluster are in "
                "use by others (`ray status` shows it); try again later, or take another cluster (engine.address)"
            )

    def _counted(self) -> int:
        """How many actors there will be.

        :raises InputError: there is no room for so many, or for any
        """
        have = self._begun[0].resources()
        cpus, gpus = int(have.get("CPU", 0)), have.get("GPU", 0.0)
        most = cpus if not self._gpus else min(cpus, int(gpus / self._gpus + 1e-9))
        if self._wanted > most or not most:
            each = "one processor" + (f" and {self._gpus:g} GPUs (engine.gpus)" if self._gpus else "")
            raise InputError(
                f"engine.workers = {self._wanted}, each with {each}, but the Ray cluster has {cpus} processors and "
                f"{gpus:g} GPUs: room for {most}; take at most so many, or add machines (`ray start --address`)"
            )
        return self._wanted or most

    def _call_in(self, number: int) -> None:
        """Begins actors; where is up to Ray."""
        options = {"num_cpus": 1, "num_gpus": self._gpus, "max_restarts": 0, "max_task_retries": 0}
        heap = {name: str(size) for name, size in HEAP.items()}
        actor = self.ray.remote(Worker).options(
            **options, scheduling_strategy="SPREAD", runtime_env={"env_vars": {**heap, "OMP_NUM_THREADS": "1"}}
        )
        for _ in range(number):
            handle = actor.remote()
            self.coming[handle.begin.remote(*self._hello)] = handle

    def _recover(self) -> None:
        """Before a call: machines that are there after all are used again, and lost actors get successors."""
        if self.lost:
            self.lost -= self._begun[0].nodes()
        if self._missing:
            self._call_in(self._missing)
            self._missing = 0


class _Call:
    """The jobs of one call on their way."""

    def __init__(self, crew: RayCrew, jobs: Sequence[Job], messages: Tree, states: States) -> None:
        self.crew, self.jobs, self.messages, self.states = crew, jobs, messages, states
        self.ray, self.place = crew.ray, crew.place
        self.held = 0  # bytes of the object store, until what was computed is not needed any more
        self.full = (crew.ray.exceptions.ObjectStoreFullError, crew.ray.exceptions.OutOfDiskError)
        self.why = ""  # the last one was lost
        self.put: dict[tuple[int, ...], Any] = {}  # parents -> their messages in the object store
        self.running: dict[Any, tuple[_Actor, int]] = {}
        self.tries = Counter[int]()
        self.waiting: list[int] = []  # for an actor to come, where there is none

    def done(self) -> list[Visited]:
        """:raises InputError: as `RayCrew.visit`"""
        out: dict[int, Visited] = {}
        self._deal(range(len(self.jobs)))
        while len(out) < len(self.jobs):
            self._hand_out()
            ref = self._next_result()
            if ref in self.crew.coming:
                self.crew.join(ref)
                some, self.waiting = self.waiting, []
                self._deal(some)
                continue
            actor, i = self.running.pop(ref)
            actor.running -= 1
            try:
                up, own = heard(*self.ray.get(ref))
            except self.full as err:
                raise _no_room(err) from None
            except self.ray.exceptions.RayTaskError as err:
                raise RuntimeError(f"a visit failed in a Ray worker:\n{err}") from None
            except self.ray.exceptions.RayError as err:
                self._lose(actor, i, line(err).rpartition("The actor is dead because ")[2][:200])
            else:
                out[i] = self._kept(up), self._kept(own)
        return [out[i] for i in range(len(self.jobs))]

    def _kept(self, tree: Any) -> Tree:
        """What was computed, where it lies in the object store, or as a copy when much of it is there."""
        self.held += sum(a.nbytes for a in leaves(tree))
        return received(tree, copy=self.held > _HELD_BYTES)

    def _next_result(self) -> Any:
        """One of what is on its way, when it is there.

        :raises InputError: nothing is left that could come
        """
        timeout = None if self.running else _BEGIN_SECONDS
        awaited = [*self.running, *self.crew.coming]
        done, _ = self.ray.wait(awaited, num_returns=1, timeout=timeout) if awaited else ([], [])
        if not done:
            raise InputError(
                f"all Ray workers were lost ({self.why}); if memory was short, take fewer of them (engine.workers) or "
                f"devices at once (engine.chunk), then {_RESUME}"
            )
        return done[0]

    def _deal(self, some: Iterable[int]) -> None:
        """Jobs to the queues of actors: those of the same parents side by side, to every actor a share of the work."""
        order = sorted(some, key=self._parents)
        place, crew = self.place, self.crew.usable()
        if not crew:
            self.waiting += order
            return
        work = np.array([place.plan.work(self.jobs[i].ids, place.algorithm).sum() for i in order], np.float64)
        middle = np.cumsum(work) - work / 2
        for i, at in zip(order, (middle / max(work.sum(), 1.0) * len(crew)).astype(np.int64).tolist(), strict=True):
            crew[at].queue.append(i)

    def _hand_out(self) -> None:
        """Every actor has something to do, be it from the queue of another one."""
        for _ in range(_AHEAD):
            for actor in self.crew.usable():
                if actor.running < _AHEAD and (i := self._next(actor)) is not None:
                    self._submit(actor, i)

    def _next(self, actor: _Actor) -> int | None:
        if actor.queue:
            return actor.queue.popleft()
        longest = max(self.crew.actors, key=lambda a: len(a.queue))
        return longest.queue.pop() if longest.queue and not actor.running else None

    def _submit(self, actor: _Actor, i: int) -> None:
        job, parents = self.jobs[i], self._parents(i)
        try:
            if parents not in self.put:
                self.put[parents] = self.ray.put(sent(row(self.messages, torch.tensor(parents))))
            own = sent(self.states(job.ids))
            told = job._replace(owner=np.searchsorted(parents, job.owner))
            ref = actor.handle.visit.remote(told, self.put[parents], own)
        except self.full as err:
            raise _no_room(err) from None
        self.running[ref] = actor, i
        actor.running += 1

    def _parents(self, i: int) -> tuple[int, ...]:
        return tuple(np.unique(self.jobs[i].owner).tolist())

    def _lose(self, actor: _Actor, i: int, why: str) -> None:
        """What an actor that was lost had to do goes to others.

        :raises InputError: the job has cost too many of them
        """
        self.why = why
        self.crew.drop(actor)
        mine = [ref for ref, (whose, _) in self.running.items() if whose is actor]
        had = [i, *(self.running.pop(ref)[1] for ref in mine)]
        self.tries.update(had)
        if self.tries[i] >= _TRIES:
            raise InputError(
                f"a chunk of devices ({len(self.jobs[i].ids)}) has lost its Ray worker {_TRIES} times ({why}); if "
                "memory was short, take fewer workers (engine.workers) or devices at once (engine.chunk), then "
                f"{_RESUME}"
            )
        # the same machine may have lost others, of which nobody has heard yet
        for other in [actor, *(a for a in self.crew.actors if a not in self.crew.usable())]:
            had += other.queue
            other.queue.clear()
        self._deal(had)


def _no_room(err: Exception) -> InputError:
    return InputError(
        f"Ray's object store is full ({line(err)}); take fewer devices at once (engine.chunk) or fewer workers, or "
        "begin the cluster with more (`ray start --object-store-memory`)"
    )


def _close(begun: list[Cluster]) -> None:
    for cluster in begun:
        cluster.close()
    begun.clear()
