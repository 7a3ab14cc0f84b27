"""Gaussian noise: a pure function of its key where a run is simulated, of the system's secure source where it is real.

Simulated noise must be the same on every engine and after every resume; nobody is protected by it. Noise that protects
somebody must be unknown to everybody else: it comes from ChaCha20 with a key that the system has drawn, used once.
Both are sampled in float64 and rounded to the precision of the model: the textbook mechanism up to rounding.
"""

import os
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Gt, Lt
from torch import Tensor

from tierfed.errors import InputError
from tierfed.rng import Purpose, generator
from tierfed.tree import tmap

Floats = npt.NDArray[np.float64]
Delta = Annotated[float, Gt(0), Lt(1)]
Source = Callable[[int], Floats]
"""[n] independent standard normal numbers; other ones with every call."""


def counted(seed: int, *key: int) -> Source:
    """The same numbers for the same key, whoever asks."""
    return generator(seed, Purpose.NOISE, *key).standard_normal


def secure() -> Source:
    """Numbers that nobody can foresee.

    :raises InputError: `cryptography` is not installed
    """
    words = keystream(os.urandom(32))

    def draw(n: int) -> Floats:
        return box_muller(words(2 * n))

    return draw


def keystream(key: bytes, nonce: bytes = bytes(16)) -> Callable[[int], npt.NDArray[np.uint64]]:
    """[n] words of ChaCha20 (RFC 8439) under a key of 32 bytes, one after the other.

    :raises InputError: `cryptography` is not installed
    """
    try:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms  # noqa: PLC0415  an extra
    except ModuleNotFoundError as err:
        if err.name != "cryptography":
            raise
        raise InputError(
            "secure noise and masks need cryptography, which is not installed; pip install 'tierfed[privacy]'"
        ) from None
    cipher = Cipher(algorithms.ChaCha20(key, nonce), None).encryptor()
    return lambda n: np.frombuffer(cipher.update(bytes(8 * n)), "<u8")


def box_muller(words: npt.NDArray[np.uint64]) -> Floats:
    """[n] standard normal numbers of [2 n] random words."""
    u = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    half = len(u) // 2
    return np.asarray(np.sqrt(-2.0 * np.log1p(-u[:half])) * np.cos(2.0 * np.pi * u[half:]))


def noised(tree: Any, deviation: float, source: Source) -> Any:
    """The tree plus independent normal noise of a standard deviation on every number of it."""

    def one(t: Tensor) -> Tensor:
        drawn = torch.from_numpy(source(t.numel())).view(t.shape).to(t.device)
        return (t.double() + deviation * drawn).to(t.dtype)

    return tmap(one, tree)


_MASK30, _MASK27, _MASK31, _MASK11 = ((1 << (64 - s)) - 1 for s in (30, 27, 31, 11))
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64 of 64-bit words held in int64, as `tierfed.rng.bits` of one more part of a key."""
    x = x + _GOLDEN
    x = (x ^ ((x >> 30) & _MASK30)) * _MIX1
    x = (x ^ ((x >> 27) & _MASK27)) * _MIX2
    return x ^ ((x >> 31) & _MASK31)


def normal_like(t: Tensor, seed: Tensor, number: int) -> Tensor:
    """Standard normal numbers shaped like t, a pure function of (seed, number): also below torch.func.vmap, where
    every device has a seed of its own.

    :param seed: [] int64
    """
    key = _mixed(_mixed(seed) ^ number)
    place = torch.arange(t.numel(), device=t.device)
    u, v = ((_mixed(_mixed(key ^ place) ^ part) >> 11) & _MASK11 for part in (0, 1))
    u, v = u.double() * 2.0**-53, v.double() * 2.0**-53
    drawn = torch.sqrt(-2.0 * torch.log1p(-u)) * torch.cos(2.0 * torch.pi * v)
    return drawn.view(t.shape).to(t.dtype)
