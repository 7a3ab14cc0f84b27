"""Samples of asked labels from a few seeds: Gaussian noise around one, or a mixture of two."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tierfed.data.dataset import Ints

_CHUNK = 4096


def silverman(n: int, d: int) -> float:
    """Silverman's bandwidth for n samples in d dimensions, in standard deviations: (4 / ((d + 2) n))^(1 / (d + 4))."""
    return float((4 / ((d + 2) * n)) ** (1 / (d + 4)))


def kde(x: Tensor, y: Ints, labels: Ints, bandwidth: float | None, seed: int, out: Tensor) -> None:
    """Fills out [n, *shape] with draws from a kernel density of each label: a seed of it and Gaussian noise.

    :param x: seeds [S, *shape]
    :param y: their labels [S]
    :param labels: wanted [n]; each has a seed
    :param bandwidth: of the noise, in standard deviations of each number among the seeds of the label; None: Silverman
    """
    rng = np.random.default_rng(seed)
    flat, into = _flat(x), out.view(len(out), -1)
    for label in np.unique(labels):
        own = flat[y == label]
        width = (silverman(*own.shape) if bandwidth is None else bandwidth) * own.std(0)
        for at in _chunks(labels, label):
            noise = rng.standard_normal((len(at), flat.shape[1]))
            _put(into, at, own[rng.integers(0, len(own), len(at))] + width * noise)


def mixup(x: Tensor, y: Ints, labels: Ints, seed: int, out: Tensor) -> None:
    """Fills out [n, *shape] with s u + (1 - s) v: two seeds u, v of the label, s uniform in [0, 1). See `kde`."""
    rng = np.random.default_rng(seed)
    flat, into = _flat(x), out.view(len(out), -1)
    for label in np.unique(labels):
        own = flat[y == label]
        for at in _chunks(labels, label):
            u = rng.integers(0, len(own), len(at))
            v = (u + rng.integers(1, max(2, len(own)), len(at))) % len(own)  # another one, where there is another
            s = rng.random((len(at), 1))
            _put(into, at, s * own[u] + (1 - s) * own[v])


def _flat(x: Tensor) -> npt.NDArray[np.float64]:
    return x.detach().cpu().flatten(1).double().numpy()


def _chunks(labels: Ints, label: int) -> list[Ints]:
    at = np.flatnonzero(labels == label)
    return [at[i : i + _CHUNK] for i in range(0, len(at), _CHUNK)]


def _put(into: Tensor, at: Ints, values: npt.NDArray[np.float64]) -> None:
    into[torch.from_numpy(at)] = torch.from_numpy(values).to(into.dtype)
