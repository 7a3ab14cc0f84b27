"""fedjax: its federated averaging on the jit backend. Batch norm by the statistics of the batch, without the running
means that only evaluation needs: fedjax models have no buffers.
"""

from collections.abc import Callable
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np

from sides.job import Job, pool, train_rows
from sides.turns import Turns

Params = dict[str, Any]
Forward = Callable[[Params, Any], Any]


def serve(job: Job, turns: Turns) -> None:
    def loss(params: Params, batch: Params, _: Any) -> Any:
        log = jax.nn.log_softmax(forward(params, batch["x"]))
        return -jnp.take_along_axis(log, batch["y"][:, None], 1)[:, 0]

    forward = FORWARDS[job.work]
    x, y = pool(job)
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))  # the layout that XLA's convolutions are made for
    data = [fedjax.ClientDataset({"x": x[rows], "y": y[rows].astype(np.int32)}) for rows in train_rows(job)]
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.grad(loss),
        fedjax.optimizers.sgd(job.lr),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=job.batch, num_epochs=1),
    )
    state = algorithm.init(first(job))
    rng, keys = np.random.default_rng([job.seed, 2]), jax.random.split(jax.random.PRNGKey(job.seed), job.cohort)
    while turns.wait():
        ids = rng.choice(job.devices, job.cohort, replace=False)
        clients = [(bytes([i % 256, i // 256]), data[i], key) for i, key in zip(ids.tolist(), keys, strict=True)]
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)
        turns.done()


def first(job: Job) -> Params:
    """Initial parameters: He's normal weights, zero biases."""
    rng, out = np.random.default_rng([job.seed, 3]), {}
    for name, shape in LAYERS[job.work].items():
        out[f"{name}.w"] = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        out[f"{name}.b"] = np.zeros(shape[-1])
    for name in NORMS[job.work]:
        width = LAYERS[job.work][name][-1]
        out |= {f"{name}.scale": np.ones(width), f"{name}.shift": np.zeros(width)}
    return {k: jnp.asarray(v, jnp.float32) for k, v in out.items()}


LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "M1": {"1": (784, 200), "2": (200, 200), "3": (200, 10)},
    "M2": {"1": (3, 3, 1, 32), "2": (3, 3, 32, 64), "3": (1600, 512), "4": (512, 10)},
    "M3": {"1": (784, 10)},
    "M4": {"1": (3, 3, 3, 32), "2": (3, 3, 32, 16), "3": (3, 3, 16, 8), "4": (200, 128), "5": (128, 10)},
}
NORMS: dict[str, tuple[str, ...]] = {"M1": ("1",), "M2": ("1", "2"), "M3": (), "M4": ()}


def _dense(p: Params, name: str, x: Any) -> Any:
    return x @ p[f"{name}.w"] + p[f"{name}.b"]


def _conv(p: Params, name: str, x: Any, padding: str) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, p[f"{name}.w"], (1, 1), padding, dimension_numbers=numbers) + p[f"{name}.b"]


def _norm(p: Params, name: str, x: Any) -> Any:
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    return (x - mean) / jnp.sqrt(var + 1e-5) * p[f"{name}.scale"] + p[f"{name}.shift"]


def _relu(x: Any) -> Any:
    return jax.nn.relu(x)


def _pooled(x: Any) -> Any:
    return jax.lax.reduce_window(x, -float("inf"), jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _perceptron(p: Params, x: Any) -> Any:
    h = _relu(_norm(p, "1", _dense(p, "1", x)))
    return _dense(p, "3", _relu(_dense(p, "2", h)))


def _convolutions(p: Params, x: Any) -> Any:
    for name in ("1", "2"):
        x = _pooled(_relu(_norm(p, name, _conv(p, name, x, "VALID"))))
    return _dense(p, "4", _relu(_dense(p, "3", x.reshape(len(x), -1))))


def _logistic(p: Params, x: Any) -> Any:
    return _dense(p, "1", x)


def _perfit(p: Params, x: Any) -> Any:
    for name in ("1", "2"):
        x = _pooled(_relu(_conv(p, name, x, "SAME")))
    x = _relu(_conv(p, "3", x, "SAME"))
    return _dense(p, "5", _relu(_dense(p, "4", x.reshape(len(x), -1))))


FORWARDS: dict[str, Forward] = {"M1": _perceptron, "M2": _convolutions, "M3": _logistic, "M4": _perfit}
