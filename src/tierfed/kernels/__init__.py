"""Kernels: how `Task.train` is carried out. One meaning, `data.fold(task.step)`, and implementations that are faster.

An algorithm does not notice which one it gets: it calls `task.train`, for one device, and the task that an engine hands
it, `equipped(task, name)`, does the rest. Results differ by rounding alone.
"""

from tierfed.kernels.equip import BATCHED, KERNELS, equipped, refusal

__all__ = ["BATCHED", "KERNELS", "equipped", "refusal"]
