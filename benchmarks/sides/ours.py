"""tierfed through its public API: `tierfed.run` with a watcher that waits between rounds."""

from typing import Any

import numpy as np
import torch

import tierfed
from sides.job import ALGORITHMS, CLASSES, HELD, Job, pool
from sides.network import finished, network
from sides.turns import StoppedError, Turns

FOREVER = 1_000_000


def serve(job: Job, turns: Turns) -> None:
    def watch(progress: tierfed.Progress) -> None:
        if progress.doing:
            return
        if progress.round:
            finished(job)
            turns.done()
        if not turns.wait():
            raise StoppedError

    try:
        tierfed.run(config(job, FOREVER), data=dataset(job), module=network(job), watch=watch, folder=bool(job.folder))
    except StoppedError:
        return


def config(job: Job, rounds: int) -> tierfed.Config:
    """The job as a config; nothing is evaluated, since there are no test data."""
    tables: dict[str, Any] = {
        "run": {"rounds": rounds, "seed": job.seed, "device": job.device, "threads": job.threads},
        "data": {"batch": job.batch, "standardize": False, "split": {"by": "given"}},
        "algorithm": {"name": job.algorithm, "lr": job.lr, "epochs": 1, **_given(job)},
        "topology": {"fogs": job.teams, "teams": "sequential", "participation": job.cohort // (job.teams or 1)},
        "eval": {"every": rounds, "post": False},
    }
    tables["run"] |= {"dtype": "float64"} if job.double else {}
    tables["run"] |= {"out": job.folder} if job.folder else {}
    return tierfed.load_config(tables, job.settings)


def _given(job: Job) -> dict[str, object]:
    """The hyper-parameters beside lr and epochs; PerMFL counts its work in steps."""
    return ALGORITHMS[job.algorithm] | ({"steps": job.steps} if job.algorithm == "permfl" else {})


def dataset(job: Job) -> tierfed.Dataset:
    """The samples of a job: who holds what, and what is held out."""
    x, y = (torch.from_numpy(a) for a in pool(job))
    n, held = job.devices * job.samples, job.devices * HELD
    return tierfed.Dataset(
        name="random",
        x=x,
        y=y,
        classes=tuple(map(str, range(CLASSES))),
        bits_per_sample=32 * x[0].numel(),
        devices=tuple(f"device-{i}" for i in range(job.devices)),
        device=np.repeat(np.tile(np.arange(job.devices), 2), np.repeat([job.samples, HELD], job.devices)),
        split=np.repeat(np.array([0, 1], np.int8), [n, held]),
    )
