"""Memory that several processes share: one of them writes trees of tensors into it, the others see them without a copy.

Nothing of it outlives the processes: on Linux it has no name in any file system.
"""

import math
import mmap
import os
import sys
import tempfile
import weakref
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tierfed.errors import InputError
from tierfed.tree import Tree, nbytes, tmap

_ALIGN = 64  # bytes: a cache line, and the widest vector register
_LEAST = 1 << 20
_SERIAL = count()


class Place(NamedTuple):
    """Where a tensor lies in shared memory; what is sent in its place."""

    path: str
    serial: int  # a path may be taken again by later memory
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Arena:
    """Shared memory that one process writes. It grows with what is put into it between two calls of `clear`."""

    def __init__(self) -> None:
        self._segments: list[_Segment] = []
        self._used = 0

    def put(self, tree: Tree) -> Any:
        """Copies a tree into the memory; the same tree with a `Place` for every tensor.

        :raises InputError: there is not so much memory
        """
        self._reserve(sum(_aligned(t) for t in _tensors(tree)))
        return tmap(self._place, tree)

    def share(self, tensor: Tensor) -> tuple[Place, Tensor]:
        """The same for one tensor, and the copy itself, to go on with in the place of the original."""
        place: Place = self.put({"": tensor})[""]
        return place, _view(self._segments[-1].memory, place)

    def clear(self) -> None:
        """Forgets what was put; its memory is used again."""
        if len(self._segments) > 1:
            size = sum(s.size for s in self._segments)
            self._segments = [_Segment(size)]
        self._used = 0

    def _reserve(self, size: int) -> None:
        if not self._segments or self._used + size > self._segments[-1].size:
            last = self._segments[-1].size if self._segments else _LEAST // 2
            self._segments.append(_Segment(max(size, 2 * last)))
            self._used = 0

    def _place(self, t: Tensor) -> Place:
        segment = self._segments[-1]
        place = Place(segment.path, segment.serial, self._used, tuple(t.shape), t.dtype)
        _view(segment.memory, place).copy_(t)
        self._used += _aligned(t)
        return place


class Windows:
    """What a process sees of the arenas of others."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], mmap.mmap] = {}

    def get(self, tree: Any) -> Tree:
        """The tensors at the places of a tree, as views; valid until the writer clears its arena."""
        found: Tree = tmap(self._look, tree)
        return found

    def keep(self, trees: Iterable[Any]) -> None:
        """Closes whatever the places of some trees are not in."""
        named = {(p.path, p.serial) for tree in trees for p in _tensors(tree)}
        self._open = {name: memory for name, memory in self._open.items() if name in named}

    def _look(self, place: Place) -> Tensor:
        name = place.path, place.serial
        if name not in self._open:
            with open(place.path, "r+b") as file:
                self._open[name] = mmap.mmap(file.fileno(), 0)
        return _view(self._open[name], place)


class _Segment:
    """One piece of shared memory. `path` opens it from another process of this user, as long as this one has it."""

    def __init__(self, size: int) -> None:
        self.size, self.serial = size, next(_SERIAL)
        try:
            if size > _available():  # to ask for it would not fail, but have the system end processes
                raise OSError(f"{_available() / 2**20:.0f} MiB are free")
            if hasattr(os, "memfd_create"):
                fd, name = os.memfd_create("tierfed"), ""
                self.path = f"/proc/{os.getpid()}/fd/{fd}"
            else:
                fd, name = tempfile.mkstemp(prefix="tierfed-")
                self.path = name
            weakref.finalize(self, _release, fd, name)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(fd, 0, size)  # an error now, in the place of a bus error later
            else:
                os.truncate(fd, size)
            self.memory = mmap.mmap(fd, size)
        except OSError as err:
            raise InputError(
                f"{size / 2**20:.0f} MiB of shared memory are not to be had ({err}); take fewer devices per round "
                "(topology.participation), or one process (engine.workers = 1)"
            ) from None


def _available() -> int:
    """Bytes of memory that can be had, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return sys.maxsize
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), sys.maxsize)


def _release(fd: int, name: str) -> None:
    os.close(fd)
    if name:
        Path(name).unlink(missing_ok=True)


def _view(memory: mmap.mmap, place: Place) -> Tensor:
    if not all(place.shape):
        return torch.empty(place.shape, dtype=place.dtype)
    size = math.prod(place.shape)
    return torch.frombuffer(memory, dtype=place.dtype, count=size, offset=place.offset).view(place.shape)


def _aligned(t: Tensor) -> int:
    return -(-nbytes(t) // _ALIGN) * _ALIGN


def _tensors(tree: Any) -> list[Any]:
    out: list[Any] = []
    tmap(out.append, tree)
    return out
