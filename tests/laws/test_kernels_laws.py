"""Every algorithm that trains by `task.train`, with every kernel for a CPU: the serial engine's results to rounding,
and the same bytes."""

import inspect
import sys

import pytest

from laws.cases import CASES, LINEAR, VARIANTS, fits, task_of
from tierfed.algorithm import Algorithm
from tierfed.kernels import equipped
from tierfed.testing.laws import agree
from tierfed.testing.trees import MODES, small_plan, walked


def _trains(algorithm: Algorithm) -> bool:
    """Whether the file of a method, or of one that it inherits from, calls `task.train`."""
    files = [sys.modules[kind.__module__] for kind in type(algorithm).__mro__[:-1]]
    return any("task.train(" in inspect.getsource(file) for file in files)


TRAINING = [
    name
    for name in CASES
    if VARIANTS.get(name, (name,))[0] not in LINEAR and fits(name, "4 tiers") and _trains(CASES[name])
]
KERNELS = {"fused": "vectorized", "native": "vectorized", "loop": "serial"}  # kernel: the engine that it is for


def test_there_are_cases() -> None:
    """Twenty rows of the registry and their variants; the others have loops of their own."""
    assert len(TRAINING) > 20


@pytest.mark.parametrize("name", TRAINING)
def test_kernels_agree(name: str) -> None:
    task, plan = task_of(name), small_plan()
    wanted = walked("serial", CASES[name], task, plan, "4 tiers", MODES["lossy"], 2)
    for kernel, engine in KERNELS.items():
        agree(walked(engine, CASES[name], equipped(task, kernel), plan, "4 tiers", MODES["lossy"], 2), wanted)
