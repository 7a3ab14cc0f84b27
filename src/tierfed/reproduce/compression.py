"""Compression with error feedback on label shards: accuracy and bytes by what travels."""

from collections.abc import Mapping
from typing import Any

from tierfed.report.load import RunFolder
from tierfed.report.svg import lines
from tierfed.reproduce.study import Case, Figure, Line, Study, accuracy, merged

BASE: dict[str, Any] = {
    "run": {"rounds": 100},
    "data": {
        "source": "fashion_mnist",
        "batch": 20,
        "partition": {"kind": "shards", "devices": 100, "type": 2},
    },
    "model": {"name": "epflu_mlp"},
    "topology": {"fogs": 5, "teams": "random", "participation": [1.0, 0.3]},
    "algorithm": {"name": "fedavg", "lr": 0.05, "epochs": 1},
    "eval": {"every": 5, "post": False},
}
LINK = "fog-device"

# key -> (as a reader calls it, [links.fog-device.compress])
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("no compression", {"kind": "none"}),
    "top2": ("largest 2 %", {"kind": "topk", "ratio": 0.02}),
    "top2-plain": ("largest 2 %, no feedback", {"kind": "topk", "ratio": 0.02, "feedback": False}),
    "top3-8": ("largest 3 %, 8 bits", {"kind": "topk", "ratio": 0.03, "bits": 8}),
    "drawn5": ("drawn 5 %", {"kind": "randomk", "ratio": 0.05}),
    "rank4": ("rank 4, 8 bits", {"kind": "lowrank", "rank": 4, "bits": 8}),
    "layers": ("one layer", {"kind": "layers", "count": 1}),
    "bits8": ("8 bits", {"kind": "dense", "bits": 8}),
    "bits4": ("4 bits", {"kind": "dense", "bits": 4}),
}
Runs = Mapping[str, list[RunFolder]]


def up_by_round(run: RunFolder) -> tuple[list[int], list[float]]:
    """Rounds, and what the devices' links carried up in each, megabytes."""
    panel = run.cost("link", "up_bytes")
    return panel.rounds.tolist(), (panel.values[:, panel.nodes.index(LINK)] / 1e6).tolist()


def up_megabytes(run: RunFolder) -> float:
    """The same of the whole run."""
    return sum(up_by_round(run)[1])


def _over_bytes(runs: Runs) -> str:
    """Accuracy of the global model over what devices have sent, first seed."""
    series = {}
    for key, (title, _) in WAYS.items():
        run = runs[key][0]
        rounds, values = run.curve("global")
        sent = dict(zip(*up_by_round(run), strict=True))
        series[title] = [
            (sum(v for at, v in sent.items() if at <= r), 100 * float(y)) for r, y in zip(rounds, values, strict=True)
        ]
    return lines(series, title="Global model over bytes up", x="MB that devices have sent", y="accuracy, %")


STUDY = Study(
    name="compression",
    paper="compression with error feedback, docs/compression.md",
    compared="Accuracy of FedAvg's global model and what devices send, by how their changes are compressed.",
    unit="% accuracy; MB",
    cases=tuple(
        Case(key=key, label=key, tables=merged(BASE, {"links": {LINK: {"compress": table}}}))
        for key, (_, table) in WAYS.items()
    ),
    lines=tuple(
        Line(
            data="Fashion-MNIST",
            method=f"FedAvg, {title}",
            quantity=quantity,
            algorithm="fedavg",
            case=key,
            read=read,
        )
        for key, (title, _) in WAYS.items()
        for quantity, read in (("accuracy", accuracy("global")), ("MB up", up_megabytes))
    ),
    notes=(
        "One hundred devices with two label shards each in five fogs that relay; 30 % of the devices of a fog are "
        "polled in a round. What goes down is not compressed.",
        "What did not travel waits at its device and is added to its next change (error feedback), but where it says "
        "otherwise.",
    ),
    figures=(
        Figure(
            name="bytes",
            caption="Accuracy of the global model by the megabytes that devices have sent up.",
            draw=_over_bytes,
            cases=tuple(WAYS),
        ),
    ),
)
