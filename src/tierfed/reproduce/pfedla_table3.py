"""pFedLA, Table 3: what 750 visits of devices send and receive, by the number of layers that stay on the device."""

from functools import partial
from typing import Any

import numpy as np
import torch

from tierfed.config import from_table
from tierfed.data import Dataset
from tierfed.engine import Engine
from tierfed.reproduce.study import Case, Line, Study, accuracy, merged
from tierfed.setup import prepare
from tierfed.store import MemoryStore

DEVICES, VISITS, MIB = 10, 750, 2**20
SOURCE = "Table 3"
FIRM = 5.0  # added to a device's own output: its self weight leads in the layers that shall stay

# data set -> (title, network, step, published by k: (retained layers, MBytes, accuracy))
Row = tuple[tuple[str, ...], float, float]
SETS: dict[str, tuple[str, str, float, tuple[Row, ...]]] = {
    "emnist": (
        "EMNIST",
        "lenet16_28",
        0.005,
        (((), 491.08, 90.65), (("fc3",), 488.65, 94.11), (("fc3", "fc1"), 312.52, 93.94)),
    ),
    "cifar10": (
        "CIFAR-10",
        "lenet16_bn",
        0.01,
        (
            ((), 693.98, 61.43),
            (("fc1",), 418.97, 60.02),
            (("fc1", "conv2"), 382.25, 59.90),
            (("fc1", "conv2", "fc3"), 379.82, 59.23),
        ),
    ),
}
SHAPES = {"lenet16_28": (1, 28, 28), "lenet16_bn": (3, 32, 32)}


def noise(shape: tuple[int, ...]) -> Dataset:
    """Four samples of ten labels for each device: what they show does not change the size of a message."""
    rng = np.random.default_rng([0, *shape])
    rows = 4 * DEVICES
    x = torch.from_numpy(rng.integers(0, 256, (rows, *shape), dtype=np.uint8))
    return Dataset(
        name="noise",
        x=x,
        y=torch.arange(rows) % 10,
        classes=tuple("0123456789"),
        bits_per_sample=8 * x[0].numel(),
        devices=tuple(f"device-{i}" for i in range(DEVICES)),
        device=np.repeat(np.arange(DEVICES), 4).astype(np.int64),
    )


def traffic(network: str, retained: tuple[str, ...], rounds: int = VISITS // DEVICES) -> float:
    """MiB that 750 visits carry down and up: real messages of real rounds, one batch a visit.

    Which layers stay is what the hypernetworks make of training; here they are set so that `retained` lead.

    :param rounds: how many are walked; fewer than 75 are extrapolated
    """
    settings = {"name": "heurpfedla", "retain": len(retained)} if retained else {"name": "pfedla"}
    tables = {
        "run": {"device": "cpu"},
        "data": {"batch": 2, "split": {"by": "random", "test": 0.25, "val": 0.0}},
        "model": {"name": network},
        "algorithm": {**settings, "steps": 1, "lr_hn": 0.0},
    }
    world = prepare(from_table(tables), noise(SHAPES[network]))
    engine = world.engine(MemoryStore())
    set_retained(engine, retained)
    total, visits = 0, 0
    for _ in range(rounds):
        log = engine.step()
        total += sum(log.link_bytes().values())
        visits += sum(len(v.devices) for v in log.visits)
    return total / visits * VISITS / MIB


def set_retained(engine: Engine, retained: tuple[str, ...]) -> None:
    """Gives every device the largest self weights in these layers."""
    chosen = torch.tensor([layer in retained for layer in engine.task(0).layers])
    for device in range(engine.topology.devices):
        (record,) = engine.rows(0, np.array([device]))
        bias = record["hyper"]["bias"].clone()
        bias[chosen, device] += FIRM
        engine.put_row(0, device, {**record, "hyper": {**record["hyper"], "bias": bias}})


def _tables(data: str, retain: int) -> dict[str, Any]:
    _, network, lr, _ = SETS[data]
    settings = {"name": "heurpfedla", "retain": retain} if retain else {"name": "pfedla"}
    return merged(
        {
            "run": {"rounds": 600},
            "data": {
                "source": data,
                "batch": 32,
                "split": {"by": "random", "test": 0.3, "val": 0.0},
                "partition": {"kind": "pfedla1", "devices": DEVICES, "classes": 4, "size": 600},
            },
            "model": {"name": network},
            "topology": {"fogs": 0},
            "eval": {"every": 50, "post": False},
            "algorithm": {"lr": lr, "epochs": 10, **settings},
        }
    )


def _lines() -> tuple[Line, ...]:
    lines = []
    for data, (title, network, _, rows) in SETS.items():
        for k, (retained, mbytes, percent) in enumerate(rows):
            algorithm = "heurpfedla" if k else "pfedla"
            method = f"HeurpFedLA, k = {k} ({', '.join(retained)})" if k else "pFedLA, k = 0"
            shown: dict[str, Any] = {"data": title, "method": method, "algorithm": algorithm, "source": SOURCE}
            count = partial(traffic, network, retained)
            lines.append(Line(quantity="traffic, MBytes", count=count, paper=mbytes, **shown))
            lines.append(
                Line(
                    quantity="accuracy, %",
                    case=f"{data}-k{k}",
                    read=accuracy("personal_pre"),
                    paper=percent,
                    **shown,
                )
            )
    return tuple(lines)


STUDY = Study(
    name="pfedla-table3",
    paper="Ma, Zhang, Guo, Xu, CVPR 2022 (pFedLA), Table 3",
    compared="Traffic of ten devices, and accuracy beside it, by the number k of layers that stay on the device.",
    unit="MBytes (2^20 bytes); % accuracy",
    cases=tuple(
        Case(key=f"{data}-k{k}", tables=_tables(data, k), costly=True)
        for data, (*_, rows) in SETS.items()
        for k in range(len(rows))
    ),
    lines=_lines(),
    notes=(
        "Traffic is counted from the messages of 75 rounds of ten devices, down and up, 32-bit floats. The samples are "
        "noise and a visit is one small batch: neither changes a message's size. It is not counted from runs to the "
        "paper's accuracy.",
        "Which layers stay is learned; the hypernetworks' outputs are set so that the named layers lead. The names, "
        "the networks and the 750 visits are inferred from the published digits, the paper does not state them. That "
        "the numbers agree says that the accounting is the paper's, not that our training would choose these layers.",
        "A message that leaves layers out also tells which, in one bit per tensor (2 bytes here); that is in our "
        "numbers. Statistics of batch norms never travel.",
        "Accuracy is trained only with --accuracy: 600 rounds of 10 local epochs. The samples per device (600), the "
        "widths of the hypernetworks and their learning rate are not in the paper's text.",
    ),
)
