"""Seconds per FedAvg round of both engines and of a bare PyTorch loop, in one process: python benchmarks/rounds.py

100 devices with 600 random samples each, 10 of them per round, one epoch of batches of 20, SGD 0.1, one thread, flat
tree, nothing evaluated. M1 is the perceptron 784-200-BN-200-10, M3 logistic regression 784-10. Rounds of the three
alternate, so that a busy machine disturbs all alike; the table shows medians and their ratio (above 1:
faster than the bare loop).
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tierfed.algorithms.fedavg import FedAvg
from tierfed.engine import ENGINES
from tierfed.models import build_model
from tierfed.plan import Plan
from tierfed.store import MemoryStore
from tierfed.task import Task
from tierfed.topology import TopologySettings, build_topology

DEVICES, SAMPLES, POLLED, BATCH, LR = 100, 600, 10, 20, 0.1
MODELS = {"M1": "epflu_mlp", "M3": "mclr"}


def make_plan(devices: int, samples: int) -> Plan:
    """Random images of random classes."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((devices * samples, 784), dtype=np.float32))
    y = torch.from_numpy(rng.integers(0, 10, devices * samples))
    rows = np.split(np.arange(devices * samples), devices)
    return Plan(x=x, y=y, train=rows, held=[np.zeros(0, np.int64)] * devices, batch=BATCH)


def engine_round(name: str, module: nn.Module, plan: Plan) -> Callable[[], object]:
    """One round of an engine, commit included."""
    settings = TopologySettings(fogs=0, participation=POLLED)
    store = MemoryStore()
    algorithm = FedAvg(lr=LR)
    engine = ENGINES[name](algorithm, [Task(module)], build_topology(settings, plan.samples), plan, store)

    def step() -> None:
        engine.step()
        store.commit(engine.meta(), [])

    return step


def bare_round(module: nn.Module, plan: Plan) -> Callable[[], object]:
    """One round as a script would write it: one model, load, train, average."""
    rng = np.random.default_rng(1)
    model: dict[str, Tensor] = {k: v.clone() for k, v in module.state_dict().items()}

    def step() -> None:
        total = {k: torch.zeros_like(v, dtype=torch.float32) for k, v in model.items()}
        for i in rng.choice(len(plan.train), POLLED, replace=False):
            module.load_state_dict(model)
            optimizer = torch.optim.SGD(module.parameters(), LR)
            for part in torch.from_numpy(rng.permutation(plan.train[i])).split(BATCH):
                optimizer.zero_grad()
                cross_entropy(module(plan.x[part]), plan.y[part]).backward()
                optimizer.step()
            for k, v in module.state_dict().items():
                total[k] += v / POLLED
        model.update({k: v.to(model[k].dtype) for k, v in total.items()})

    return step


def measure(model: str, rounds: int, devices: int, samples: int) -> dict[str, float]:
    """Median seconds per round of the bare loop and of each engine; the first round of each warms up."""
    plan = make_plan(devices, samples)
    first = build_model(MODELS[model], (784,), 10, {}, seed=0)
    steps = {"bare loop": bare_round(copy.deepcopy(first).train(), plan)}
    steps |= {name: engine_round(name, first, plan) for name in ENGINES}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s[1:]) for name, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--devices", type=int, default=DEVICES)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="FedAvg, seconds per round (median), time of the bare loop / time")
    for column in ("model", "what", "seconds", "ratio"):
        table.add_column(column, justify="right" if column in ("seconds", "ratio") else "left")
    for model in MODELS:
        found = measure(model, arguments.rounds, arguments.devices, arguments.samples)
        for name, seconds in found.items():
            table.add_row(model, name, f"{seconds:.4f}", f"{found['bare loop'] / seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
