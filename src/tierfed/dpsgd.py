"""DP-SGD on a device (Abadi et al. 2016, arXiv 1607.00133): the gradient of every sample clipped, their sum noised.

    g = (sum_i clip(grad f_i(w), C) + N(0, (z C)^2)) / B

A pass over the data has every sample in at most one batch (the last one, if it is not full, is left out), so a pass is
one Gaussian mechanism with the noise multiplier z, whatever the batches are: nothing is claimed for the shuffling.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from tierfed.algorithm import Algorithm, Batch, Data
from tierfed.errors import InputError
from tierfed.privacy.accounting import Accountant
from tierfed.privacy.clipping import ROUNDING
from tierfed.privacy.noise import Delta, normal_like, secure
from tierfed.settings import NonNegative, Positive
from tierfed.task import Loss, Task
from tierfed.tree import Params, Tree, take

Noise = Callable[[Tensor, Tensor, int], Tensor]
"""(tensor, seed [], number) -> standard normal numbers shaped like the tensor."""
_SAMPLE = 0x2545F4914F6CDD1D  # odd: seeds of the samples of a batch differ
_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True, kw_only=True)
class DpSgdSettings:
    """Differential privacy of single samples: devices train with DP-SGD."""

    clip: Positive | None = None
    """C: longest gradient of one sample, as an L2 norm over all that is trained; none: plain SGD."""
    noise_multiplier: NonNegative = 1.0
    """z: the standard deviation of the noise on the sum of a batch is z C."""
    delta: Delta = 1e-5
    """Probability with which the promise may fail; below 1 / (samples of a device)."""
    epsilon: Positive | None = None
    """The budget: the run stops before it is exceeded; none: it is only counted."""
    accountant: Accountant = "auto"
    """rdp: Renyi divergences; pld: privacy loss distributions; auto: pld."""

    @property
    def on(self) -> bool:
        """Whether devices train with it."""
        return self.clip is not None


def secure_like(t: Tensor, seed: Tensor, number: int) -> Tensor:
    """Standard normal numbers shaped like t that nobody can foresee; seed and number do not matter."""
    return torch.from_numpy(secure()(t.numel())).view(t.shape).to(t.device, t.dtype)


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


def private_tasks(settings: DpSgdSettings, tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks of a run whose devices train with DP-SGD."""
    bound = float(settings.clip or 0.0)
    return tuple(PrivateTask(t, bound, settings.noise_multiplier) for t in tasks)


def real_task(task: Task) -> Task:
    """The same with noise that nobody can foresee, where there is any."""
    if not isinstance(task, PrivateTask):
        return task
    out = PrivateTask.__new__(PrivateTask)
    vars(out).update(vars(task), noise=secure_like)
    return out


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


class Probe(Task):
    """A task that trains nothing, and notes what an algorithm asks of it in a visit; it shares all else."""

    def __init__(self, task: Task) -> None:
        vars(self).update(vars(task))
        self.seeds: list[Tensor] = []

    def train(
        self,
        params: Params,
        data: Data,
        lr: float | Tensor,
        drift: Params | None = None,
        pull: tuple[float | Tensor, Params] | None = None,
        keys: Collection[str] | None = None,
    ) -> Params:
        self.seeds.append(data.seed[data.live])
        return params

    def grad(
        self, params: Params, batch: Batch, keys: Collection[str] | None = None, loss: Loss | None = None
    ) -> tuple[Params, Tensor, Params]:
        raise BesideError("takes gradients beside its local training, several of a batch or of other losses")

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        raise BesideError("looks at outputs or losses of models beside its local training")


class BesideError(Exception):
    """An algorithm touches data in another way than by `task.train`."""


def refusal(algorithm: Algorithm, task: Task, msg: Tree, state: Tree, data: Data) -> str:
    """Why the guarantee of DP-SGD does not hold for an algorithm, in a user's words; empty: it does.

    The visit is made with a task that trains nothing and with data that hold no samples: whoever wants one is found.
    """
    probe = Probe(task)
    try:
        algorithm.device(probe, msg, state, data._replace(x=data.x[:0], y=data.y[:0]))
    except BesideError as why:
        return str(why)
    except (IndexError, RuntimeError, ValueError):
        return "reads its samples itself, beside its local training"
    seen = torch.cat(probe.seeds) if probe.seeds else torch.zeros(0, dtype=torch.int64)
    if len(seen.unique()) < len(seen):
        return "trains several times on the same batches, whose noise would be the same"
    return ""
