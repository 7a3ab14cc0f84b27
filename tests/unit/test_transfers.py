"""What crosses the links once: bytes on every level by hand, and their place among the costs of a run."""

from dataclasses import replace
from typing import Any

import numpy as np

from tierfed.config import load_config
from tierfed.metrics import Row
from tierfed.record import summed
from tierfed.session import Session
from tierfed.settings import build
from tierfed.setup import prepare
from tierfed.store import MemoryStore
from tierfed.topology import Topology, TopologySettings, build_topology
from tierfed.transfers import Transfer, bursts

EACH = np.array([1, 2, 4, 8], np.int64)


def tree(**changes: object) -> Topology:
    """Two fogs with two devices each: 0 and 1, 2 and 3."""
    settings = build(TopologySettings, {"fogs": [2], "teams": "sequential", **changes}, "topology")
    return build_topology(settings, np.full(4, 10, np.int64), 0, None)


def loads(transfer: Transfer, topology: Topology) -> dict[int, tuple[list[int], list[int]]]:
    return {b.depth: (b.down_bytes.tolist(), b.up_bytes.tolist()) for b in bursts(transfer, topology)}


def test_a_fog_passes_on_what_its_devices_get_and_give() -> None:
    moved = Transfer(what="", down_bytes=EACH, up_bytes=10 * EACH)
    assert loads(moved, tree()) == {0: ([3, 12], [30, 120]), 1: ([1, 2, 4, 8], [10, 20, 40, 80])}


def test_one_copy_for_all_devices_of_a_fog() -> None:
    moved = Transfer(what="", down_bytes=np.full(4, 5), up_bytes=np.zeros(4, np.int64), common=True)
    assert loads(moved, tree()) == {0: ([5, 5], [0, 0]), 1: ([5] * 4, [0] * 4)}


def test_to_the_parent_only() -> None:
    moved = Transfer(what="", down_bytes=0 * EACH, up_bytes=EACH, end="parent")
    assert loads(moved, tree()) == {1: ([0] * 4, [1, 2, 4, 8])}


def test_links_without_load_are_left_out() -> None:
    moved = Transfer(what="", down_bytes=np.array([0, 0, 0, 7]), up_bytes=0 * EACH)
    (cloud, fog) = bursts(moved, tree())
    assert (cloud.kids.tolist(), fog.kids.tolist()) == ([1], [3])


def test_costs_of_several_parts_are_added() -> None:
    def row(metric: str, value: float) -> Row:
        return Row(0, "link", "a", "", "", metric, value)

    parts = [row("up_bytes", 3), row("clock_seconds", 1), row("up_bytes", 4), row("clock_seconds", 2)]
    assert summed(parts) == [row("up_bytes", 7), row("clock_seconds", 2)]


def test_a_run_counts_it_before_its_first_round() -> None:
    world = prepare(load_config("quickstart", {"run.rounds": 1, "data.devices": 4, "eval.post": False}))
    n = len(world.federation)
    moved = Transfer(what="public samples", down_bytes=np.full(n, 100), up_bytes=np.arange(n), common=True)
    world = replace(world, transfers=(moved,))
    store, rows, events = MemoryStore(), list[Row](), list[dict[str, Any]]()
    Session(world, world.engine(store), store, None, rows, events, None, None, {}).begin()
    link = world.topology.links[-1]
    found = {r.metric: r.value for r in rows if r.round == 0 and r.tier == "link" and r.node == link}
    assert (found["down_bytes"], found["up_bytes"]) == (100 * n, n * (n - 1) / 2)
    (event,) = [e for e in events if e["event"] == "transfer"]
    assert (event["what"], event["down_bytes"]) == ("public samples", 100 * n)
    assert store.meta["bytes"] == sum(r.value for r in rows if r.tier == "link" and r.metric.endswith("bytes"))
