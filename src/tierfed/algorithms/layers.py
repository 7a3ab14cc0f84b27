"""Which parameters a device trains when it adapts a model that it was given: transfer learning's choice of layers.

"all"; "head": the last `depth` layers; "bias": every bias; "adaptors": biases and batch-norm scales of the last `depth`
layers (the personal adaptors for upper layers of PerFit, Wu, He, Chen 2020); "match": names that fit `match`. A layer
is a module that owns parameters. Whatever is not chosen stays bit-identical, statistics of its batch norms included.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from tierfed.algorithm import Algorithm
from tierfed.errors import InputError
from tierfed.settings import Natural
from tierfed.task import Task


@dataclass(frozen=True, kw_only=True)
class Tuning(Algorithm):
    """An algorithm whose devices adapt some layers of a model."""

    tune: Literal["all", "head", "bias", "adaptors", "match"] = "all"
    """What is tuned: everything, the last `depth` layers, all biases, biases and batch-norm scales of the last `depth`
    layers, or what `match` names."""
    depth: Natural = 1
    """Layers of the head, and of the adaptors."""
    match: str = ""
    """Of tune = "match": a pattern for parameter names, for example "conv*" or "*.bias"."""

    def tuned(self, task: Task) -> list[str]:
        """The trainable keys that are tuned.

        :raises InputError: a depth that the model does not have, a pattern that nothing fits or nobody asked for
        """
        if self.match and self.tune != "match":
            raise InputError(
                f"algorithm.match = {self.match!r} with tune = {self.tune!r}: a pattern is for tune = 'match'; set "
                "that, or leave match out"
            )
        match self.tune:
            case "all":
                return task.trainable
            case "bias":
                return [k for k in task.trainable if k.endswith("bias")]
            case "match":
                return _matching(self.match, task)
        head = set(task.head_keys(self.depth))
        small = {k for k in task.trainable if k.endswith("bias")} | set(task.norm_keys("y"))
        return [k for k in task.trainable if k in head and (self.tune == "head" or k in small)]


def _matching(pattern: str, task: Task) -> list[str]:
    found = [k for k in task.trainable if fnmatchcase(k, pattern)]
    if not found:
        raise InputError(
            f"algorithm.match = {pattern!r} fits no parameter; the model has {', '.join(task.trainable)}: give a "
            "pattern for some of them, such as 'conv*'"
        )
    return found
