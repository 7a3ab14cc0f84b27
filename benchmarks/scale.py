"""A million devices in one process: python benchmarks/scale.py [--devices 10000,100000,1000000] [--algorithm fedbn]

Every population in a process of its own, through the public API: `tierfed.run` with a run folder in a temporary
directory. Devices draw 40 rows each from a pool of 20,000 random samples (data.partition.kind = "drawn"); the tree is
1 cloud - 10 regions - 100 fogs - N devices, of which --cohort are polled in every round for 2 steps of 20 samples. The
network is the perceptron 784-200-BN-200-10 (200,210 floats): fedbn keeps its 800 numbers of batch norm on every device
that ever took part, ditto a whole model. A sample of the devices is evaluated before the first round and after the last
one; a round's time is that between two reports of progress, the last round left out.

"prepare" goes from the call to the first round. The ratio is the median round to that of the smallest population: 1
means that a round does not notice how many devices there are. "show" is the preview and "report" the page of the
finished run; a checkpoint is the size of all of them divided by the rounds.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import tierfed
from tierfed.config import load_config
from tierfed.preview import preview
from tierfed.report import write_report
from tierfed.setup import prepare

POOL, FEATURES, CLASSES, SAMPLES, FOGS = 20_000, 784, 10, 40, (10, 100)


def pool() -> tierfed.Dataset:
    """Random samples of random classes."""
    rng = np.random.default_rng(0)
    return tierfed.Dataset(
        name="noise",
        x=torch.from_numpy(rng.standard_normal((POOL, FEATURES), dtype=np.float32)),
        y=torch.from_numpy(rng.integers(0, CLASSES, POOL)),
        classes=tuple(map(str, range(CLASSES))),
        bits_per_sample=32 * FEATURES,
    )


def tables(devices: int, algorithm: str, cohort: int, rounds: int, evaluated: int, out: Path) -> dict[str, Any]:
    """The config of a run."""
    return {
        "run": {"rounds": rounds, "out": str(out), "threads": 1},
        "data": {
            "partition": {"kind": "drawn", "devices": devices, "size": SAMPLES, "alpha": 0.5},
            "standardize": False,
        },
        "model": {"name": "epflu_mlp"},
        "algorithm": {"name": algorithm, "steps": 2},
        "topology": {"fogs": list(FOGS), "participation": cohort // FOGS[-1]},
        "eval": {"every": 10**9, "post": False, **({"devices": evaluated} if evaluated else {})},
    }


def measure(devices: int, algorithm: str, cohort: int, rounds: int, evaluated: int) -> dict[str, float]:
    """One population."""
    told: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        out, data = Path(folder) / "run", pool()
        config = load_config(tables(devices, algorithm, cohort, rounds, evaluated, out))
        start = time.perf_counter()
        preview(prepare(config, data, draft=True))
        shown = time.perf_counter() - start
        start = time.perf_counter()
        tierfed.run(config, data=data, watch=lambda p: told.append(time.perf_counter()) if not p.doing else None)
        size, ended = state(out), time.perf_counter()
        write_report(out)
        return {
            "devices": devices,
            "prepare_seconds": told[0] - start,
            "round_seconds": statistics.median(np.diff(told)[:-1].tolist()),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "folder_mb": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6,
            "checkpoint_mb": size / rounds / 1e6,
            "show_seconds": shown,
            "report_seconds": time.perf_counter() - ended,
        }


def state(out: Path) -> int:
    """Bytes of all checkpoints of a run."""
    return sum(f.stat().st_size for f in (out / "state").iterdir())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", default="10000,100000,1000000")
    parser.add_argument("--algorithm", default="fedbn")
    parser.add_argument("--cohort", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--evaluated", type=int, default=200, help="devices; 0: all")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = []
    for devices in map(int, arguments.devices.split(",")):
        job = (devices, arguments.algorithm, arguments.cohort, arguments.rounds, arguments.evaluated)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found.append(process.submit(measure, *job).result())
        print(f"{devices} devices: done", file=sys.stderr, flush=True)
    for one in found:
        one["ratio"] = one["round_seconds"] / found[0]["round_seconds"]
    if arguments.json:
        print(json.dumps({"settings": vars(arguments), "results": found}, indent=1))
        return
    table = Table(title=f"{arguments.algorithm}, {arguments.cohort} devices a round")
    table.add_column("devices")
    for one in found:
        table.add_column(f"{one['devices']:,}", justify="right")
    for name in [n for n in found[0] if n != "devices"]:
        table.add_row(name.replace("_", " "), *(f"{one[name]:,.2f}" for one in found))
    Console().print(table)


if __name__ == "__main__":
    main()
