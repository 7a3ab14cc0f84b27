"""The networks as PyTorch has them, and what a round of them costs."""

import torch
from torch import Tensor, nn

from sides.job import SHAPES, Job


def network(job: Job) -> nn.Sequential:
    """The network of a job, always with the same first parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        return _NETWORKS[job.work]()


def _perceptron() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(784, 200),
        nn.BatchNorm1d(200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )


def _convolutions() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1600, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


def _logistic() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 10))


def _perfit() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 8, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(200, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


_NETWORKS = {"M1": _perceptron, "M2": _convolutions, "M3": _logistic, "M4": _perfit}


def flops_per_sample(job: Job) -> int:
    """Floating-point operations of a step per sample: 2 per multiply-add in the forward pass, in the gradient of the
    weights and in that of the input, which the first layer does not need. Linear and convolutional layers alone.
    """
    x, total, first = torch.zeros(1, *SHAPES[job.work]), 0, True
    for layer in network(job).eval():
        x = layer(x)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            macs = x[0].numel() * layer.weight[0].numel()
            total += 2 * macs * (2 if first else 3)
            first = False
    return total


def flops(job: Job) -> int:
    """The same of a whole round; Ditto trains two models."""
    return flops_per_sample(job) * job.cohort * job.steps * job.batch * (2 if job.algorithm == "ditto" else 1)


def finished(job: Job) -> None:
    """Waits for what a GPU has still to do."""
    if job.device == "cuda":
        torch.cuda.synchronize()


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Pictures [n, C, H, W] in a layout of the memory; other samples as they are."""
    if x.dim() != 4 or layout == "nchw":
        return x
    return x.contiguous(memory_format=torch.channels_last)
