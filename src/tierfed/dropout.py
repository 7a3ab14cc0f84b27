"""Dropout whose masks are a pure function of a seed, so that every engine, worker and machine draws the same ones."""

import torch
from torch import Tensor, nn

_WORD = 0xFFFFFFFF


def _hash(x: Tensor) -> Tensor:
    """A bijective mix of 32-bit words held in int64 (MurmurHash3's finalizer)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _WORD
    return x ^ (x >> 16)


class CounterDropout(nn.Module):
    """nn.Dropout (`channels=False`) or nn.Dropout1d/2d/3d (whole channels) with masks from the buffer `seed`.

    The task passes a new seed with every minibatch; `number` tells the dropout layers of one model apart.
    """

    seed: Tensor

    def __init__(self, p: float, number: int, channels: bool = False) -> None:
        super().__init__()
        self.p, self.number, self.channels = p, number, channels
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        shape = x.shape[:2] + (1,) * (x.dim() - 2) if self.channels else x.shape
        place = torch.arange(shape.numel(), device=x.device).view(shape)
        word = _hash(place ^ _hash((self.seed ^ _hash(self.seed >> 32) ^ _hash(torch.tensor(self.number + 1))) & _WORD))
        keep = (word >= int(self.p * 2.0**32)).to(x.dtype)
        return x * keep / (1.0 - self.p) if self.p < 1.0 else x * 0.0


_WHOLE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def replace_dropout(module: nn.Module) -> tuple[str, ...]:
    """Puts a CounterDropout in the place of every dropout layer; the names of their seeds, for functional calls."""
    seeds: list[str] = []
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if isinstance(child, (nn.Dropout, *_WHOLE)):
            owner = module.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], CounterDropout(child.p, len(seeds), isinstance(child, _WHOLE)))
            seeds.append(f"{name}.seed")
    return tuple(seeds)
