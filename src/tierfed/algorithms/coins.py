"""Coins that a whole tree shares: pure functions of the round, drawn by the cloud and told in its message."""

import torch
from torch import Tensor

from tierfed.algorithm import Data

_LOW = 0xFFFFFFFF


def _mixed(x: Tensor) -> Tensor:
    """A bijection on the lower 32 bits of an int64 (Wellons' lowbias32); these survive products that wrap."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def uniform(seed: int, round_: Tensor, which: int | Tensor) -> Tensor:
    """A number [] strictly between 0 and 1 in float64: the number `which` of a round; of several [n] several [n]."""
    x = _mixed((torch.full_like(round_, seed, dtype=torch.int64) + 0x9E3779B9) & _LOW)  # mixing leaves 0 as it is
    x = _mixed((x + round_.to(torch.int64)) & _LOW)
    x = _mixed((x + which) & _LOW)
    return (x.double() + 0.5) / 2.0**32


def draw(seed: int, round_: Tensor, n: int, of: int) -> Tensor:
    """n different ones of range(of) [n] in random order: the draw of a round."""
    order = uniform(seed, round_, torch.arange(of, device=round_.device))
    return torch.argsort(order, stable=True)[:n]


def failures(u: Tensor, p: float) -> Tensor:
    """How often a coin of probability 0 < p < 1 fails before it first succeeds, from a uniform number u: [] float64."""
    return torch.floor(torch.log(u) / torch.log1p(torch.full_like(u, -p)))


def first_steps(data: Data, count: Tensor) -> Data:
    """The first `count` [] real steps of a visit; the others are dead."""
    order = data.live.flatten().cumsum(0).view(data.live.shape)
    return data._replace(live=data.live & (order <= count), ragged=True)
