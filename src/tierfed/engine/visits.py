"""Visits of devices in chunks: what an engine hands to whoever computes them, here, in other processes, elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.func import vmap

from tierfed.algorithm import Algorithm, Data
from tierfed.plan import Plan
from tierfed.task import Task
from tierfed.tree import Tree, row, stack, tmap

Ids = npt.NDArray[np.int64]
Visited = tuple[Tree, Tree]  # replies and new private states of a chunk, stacked [c, ...]
States = Callable[[Ids], Tree]  # the private states of some devices, stacked [c, ...]


class Job(NamedTuple):
    """A chunk of devices of one architecture and one batch width, visited at the same time."""

    kind: int
    ids: Ids  # [c]
    owner: Ids  # [c] which of the messages each of them gets
    round: int
    tick: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Workplace:
    """What visits are computed with, wherever that is.

    :param tasks: one per architecture
    :param batched: a chunk is one `torch.func.vmap` of the algorithm's device; otherwise one device after the other
    :param most_steps: of a pass, for a trial; 0: all
    """

    algorithm: Algorithm
    tasks: Sequence[Task]
    plan: Plan
    batched: bool = True
    most_steps: int = 0

    def visit(self, job: Job, messages: Tree, states: Tree) -> Visited:
        """Replies and new private states of a chunk; nothing is kept.

        :param messages: of all parents [m, ...]
        :param states: the private states of the chunk [c, ...]
        """
        task, algorithm = self.tasks[job.kind], self.algorithm
        if not self.batched:
            done = [
                algorithm.device(task, row(messages, o), row(states, j), self._data(job, [i]).alone())
                for j, (o, i) in enumerate(zip(job.owner.tolist(), job.ids.tolist(), strict=True))
            ]
            return stack([up for up, _ in done]), stack([state for _, state in done])
        data = self._data(job, job.ids.tolist())
        device = vmap(
            lambda m, s, *d: algorithm.device(task, m, s, Data(data.x, data.y, *d)._replace(ragged=data.ragged))
        )
        return device(given(messages, job.owner), states, *data[2:-1])  # type: ignore[no-any-return]

    def _data(self, job: Job, ids: list[int]) -> Data:
        data = self.plan.data(ids, self.algorithm, job.round, job.tick)
        if not self.most_steps:
            return data
        some = slice(self.most_steps)
        return data._replace(rows=data.rows[..., some, :], live=data.live[..., some], seed=data.seed[..., some])


def given(messages: Tree, owner: Ids) -> Tree:
    """What each device of a chunk gets [c, ...]; a message that all of them get is not copied."""
    first = int(owner[0])
    if (owner == first).all():
        return tmap(lambda t: t[first].expand(len(owner), *t.shape[1:]), messages)  # type: ignore[no-any-return]
    return row(messages, torch.as_tensor(owner))  # type: ignore[no-any-return]


class Crew(Protocol):
    """Those who compute visits."""

    @property
    def workers(self) -> int:
        """How many chunks are computed at the same time."""

    def visit(self, jobs: Sequence[Job], messages: Tree, states: States) -> list[Visited]:
        """What every job came to, in their order; what is returned may be overwritten by the next call."""

    def close(self) -> None:
        """Ends whatever was begun for it."""


class Here:
    """The crew of one: this process."""

    workers = 1

    def __init__(self, place: Workplace) -> None:
        self.place = place

    def visit(self, jobs: Sequence[Job], messages: Tree, states: States) -> list[Visited]:
        return [self.place.visit(job, messages, states(job.ids)) for job in jobs]

    def close(self) -> None:
        """There is nothing to end."""
