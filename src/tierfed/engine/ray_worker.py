"""What runs in a Ray worker process: visits, as it is told; and the form in which trees go there and back."""

import sys
import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tierfed.computing import keep_memory
from tierfed.engine.processes import answer
from tierfed.engine.visits import Job, Workplace
from tierfed.tree import Tree, tmap

_READ_ONLY = "The given NumPy array is not writable"  # what others have sent is only read, as algorithms have it anyway

Arrays = Any  # a tree of numpy arrays, which the object store keeps as they are


class Hello(NamedTuple):
    """What a worker says of itself."""

    node: str  # Ray's id of the machine
    versions: str


class Worker:
    """The actor. What it was begun with is all that it keeps between two calls."""

    def begin(self, place: Workplace, x: Arrays, y: Arrays, dtype: torch.dtype, gpu: bool) -> tuple[str, Any]:
        """Takes what visits are computed with; ("done", Hello), or what went wrong."""
        return answer(lambda: self._begin(place, x, y, dtype, gpu))

    def visit(self, job: Job, messages: Arrays, states: Arrays) -> tuple[str, Any]:
        """("done", replies and new private states of a chunk), or what went wrong."""
        return answer(lambda: tuple(map(sent, self.place.visit(job, self._got(messages), self._got(states)))))

    def _begin(self, place: Workplace, x: Arrays, y: Arrays, dtype: torch.dtype, gpu: bool) -> Hello:
        warnings.filterwarnings("ignore", message=_READ_ONLY)
        torch.set_num_threads(1)
        keep_memory()
        torch.set_default_dtype(dtype)
        self.device = torch.device("cuda" if gpu else "cpu")
        for task in place.tasks:
            task.to(self.device)
        self.place = replace(place, plan=replace(place.plan, x=self._tensor(x), y=self._tensor(y)))
        node = sys.modules["ray"].get_runtime_context().get_node_id()
        return Hello(node, versions())

    def _got(self, tree: Arrays) -> Tree:
        found: Tree = tmap(self._tensor, tree)
        return found

    def _tensor(self, array: Arrays) -> Tensor:
        return torch.from_numpy(array).to(self.device)


def versions() -> str:
    """What must be the same on all machines for the same bits."""
    return f"tierfed {sys.modules['tierfed'].__version__}, torch {torch.__version__}"


def sent(tree: Tree) -> Arrays:
    """A tree as it goes into the object store."""
    return tmap(lambda t: t.detach().cpu().contiguous().numpy(), tree)


def received(tree: Arrays, copy: bool) -> Tree:
    """A tree out of the object store, to be read alone; as a copy it needs no place there any more."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_READ_ONLY)
        found: Tree = tmap(lambda a: torch.from_numpy(np.array(a) if copy else a), tree)
    return found
