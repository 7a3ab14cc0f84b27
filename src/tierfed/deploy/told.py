"""What nodes tell of a visit beside their message: the log of their links, the scalars that are followed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tierfed.cost import Burst, Visit
from tierfed.engine.log import RoundLog

Traces = dict[tuple[int, int], dict[str, float]]
"""Of (level, node)."""


def log_as_json(log: RoundLog) -> dict[str, Any]:
    """A log of a part of the tree; chains and offloading are not deployed."""
    return {
        "bursts": [
            [b.depth, b.tick, b.parents.tolist(), b.kids.tolist(), b.down_bytes.tolist(), b.up_bytes.tolist()]
            for b in log.bursts
        ],
        "visits": [[v.tick, v.devices.tolist(), v.samples.tolist(), v.factor.tolist()] for v in log.visits],
        "lost": [[d, n] for d, n in log.lost.items()],
        "silent": [[d, n] for d, n in log.silent.items()],
    }


def add_log(log: RoundLog, told: Mapping[str, Any]) -> None:
    """Adds what a child has told to what is known already."""
    for depth, tick, *arrays in told["bursts"]:
        parents, kids, down, up = (np.array(a, np.int64) for a in arrays)
        log.bursts.append(Burst(depth=depth, tick=tick, parents=parents, kids=kids, down_bytes=down, up_bytes=up))
    for tick, devices, samples, slow in told["visits"]:
        found = np.array(devices, np.int64), np.array(samples, np.int64), np.array(slow, np.float64)
        log.visits.append(Visit(tick=tick, devices=found[0], samples=found[1], slowdown=found[2]))
    for mine, theirs in ((log.lost, told["lost"]), (log.silent, told["silent"])):
        for d, n in theirs:
            mine[d] = mine.get(d, 0) + n


def traces_as_json(traces: Traces) -> list[Any]:
    return [[level, node, values] for (level, node), values in traces.items() if values]


def add_traces(traces: Traces, told: list[Any]) -> None:
    for level, node, values in told:
        traces[int(level), int(node)] = {str(k): float(v) for k, v in values.items()}
