"""A conditional GAN for a few labeled samples: how it is trained, and what it makes."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tierfed.augment.settings import GanSettings
from tierfed.data.dataset import Ints
from tierfed.tree import Params

Tell = Callable[[str], None]

_SLOPE = 0.2
EVERY_SECONDS = 2.0  # between two words on how far it is
_CHUNK = 8192
_SCALES = ("shift", "scale", "low", "high")


def train(x: Tensor, y: Ints, classes: int, settings: GanSettings, seed: int, tell: Tell | None = None) -> Params:
    """A generator that has learned the samples of every label (Mirza, Osindero 2014, arXiv 1411.1784).

    Two MLPs with two hidden layers. The generator gets noise and the label one-hot; the discriminator has one output
    per label, of which that of the label in question counts (a projection: Miyato, Koyama 2018, arXiv 1802.05637). Both
    descend on the non-saturating logistic loss by Adam (beta1 = 0, beta2 = 0.99), in batches in which all labels that
    have samples are alike frequent. A penalty gamma / 2 |gradient of the discriminator at real samples|^2 keeps the two
    in balance (Mescheder et al. 2018, arXiv 1801.04406); the generator is an exponential mean over the steps.

    :param x: samples [S, *shape], floating point
    :param y: their labels [S]
    :param seed: of weights, noise and batches: the result is a function of it, the samples and the settings
    :param tell: is told every two seconds how far the training is
    :return: weights of the generator, and what brings its outputs to the range of the samples: shift, scale, low, high
        [d]; all float32
    """
    rng = torch.Generator().manual_seed(seed)
    flat = x.detach().cpu().flatten(1).float()
    std, shift = torch.std_mean(flat, 0, correction=0)
    constant = std <= 1e-6 * flat.abs().amax(0).clamp(min=1.0)
    real = (flat - shift) / torch.where(constant, 1.0, std)
    width, d = settings.hidden, flat.shape[1]
    maker, judge = _net((settings.noise + classes, width, width, d), rng), _net((d, width, width, classes), rng)
    mean = {k: v.detach().clone() for k, v in maker.items()}
    adams = [torch.optim.Adam(list(net.values()), settings.lr, (0.0, 0.99)) for net in (maker, judge)]
    said = time.monotonic()
    for step, (at, labels) in enumerate(_batches(y, settings, rng), 1):
        made = _make(maker, torch.randn(len(at), settings.noise, generator=rng), labels, classes)
        given = real[at].requires_grad_()
        good, bad = _judge(judge, given, labels), _judge(judge, made.detach(), labels)
        (slope,) = torch.autograd.grad(good.sum(), given, create_graph=True)
        penalty = settings.penalty / 2 * slope.square().sum(1).mean()
        _step(adams[1], judge, F.softplus(-good).mean() + F.softplus(bad).mean() + penalty)
        _step(adams[0], maker, F.softplus(-_judge(judge, made, labels)).mean())
        for k, v in mean.items():
            v.lerp_(maker[k].detach(), 1 - min(settings.decay, step / (step + 10)))
        if tell is not None and time.monotonic() - said > EVERY_SECONDS:
            tell(f"training the generator, step {step} of {settings.steps}")
            said = time.monotonic()
    scale = torch.where(constant, 0.0, std)
    return {**mean, "shift": shift, "scale": scale, "low": flat.amin(0), "high": flat.amax(0)}


def sample(generator: Params, labels: Ints, noise: int, seed: int, out: Tensor) -> None:
    """Fills out [n, *shape] with samples of these labels [n], each number within the range of the seeds.

    :param generator: what `train` gave
    :param noise: random numbers per sample, as in training
    """
    rng = torch.Generator().manual_seed(seed)
    weights = {k: v for k, v in generator.items() if k not in _SCALES}
    shift, scale, low, high = (generator[k] for k in _SCALES)
    classes = weights["0.weight"].shape[1] - noise
    for start in range(0, len(labels), _CHUNK):
        asked = torch.from_numpy(labels[start : start + _CHUNK])
        made = _make(weights, torch.randn(len(asked), noise, generator=rng), asked, classes)
        fit = torch.clamp(shift + scale * made, low, high)
        out[start : start + len(asked)] = fit.view(-1, *out.shape[1:]).to(out)


def generator_bytes(shape: tuple[int, ...], classes: int, settings: GanSettings) -> int:
    """What a generator weighs on a link, trained or not: 4 bytes per number."""
    width, d = settings.hidden, math.prod(shape)
    sizes = (settings.noise + classes, width, width, d)
    return 4 * (sum((a + 1) * b for a, b in pairwise(sizes)) + len(_SCALES) * d)


def _net(sizes: tuple[int, ...], rng: torch.Generator) -> Params:
    """The layers of an MLP, drawn by He et al.'s rule for its leaky rectifiers."""
    out: Params = {}
    for i, (a, b) in enumerate(pairwise(sizes)):
        out[f"{i}.weight"] = (torch.randn(b, a, generator=rng) * math.sqrt(2 / ((1 + _SLOPE**2) * a))).requires_grad_()
        out[f"{i}.bias"] = torch.zeros(b, requires_grad=True)
    return out


def _forward(net: Params, h: Tensor) -> Tensor:
    last = len(net) // 2 - 1
    for i in range(last):
        h = F.leaky_relu(F.linear(h, net[f"{i}.weight"], net[f"{i}.bias"]), _SLOPE)
    return F.linear(h, net[f"{last}.weight"], net[f"{last}.bias"])


def _make(net: Params, noise: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Standardized samples [B, d] of labels [B] from noise [B, noise]."""
    return _forward(net, torch.cat([noise, F.one_hot(labels, classes).to(noise)], 1))


def _judge(net: Params, x: Tensor, labels: Tensor) -> Tensor:
    """How real the samples [B, d] look as samples of their labels [B]."""
    return _forward(net, x).gather(1, labels[:, None])[:, 0]


def _step(adam: torch.optim.Optimizer, net: Params, loss: Tensor) -> None:
    for weight, g in zip(net.values(), torch.autograd.grad(loss, list(net.values())), strict=True):
        weight.grad = g
    adam.step()


def _batches(y: Ints, settings: GanSettings, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows [B], their labels [B]) of every step: a label first, then one of its samples, both uniform."""
    labels, count = (torch.from_numpy(a) for a in np.unique(y, return_counts=True))
    order, first = torch.from_numpy(np.argsort(y, kind="stable")), torch.cumsum(count, 0) - count
    for _ in range(settings.steps):
        which = torch.randint(len(labels), (settings.batch,), generator=rng)
        place = (torch.rand(settings.batch, generator=rng, dtype=torch.float64) * count[which]).long()
        yield order[first[which] + place], labels[which]
