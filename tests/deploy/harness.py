"""A whole tree for tests: in this process over the network in memory, or as real processes on loopback."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tierfed.config import Config, from_table
from tierfed.data import Federation
from tierfed.deploy.memory import Memory
from tierfed.deploy.names import tree_nodes
from tierfed.deploy.process import AtWork, Cloud, Nodes, begin_node, world_of
from tierfed.engine import Engine
from tierfed.evaluation import evaluate
from tierfed.faults import Faults
from tierfed.loop import Over, Result
from tierfed.loop import run as simulate
from tierfed.setup import World
from tierfed.store import DiskStore, MemoryStore
from tierfed.testing.toy import gap
from tierfed.tree import Tree

DEVICES, TEAMS, ROWS, FEATURES = 12, 3, 16, 6


def arrays() -> dict[str, Any]:
    """Twelve devices in three teams with unequal numbers of rows; the team turns what decides the label."""
    rng = np.random.default_rng(11)
    sizes = rng.integers(ROWS, 2 * ROWS, DEVICES)
    device = np.repeat(np.arange(DEVICES), sizes)
    team = np.arange(DEVICES) % TEAMS
    x = rng.normal(size=(len(device), FEATURES)).astype(np.float32)
    score = x[:, 0] * np.where(team[device] % 2, 1.0, -1.0) + 0.5 * x[:, 1]
    return {"x": x, "y": (score > 0).astype(np.int64), "device": device, "team": team[device]}


def config(folder: Path, algorithm: dict[str, Any], **tables: dict[str, Any]) -> Config:
    """A run of three rounds over the data above, which are written into the folder."""
    path = folder / "data.npz"
    if not path.exists():
        np.savez(path, **arrays())
    base: dict[str, dict[str, Any]] = {
        "run": {"rounds": 3, "threads": 1, "dtype": "float64", "out": str(folder / "run")},
        "data": {"source": "npz", "path": str(path), "batch": 6},
        "model": {"name": "mlp", "options": {"hidden": [6], "batch_norm": algorithm["name"] == "jobfed"}},
        "algorithm": {"lr": 0.05, **algorithm},
        "topology": {"teams": "natural", "team_rounds": 2},
        "eval": {"every": 1},
        "deploy": {"deadline_seconds": 120.0, "retry_seconds": 0.5},
    }
    return from_table({k: {**base.get(k, {}), **tables.get(k, {})} for k in {**base, **tables}})


@contextmanager
def tree(config: Config, network: Memory, memory: bool = True) -> Iterator[dict[str, AtWork]]:
    """All fogs and devices of a config at work in this process, by name."""
    nodes, by_name, compute = Nodes(), dict[str, AtWork](), threading.Lock()
    world = world_of(config)
    try:
        for one in tree_nodes(world.topology, world.federation.devices):
            if one.tier == "cloud":
                continue
            # devices share a world and take turns, as in one process; every fog computes at its own time
            own = one.name if one.tier == "device" and config.deploy.devices else ""
            theirs = world if one.tier == "device" and not own else world_of(config, own)
            lock = compute if theirs is world else None
            by_name[one.name] = begin_node(theirs, one.name, one.tier, network, memory=memory, compute=lock)
            nodes.at_work.append(by_name[one.name])
        yield by_name
    finally:
        nodes.close()


class Deployment(NamedTuple):
    """A run whose nodes were processes, or could have been.

    :param kept: models and rows of all nodes, as the store of a simulation has them
    :param sent: payload that was measured, by link and way
    """

    result: Result
    kept: dict[str, Tree]
    sent: dict[tuple[int, str], int]


def deploy(config: Config, folder: bool = False) -> Deployment:
    """A run in this process, over the network in memory."""
    network = Memory()
    cloud = Cloud(config, network)
    try:
        with tree(config, network) as nodes:
            result = cloud.run(folder=folder)
            kept = everything(result, nodes)
            sent = Counter[tuple[int, str]]()
            for engine in (cloud.engine, *(one.node.engine for one in nodes.values())):
                assert engine is not None
                sent.update(engine.moved)
    finally:
        network.close()
    return Deployment(result, kept, dict(sent))


def everything(result: Result, nodes: dict[str, AtWork]) -> dict[str, Tree]:
    """The models and rows of cloud, fogs and devices, as the store of a simulation has them."""
    store = result.engine.store
    if isinstance(store, DiskStore):  # it was closed at the end of the run
        with closing(DiskStore(store.path)) as again:
            out = models_of(again)
    else:
        out = models_of(store)
    for one in nodes.values():
        out |= models_of(one.node.journal)
    return out


def models_of(store: Any) -> dict[str, Tree]:
    """Records of nodes by table and id."""
    tables = ["own", *(f"{name}{d}" for name in ("kept", "rows") for d in range(4))]
    return {f"{t}/{i}": store.get(t, i) for t in tables for i in store.ids(t)}


def simulated(
    config: Config, federation: Federation | None = None, faults: Faults | None = None
) -> tuple[Result, dict[str, Tree]]:
    """The same run in simulation, one node after the other.

    :param federation: in the place of [data]; :param faults: in the place of [faults]
    """

    def engine(world: World, store: Any, tell: Any) -> Engine:
        made = world.engine(store, tell)
        made.faults = faults or made.faults
        return made

    over = Over(engine, evaluate, federation)
    result = simulate(replace(config, engine=replace(config.engine, name="serial")), folder=False, over=over)
    assert isinstance(result.engine.store, MemoryStore)
    return result, models_of(result.engine.store)


def distance(a: dict[str, Tree], b: dict[str, Tree]) -> float:
    """The largest difference of anything that is kept."""
    return gap(a, b)
