"""A first model that the cloud has trained on samples of its own (Zhao et al. 2018)."""

import time

import numpy as np
from torch import Tensor

from tierfed.algorithm import Algorithm
from tierfed.augment.gan import EVERY_SECONDS, Tell
from tierfed.data.dataset import Ints
from tierfed.plan import Plan
from tierfed.rng import Purpose, bits
from tierfed.task import Task
from tierfed.tree import Params

WARM = 206  # purpose of the batches


def warm(
    task: Task,
    x: Tensor,
    y: Tensor,
    rows: Ints,
    *,
    epochs: int,
    lr: float,
    batch: int | None,
    seed: int,
    tell: Tell | None = None,
) -> Params:
    """The initial model after `epochs` passes of plain SGD over these rows of the pool.

    :param batch: samples per step; None: all
    :param tell: is told every two seconds how far it is
    """
    params = task.init()
    own = int(bits(seed, Purpose.SAMPLE, WARM)[0] >> np.uint64(2))
    empty = np.zeros(0, np.int64)
    plan = Plan(x=x, y=y, train=[rows], held=[empty], batch=batch, seed=own, dtype=next(iter(params.values())).dtype)
    data = plan.one(0, Algorithm(epochs=epochs), 0, 0)
    said = time.monotonic()
    for epoch in range(epochs):
        params = task.train(params, data.passes(epoch, epoch + 1), lr)
        if tell is not None and time.monotonic() - said > EVERY_SECONDS:
            tell(f"warm-up of the first model, pass {epoch + 1} of {epochs}")
            said = time.monotonic()
    return params
