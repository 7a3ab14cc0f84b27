"""DP-SGD on a device (Abadi et al. 2016, arXiv 1607.00133): the gradient of every sample clipped, their sum noised.

    g = (sum_i clip(grad f_i(w), C) + N(0, (z C)^2)) / B

A pass over the data has every sample in at most one batch (the last one, if it is not full, is left out), so a pass is
one Gaussian mechanism with the noise multiplier z, whatever the batches are: nothing is claimed for the shuffling.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tierfed.algorithm import Batch
from tierfed.errors import InputError
from tierfed.privacy.clipping import ROUNDING
from tierfed.privacy.noise import normal_like
from tierfed.task import Loss, Task
from tierfed.tree import Params, take

Noise = Callable[[Tensor, Tensor, int], Tensor]
"""(tensor, seed [], number) -> standard normal numbers shaped like the tensor."""
_SAMPLE = 0x2545F4914F6CDD1D  # odd: seeds of the samples of a batch differ
_NORMS = (nn.modules.batchnorm._BatchNorm,)


class PrivateTask(Task):
    """A task whose gradients are those of DP-SGD. It shares all else with the task that it was made of.

    :param bound: C, of the L2 norm of one sample's gradient over what is trained
    :param multiplier: z
    :param noise: where it comes from: counted by the seeds of the batches, or the system's secure source
    :raises InputError: the model has batch norms, or the task has a kernel or an edge of its own
    """

    mapped: ClassVar[bool] = True

    def __init__(self, task: Task, bound: float, multiplier: float, noise: Noise = normal_like) -> None:
        if type(task) is not Task:
            raise InputError(
                f"privacy.unit = 'example' with a {type(task).__name__}, which computes gradients in its own way; "
                "leave the offloading out, or protect whole devices (privacy.unit = 'device')"
            )
        norms = [n for n, m in task.module.named_modules() if isinstance(m, _NORMS)]
        if norms:
            raise InputError(
                f"privacy.unit = 'example', but {norms[0]!r} is a batch norm: it mixes the samples of a batch, so no "
                "sample has a gradient of its own, and its statistics leave the device without noise; take a model "
                "without (group norms are fine), or protect whole devices (privacy.unit = 'device')"
            )
        vars(self).update(vars(task))
        self.bound, self.multiplier, self.noise = bound, multiplier, noise

    def _differentiate(
        self, net: nn.Module, params: Params, keys: list[str], batch: Batch, loss: Loss
    ) -> tuple[Params, Tensor, Params]:
        """The noised gradient; no number for the loss, which nothing protects."""
        each = per_sample(net, params, keys, batch, loss, self._seeds)
        kept, size = clipped_sum(each, self.bound), len(batch.x)
        deviation = self.multiplier * self.bound
        drawn = {k: self.noise(v, batch.seed, j) for j, (k, v) in enumerate(kept.items())}
        g = {k: (v + deviation * drawn[k]) / size for k, v in kept.items()}
        return g, torch.full_like(next(iter(g.values())).flatten()[0], torch.nan) if g else torch.zeros(()), {}


def per_sample(
    net: nn.Module, params: Params, keys: list[str], batch: Batch, loss: Loss, seeds: tuple[str, ...] = ()
) -> Params:
    """The gradient of every sample's own loss [B, ...], over `keys`.

    :param seeds: names of the buffers that dropout draws from: every sample has masks of its own
    """
    others = {k: v for k, v in params.items() if k not in set(keys)}

    def one(train: Params, x: Tensor, y: Tensor, seed: Tensor) -> Tensor:
        out = functional_call(net, {**others, **train, **dict.fromkeys(seeds, seed)}, (x[None],))
        return loss(out, y[None]).sum()

    own = batch.seed + _SAMPLE * torch.arange(len(batch.x), device=batch.x.device)
    out: Params = vmap(grad(one), (None, 0, 0, 0))(take(params, keys), batch.x, batch.y, own)
    return out


def clipped_sum(each: Params, bound: float) -> Params:
    """The sum over the samples of gradients [B, ...], each clipped to an L2 norm of `bound` over all keys together."""
    if not each:
        return {}
    norms = torch.stack([g.flatten(1).double().square().sum(1) for g in each.values()]).sum(0).sqrt()  # [B]
    factor = (bound / norms.clamp(min=1e-300)).clamp(max=1.0)
    factor = torch.where(factor < 1, factor * ROUNDING, factor)
    sound = norms.isfinite()  # what is no number adds nothing
    return {
        k: torch.where(sound.view(-1, *[1] * (g.dim() - 1)), g, 0.0)
        .mul(torch.where(sound, factor, 0.0).to(g.dtype).view(-1, *[1] * (g.dim() - 1)))
        .sum(0)
        for k, g in each.items()
    }
