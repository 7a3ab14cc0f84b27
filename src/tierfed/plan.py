"""The batch plan: which rows of the pool a device sees in which step, as a pure function of (seed, device, round,
tick).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tierfed.algorithm import Algorithm, Data
from tierfed.data.dataset import lengths
from tierfed.rng import Purpose, bits, permutation

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The pool, who holds which rows, and the order of batches.

    Batches are always full: the last one of a pass is filled from the start of a fresh shuffle. A device with fewer
    samples than `batch` takes all of them as one batch, so batch = None is full-batch training on ragged devices.
    """

    x: Tensor  # [n, ...]
    y: Tensor  # [n, ...]
    train: Sequence[Ids]  # rows of each device
    held: Sequence[Ids]
    batch: int | None = 20
    seed: int = 0
    dtype: torch.dtype = torch.float32  # of the model

    @cached_property
    def samples(self) -> Ids:
        """Training samples per device [N]."""
        return lengths(self.train)

    @property
    def like(self) -> Tensor:
        """A number [] of the model's kind, to make others from."""
        return torch.zeros((), dtype=self.dtype, device=self.x.device)

    @property
    def widths(self) -> Ids:
        """Samples per batch of every device [N]."""
        return self.samples if self.batch is None else np.minimum(self.batch, self.samples)

    def width(self, device: int) -> int:
        """Samples per batch of a device."""
        n = int(self.samples[device])
        return n if self.batch is None else min(self.batch, n)

    def steps(self, device: int, algorithm: Algorithm) -> int:
        """Steps per pass of a device."""
        return algorithm.steps or -(-int(self.samples[device]) // self.width(device))

    def work(self, devices: Sequence[int] | Ids, algorithm: Algorithm) -> Ids:
        """Samples [H] that devices process in a visit, all passes and every gradient counted."""
        samples = self.samples[np.asarray(devices, np.int64)]
        widths = samples if self.batch is None else np.minimum(self.batch, samples)
        seen = (algorithm.steps or -(-samples // widths)) * widths * algorithm.passes
        return np.rint(seen * algorithm.gradients + algorithm.extra_samples).astype(np.int64)

    def rows(self, device: int, passes: int, steps: int, round_: int, tick: int) -> Ids:
        """Rows of the pool [E, S, B]."""
        n, width = int(self.samples[device]), self.width(device)
        shuffles = -(-steps * width // n)
        order = [
            np.concatenate(
                [permutation(n, self.seed, Purpose.BATCH, device, round_, tick, e, w) for w in range(shuffles)]
            )[: steps * width]
            for e in range(passes)
        ]
        rows: Ids = self.train[device][np.stack(order)].reshape(passes, steps, width)
        return rows

    def data(self, devices: Sequence[int], algorithm: Algorithm, round_: int, tick: int) -> Data:
        """The data of one visit of devices with one common width, stacked (leaves [H, ...], the pool excepted)."""
        passes = algorithm.passes
        counts, kept = [self.steps(i, algorithm) for i in devices], [self.held[i] for i in devices]
        most, held_most = max(counts), max(1, *map(len, kept))
        index = np.zeros((len(devices), passes, most, self.width(devices[0])), np.int64)
        live = np.zeros((len(devices), passes, most), bool)
        held = np.zeros((len(devices), held_most), np.int64)
        held_live = np.zeros((len(devices), held_most), bool)
        for h, (i, s, own) in enumerate(zip(devices, counts, kept, strict=True)):
            index[h, :, :s] = self.rows(i, passes, s, round_, tick)
            index[h, :, s:] = index[h, :, :1]  # a dead step computes on rows of the device's own
            live[h, :, :s] = True
            held[h, : len(own)] = own
            held_live[h, : len(own)] = True
        place = np.arange(passes)[:, None], np.arange(most)[None, :]
        seeds = bits(self.seed, Purpose.DROPOUT, np.asarray(devices)[:, None, None], round_, tick, *place)
        on = self.x.device
        return Data(
            self.x,
            self.y,
            torch.from_numpy(index).to(on),
            torch.from_numpy(live).to(on),
            torch.from_numpy((seeds >> np.uint64(1)).astype(np.int64)).to(on),
            torch.from_numpy(held).to(on),
            torch.from_numpy(held_live).to(on),
            ragged=not bool(live.all()),
        )

    def one(self, device: int, algorithm: Algorithm, round_: int, tick: int) -> Data:
        """The data of one visit of one device, without padding."""
        data = self.data([device], algorithm, round_, tick)
        rows, live, seed, held, held_live = (
            t[0] for t in (data.rows, data.live, data.seed, data.held_rows, data.held_live)
        )
        return Data(data.x, data.y, rows, live, seed, held, held_live, ragged=False)
