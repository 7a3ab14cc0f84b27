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
from tierfed.rng import Purpose, bits

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
    whole: bool = False  # what does not fill a batch is left out of a pass, which so has no sample twice

    @cached_property
    def samples(self) -> Ids:
        """Training samples per device [N]."""
        return lengths(self.train)

    @property
    def like(self) -> Tensor:
        """A number [] of the model's kind, to make others from."""
        return torch.zeros((), dtype=self.dtype, device=self.x.device)

    @cached_property
    def widths(self) -> Ids:
        """Samples per batch of every device [N]."""
        return self.samples if self.batch is None else np.minimum(self.batch, self.samples)

    def width(self, device: int) -> int:
        """Samples per batch of a device."""
        return int(self.widths[device])

    def counts(self, devices: Sequence[int] | Ids, algorithm: Algorithm) -> Ids:
        """Steps per pass of some devices [H]."""
        n, width = self.samples[devices], self.widths[devices]
        whole: Ids = n // width if self.whole else -(-n // width)
        return whole if algorithm.steps is None else np.full(len(devices), algorithm.steps)

    def steps(self, device: int, algorithm: Algorithm) -> int:
        """Steps per pass of a device."""
        return int(self.counts([device], algorithm)[0])

    def work(self, devices: Sequence[int] | Ids, algorithm: Algorithm) -> Ids:
        """Samples [H] that devices process in a visit, all passes and every gradient counted."""
        seen = self.counts(devices, algorithm) * self.widths[devices] * algorithm.passes
        samples: Ids = np.rint(seen * algorithm.gradients + algorithm.extra_samples).astype(np.int64)
        return samples

    def rows(self, device: int, passes: int, steps: int, round_: int, tick: int) -> Ids:
        """Rows of the pool [E, S, B]."""
        return self._rows([device], passes, steps, round_, tick)[0]  # type: ignore[no-any-return]

    def _rows(self, devices: Sequence[int], passes: int, steps: int, round_: int, tick: int) -> Ids:
        """The same of devices with equally many samples [H, E, S, B], drawn in one call."""
        n, width = int(self.samples[devices[0]]), self.width(devices[0])
        device, epoch, shuffle, row = np.ix_(devices, range(passes), range(-(-steps * width // n)), range(n))
        key = bits(self.seed, Purpose.BATCH, device, round_, tick, epoch, shuffle, row)
        order = np.argsort(key, axis=-1, kind="stable").reshape(len(devices), passes, -1)[..., : steps * width]
        own = np.stack([self.train[i] for i in devices])[:, None]  # [H, 1, n]
        rows: Ids = np.take_along_axis(own, order, -1).reshape(len(devices), passes, steps, width)
        return rows

    def data(self, devices: Sequence[int], algorithm: Algorithm, round_: int, tick: int) -> Data:
        """The data of one visit of devices with one common width, stacked (leaves [H, ...], the pool excepted)."""
        passes = algorithm.passes
        counts, kept = self.counts(devices, algorithm).tolist(), [self.held[i] for i in devices]
        most, held_most = max(counts), max(1, *map(len, kept))
        index = np.zeros((len(devices), passes, most, self.width(devices[0])), np.int64)
        live = np.zeros((len(devices), passes, most), bool)
        held = np.zeros((len(devices), held_most), np.int64)
        held_live = np.zeros((len(devices), held_most), bool)
        sizes = self.samples[np.asarray(devices)]
        for n in np.unique(sizes):
            at = np.flatnonzero(sizes == n)
            s = counts[at[0]]
            index[at, :, :s] = self._rows([devices[h] for h in at.tolist()], passes, s, round_, tick)
            index[at, :, s:] = index[at, :, :1]  # a dead step computes on rows of the device's own
            live[at, :, :s] = True
        for h, own in enumerate(kept):
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
        return self.data([device], algorithm, round_, tick).alone()
