"""Settings of PyTorch that hold for a while: its threads, sums in one order on a GPU, memory that is used again."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt, malloc.h


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """PyTorch computes on this many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_memory() -> None:
    """From now on this process uses freed memory again instead of giving it back, where the C library is glibc and the
    user has not set it. Every round frees and takes the same megabytes, and pages that come anew from the system cost
    more than many a sum: a round of SCAFFOLD with ten perceptrons took 77 ms before, 54 ms after.
    """
    allot = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if allot is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        allot(_MMAP_THRESHOLD, 32 << 20)  # the most that there can be
        allot(_TRIM_THRESHOLD, 512 << 20)


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On a GPU the same work has the same bits inside, as it always has on a processor; what PyTorch has no such form
    of still runs.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled
