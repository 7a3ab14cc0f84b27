"""What is trained, and what a contestant is told. Without PyTorch: one of them has none."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

SHAPES = {"M1": (784,), "M2": (1, 28, 28), "M3": (784,), "M4": (3, 20, 20)}
CONVOLUTIONAL, NORMED = ("M2", "M4"), ("M1", "M2")
CLASSES, HELD = 10, 20

ALGORITHMS: dict[str, dict[str, object]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.1},
    "scaffold": {},
    "ditto": {"lam": 0.5},
    "permfl": {"lam": 0.5, "gamma": 1.5, "eta": 0.5, "beta": 0.6},
    "jobfed": {"recluster_every": 0, "stopping": "none"},
}
"""Hyper-parameters beside lr and epochs. JobFed neither moves devices nor stops: every round is the same work."""
IN_TEAMS = ("permfl", "jobfed")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one contestant trains.

    :param side: ours, loop, flower, pfl, fedjax; or peak, the machine alone
    :param work: a network of `SHAPES`
    :param cohort: devices per round
    :param devices: all devices; they hold the same number of samples
    :param samples: training samples of a device
    :param threads: of each process; 0: as the contestant likes
    :param layout: of pictures, "nchw" or "nhwc" (channels last)
    :param device: cpu or cuda, of tierfed, the loop and the machine
    :param bf16: computes under autocast to bfloat16
    :param data: the folder of `written`
    :param folder: a new run folder; none: without
    :param settings: section.key=value of tierfed's config
    """

    side: str
    work: str
    algorithm: str = "fedavg"
    cohort: int = 10
    devices: int = 100
    samples: int = 600
    batch: int = 20
    lr: float = 0.1
    threads: int = 0
    layout: str = "nchw"
    device: str = "cpu"
    bf16: bool = False
    double: bool = False
    seed: int = 0
    data: str = ""
    folder: str | None = None
    settings: tuple[str, ...] = ()

    @property
    def teams(self) -> int:
        """Fogs of the tree; 0: flat. Every one polls the same number of its devices."""
        if self.algorithm not in IN_TEAMS:
            return 0
        return 10 if self.cohort % 10 == 0 and self.cohort >= 50 else 2

    @property
    def steps(self) -> int:
        """Steps of a visit."""
        return -(-self.samples // self.batch)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> "Job":
        job = cls(**json.loads(text))
        return replace(job, settings=tuple(job.settings))


def samples(job: Job) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """x [devices (samples + HELD), *shape] and y: random pictures, labeled by a random linear map. The training rows of
    all devices come first, then their held-out rows.
    """
    rng = np.random.default_rng([job.seed, 1])
    shape = SHAPES[job.work]
    x = rng.standard_normal((job.devices * (job.samples + HELD), *shape), dtype=np.float32)
    teacher = rng.standard_normal((int(np.prod(shape)), CLASSES), dtype=np.float32)
    return x, (x.reshape(len(x), -1) @ teacher).argmax(1)


def train_rows(job: Job) -> list[npt.NDArray[np.int64]]:
    """The rows that each device trains on."""
    return np.split(np.arange(job.devices * job.samples), job.devices)


def held_rows(job: Job) -> list[npt.NDArray[np.int64]]:
    """The rows that JobFed's devices judge models by."""
    return np.split(np.arange(job.devices * HELD) + job.devices * job.samples, job.devices)


@contextmanager
def written(job: Job) -> Iterator[str]:
    """A folder with the samples of a job, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        x, y = samples(job)
        np.save(Path(folder) / "x.npy", x)
        np.save(Path(folder) / "y.npy", y)
        yield folder


def pool(job: Job, mapped: bool = False) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """`samples` as `written` left them. :param mapped: stay on disk until they are used"""
    x, y = (np.load(Path(job.data) / f"{name}.npy", mmap_mode="r" if mapped else None) for name in "xy")
    return x, y


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(job: Job) -> dict[str, str]:
    """Variables that a contestant's process begins with: nothing is reported to anybody, all traffic is on the
    loopback device, and no more threads are at work than the job says.
    """
    out = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray turns 127.0.0.1 into the machine's own address
        "JAX_PLATFORMS": "cpu",
    }
    if job.side == "fedjax" and job.threads == 1:
        out |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "NPROC": "1"}
    return out
