"""A run that is killed and goes on leaves the same bits as one that was never interrupted."""

from pathlib import Path

import numpy as np
import pytest

from laws.cases import CASES, fits, task_of
from laws.world import DEVICES, MODES, by_name, happened, small_plan, trace, trees
from support import gap, make_engine, records
from tierfed.engine.base import Engine
from tierfed.store import DiskStore, MemoryStore, Store
from tierfed.tree import Tree


def tree_of(name: str) -> str:
    return "3 tiers" if fits(name, "3 tiers") else "clusters"


def build(name: str, kind: str, store: Store) -> Engine:
    settings = trees(0.7)[tree_of(name)]
    return make_engine(kind, CASES[name], task_of(name), small_plan(), settings, MODES["lossy"].faults, store=store)


def regroup(engine: Engine) -> None:
    """Devices change team from outside, beside what the algorithm itself does."""
    lowest = engine.topology.nodes[-1]
    engine.set_topology(engine.topology.regrouped(np.random.default_rng(11).integers(0, lowest, DEVICES)))


def read_back(store: DiskStore, whole: Engine) -> Tree:
    """The committed records of every table that the whole run has."""
    tables = {t for t, _ in records(whole)}
    return {f"{t}/{i}": store.get(t, i) for t in tables for i in store.ids(t)}


RUNS = [(name, "vectorized") for name in CASES] + [(name, "serial") for name in ("scaffold, edge", "jobfed", "fedbn")]


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_resumed_is_uninterrupted(name: str, kind: str, tmp_path: Path) -> None:
    whole = build(name, kind, MemoryStore())
    first = trace(whole, 2)
    regroup(whole)
    rest = trace(whole, 2)

    store = DiskStore(tmp_path / "state")
    half = build(name, kind, store)
    again = trace(half, 2)
    regroup(half)
    store.commit(half.meta(), [])
    half.step()  # killed before its commit
    store.close()

    store = DiskStore(tmp_path / "state")
    resumed = build(name, kind, store)
    resumed.restore(store.meta)
    assert resumed.round == 2
    last = trace(resumed, 2)
    store.commit(resumed.meta(), [])
    assert [happened(log) for log in first.logs + rest.logs] == [happened(log) for log in again.logs + last.logs]
    assert (whole.round, whole.topology.parents[-1].tolist()) == (resumed.round, resumed.topology.parents[-1].tolist())
    assert gap(read_back(store, whole), by_name(whole)) == 0.0
    store.close()


def test_a_discarded_round_is_forgotten() -> None:
    store = MemoryStore()
    engine = build("scaffold, edge", "vectorized", store)
    trace(engine, 1)
    store.commit(engine.meta(), [])
    before = dict(by_name(engine))
    engine.step()
    assert gap(by_name(engine), before) > 0.0
    store.discard()
    assert gap(by_name(engine), before) == 0.0
