"""Milliseconds to train a cohort by each kernel and by a bare PyTorch loop: python benchmarks/gpu.py

Every device of a cohort takes `--steps` steps of SGD 0.1 on batches of 20 random samples, from one common model. M1 is
the perceptron 784-200-BN-200-10, M3 logistic regression 784-10, M4 PerFit's convolutional network on 3x20x20. The bare
loop is one module with torch.optim.SGD, one device after the other; it and the kernel "loop" grow in proportion to the
cohort, so that of large cohorts they train `--alone` devices and the time is scaled up (marked *). Kernels alternate,
and the table shows medians and the ratio to the bare loop of the same cohort (above 1: faster).

Without CUDA it runs on one thread of the CPU, where "graphs" is not offered.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.functional import cross_entropy

from tierfed.algorithm import Data
from tierfed.kernels import BATCHED, KERNELS, equipped, refusal
from tierfed.models import build_model
from tierfed.task import Task

MODELS = {"M1": ("epflu_mlp", (784,)), "M3": ("mclr", (784,)), "M4": ("har_cnn", (3, 20, 20))}
BATCH, LR, BARE = 20, 0.1, "bare loop"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is trained. :param rows: [C, 1, S, B] of the pool"""

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor
    rows: Tensor


@dataclass(frozen=True, kw_only=True)
class Found:
    """One row of the table. :param alone: devices that were timed where the time is scaled up, else 0"""

    work: str
    cohort: int
    kernel: str
    milliseconds: float
    ratio: float
    alone: int


def make_work(name: str, cohort: int, steps: int, device: torch.device) -> Work:
    """Random samples, 600 for each of at most 100 devices; larger cohorts draw from the same."""
    model, shape = MODELS[name]
    rng = torch.Generator().manual_seed(0)
    owners = min(cohort, 100)
    x = torch.randn(600 * owners, *shape, generator=rng)
    y = torch.randint(10, (len(x),), generator=rng)
    begin = 600 * (torch.arange(cohort) % owners)
    rows = begin[:, None, None, None] + torch.randint(600, (cohort, 1, steps, BATCH), generator=rng)
    module = build_model(model, shape, 10, {}, seed=0).to(device)
    return Work(name=name, module=module, x=x.to(device), y=y.to(device), rows=rows.to(device))


def bare(work: Work, devices: int) -> Callable[[], object]:
    """The loop that a script would write."""
    module = copy.deepcopy(work.module).train()
    start = {k: v.clone() for k, v in module.state_dict().items()}

    def run() -> None:
        for rows in work.rows[:devices, 0]:
            module.load_state_dict(start)
            optimizer = torch.optim.SGD(module.parameters(), LR)
            for at in rows:
                optimizer.zero_grad()
                cross_entropy(module(work.x[at]), work.y[at]).backward()
                optimizer.step()

    return run


def by_kernel(work: Work, kernel: str, devices: int) -> Callable[[], object]:
    """`task.train` of the first devices, as an engine maps it."""
    task = equipped(Task(work.module), kernel)
    start = task.init()
    rows = work.rows[:devices]
    live = torch.ones(rows.shape[:3], dtype=torch.bool, device=rows.device)
    seed = torch.zeros(rows.shape[:3], dtype=torch.int64, device=rows.device)

    def device(rows: Tensor, live: Tensor, seed: Tensor) -> dict[str, Tensor]:
        data = Data(work.x, work.y, rows, live, seed, rows[0, 0], live[0], ragged=False)
        return task.train(start, data, LR)

    if kernel in BATCHED:
        return lambda: vmap(device)(rows, live, seed)
    return lambda: [device(*one) for one in zip(rows, live, seed, strict=True)]


def kernels_for(work: Work) -> list[str]:
    """Those that can run a work here; compiling would take longer than all else."""
    return [k for k in KERNELS if k != "compile" and not refusal(k, Task(work.module), work.x.device)]


def measure(name: str, cohort: int, steps: int, repeats: int, alone: int, device: torch.device) -> list[Found]:
    """All kernels on one work and cohort; the first call of each warms up."""
    work = make_work(name, cohort, steps, device)
    few = min(cohort, alone)
    runs = {BARE: bare(work, few)}
    runs |= {k: by_kernel(work, k, cohort if k in BATCHED else few) for k in kernels_for(work)}
    seconds: dict[str, list[float]] = {k: [] for k in runs}
    for _ in range(repeats + 1):
        for kernel, run in runs.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            scale = 1.0 if kernel in BATCHED else cohort / few
            seconds[kernel].append((time.perf_counter() - start) * scale)
    medians = {k: statistics.median(s[1:]) for k, s in seconds.items()}
    return [
        Found(
            work=name,
            cohort=cohort,
            kernel=k,
            milliseconds=1e3 * median,
            ratio=medians[BARE] / median,
            alone=few if few < cohort and k not in BATCHED else 0,
        )
        for k, median in medians.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Milliseconds to train a cohort, by kernel")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cohorts", default="1,10,100,1000")
    parser.add_argument("--works", default="M1,M3,M4")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, found, bars = torch.device(arguments.device), [], Console(stderr=True)
    for work in arguments.works.split(","):
        for cohort in map(int, arguments.cohorts.split(",")):
            with bars.status(f"{work}, {cohort} devices"):
                found += measure(work, cohort, arguments.steps, arguments.repeats, arguments.alone, device)
    if arguments.json:
        Console().print_json(json.dumps([vars(f) for f in found]))
        return
    table = Table(title=f"Training a cohort on {device.type}, {arguments.steps} steps (median)")
    for column in ("work", "devices", "kernel", "milliseconds", "ratio"):
        table.add_column(column, justify="left" if column in ("work", "kernel") else "right")
    for f in found:
        mark = "*" if f.alone else ""
        table.add_row(f.work, str(f.cohort), f.kernel, f"{f.milliseconds:.1f}{mark}", f"{f.ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
