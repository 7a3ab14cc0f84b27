"""What Ray costs: seconds per FedAvg round of two worker processes over shared memory, and of two Ray workers.

    python benchmarks/ray_scale.py --workers 2 --json

The perceptron 784-200-BN-200-10 (M1 of benchmarks/peers.py), 100 devices with 600 random samples each, 10 of them per
round, one epoch of batches of 20, SGD 0.1, nothing evaluated. The two take turns of a second, with the same chunks
of devices, so they train to the same bits; the table shows medians and what Ray adds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tierfed.algorithms.fedavg import FedAvg
from tierfed.engine import Vectorized
from tierfed.engine.ray_crew import RayCrew
from tierfed.models import build_model
from tierfed.plan import Plan
from tierfed.store import MemoryStore
from tierfed.task import Task
from tierfed.topology import TopologySettings, build_topology

POLLED, BATCH, LR = 10, 20, 0.1


def make_plan(devices: int, samples: int) -> Plan:
    """Random images of random classes."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((devices * samples, 784), dtype=np.float32))
    y = torch.from_numpy(rng.integers(0, 10, devices * samples))
    rows = np.split(np.arange(devices * samples), devices)
    return Plan(x=x, y=y, train=rows, held=[np.zeros(0, np.int64)] * devices, batch=BATCH)


def make_engine(plan: Plan, polled: int, workers: int) -> Vectorized:
    """FedAvg with the kernel "fused" over a flat tree."""
    task = Task(build_model("epflu_mlp", (784,), 10, {}, seed=0))
    topology = build_topology(TopologySettings(fogs=0, participation=polled), plan.samples)
    engine = Vectorized(FedAvg(lr=LR), [task], topology, plan, MemoryStore())
    engine.kernel, engine.chunk, engine.workers = "fused", 5, workers
    return engine


def timed(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def turn(step: Callable[[], object], least: float) -> float:
    """The median of rounds that follow one another for some seconds; the first one, after idling, does not count."""
    step()
    taken = [timed(step)]
    while sum(taken) < least:
        taken.append(timed(step))
    return statistics.median(taken)


def measure(options: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    """Median seconds per round of both, and the largest difference of their models."""
    plan = make_plan(options.devices, options.samples)
    engines = {name: make_engine(plan, options.polled, options.workers) for name in ("vectorized", "ray")}
    engines["ray"].hire = partial(RayCrew, workers=options.workers, address=options.address, tell=tell)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    try:
        begin = {name: timed(engine.open) for name, engine in engines.items()}
        for r in range(options.rounds):
            tell(f"turn {r + 1} of {options.rounds}")
            for name, engine in engines.items():
                seconds[name].append(turn(engine.step, options.turn))
        for engine in engines.values():  # models are compared after as many rounds
            while engine.round < max(e.round for e in engines.values()):
                engine.step()
    finally:
        for engine in engines.values():
            engine.close()
    models = [engine.kept(0, 0)["params"] for engine in engines.values()]
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    return {
        "workers": options.workers,
        "polled": options.polled,
        "batch": BATCH,
        "rounds": options.rounds,
        "vectorized_seconds": medians["vectorized"],
        "ray_seconds": medians["ray"],
        "overhead_percent": 100 * (medians["ray"] / medians["vectorized"] - 1),
        "ray_begin_seconds": begin["ray"],
        "difference": max(float((models[0][k] - models[1][k]).abs().max()) for k in models[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="of each of the two")
    parser.add_argument("--polled", type=int, default=POLLED, help="devices per round")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each, whose median counts")
    parser.add_argument("--turn", type=float, default=1.0, help="seconds of rounds in a turn, at least")
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--address", default="", help="of a Ray cluster; empty: one of this machine")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Console(stderr=True).status("making data") as shown:
        found = measure(options, shown.update)
    if options.json:
        print(json.dumps(found))
        return
    table = Table(title=f"FedAvg on M1, {options.workers} workers, {options.polled} devices per round (medians)")
    for column in ("who", "seconds per round", "overhead"):
        table.add_column(column, justify="left" if column == "who" else "right")
    table.add_row("worker processes", f"{found['vectorized_seconds']:.4f}", "")
    table.add_row("Ray workers", f"{found['ray_seconds']:.4f}", f"{found['overhead_percent']:+.0f} %")
    Console().print(table)


if __name__ == "__main__":
    main()
