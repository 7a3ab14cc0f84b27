"""What the machine can do: the speed of a large float32 matrix product over all cores, or on the GPU."""

import time

import torch

from sides.job import Job, cores
from sides.network import finished
from sides.turns import Turns

N, TIMES = 2048, 10


def serve(job: Job, turns: Turns) -> None:
    """Answers the most floating-point operations per second of `TIMES` products."""
    torch.set_num_threads(cores())
    a, b, out = (torch.randn(N, N, device=job.device) for _ in range(3))
    while turns.wait():
        best = float("inf")
        for _ in range(TIMES):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            finished(job)
            best = min(best, time.perf_counter() - start)
        turns.say(flops_per_second=2 * N**3 / best)
