"""Devices with different models: both engines do the same on every tree, chunks and kills change nothing, everybody is
evaluated with its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tierfed.algorithms import REGISTRY, make
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.engine.vectorized import Vectorized
from tierfed.store import DiskStore, MemoryStore, Store
from tierfed.task import Task
from tierfed.testing.toy import apart, gap, make_engine, run, toy_task
from tierfed.testing.trees import (
    DEVICES,
    FLOAT64,
    MODES,
    TREES,
    Trace,
    by_name,
    evaluated,
    happened,
    small_plan,
    trace,
    trees,
)

KINDS = np.array([0, 1, 0, 0, 1, 0, 1, 0, 0])
SMALL = {"subset": 7, "digest_batch": 4}
CASES = {
    "local": make("local"),
    "ftl": make("ftl", {"tune": "head"}),
    "fedmd": make("fedmd", {**SMALL, "public_epochs": 1}),
    "perfit-fd": make("perfit-fd", SMALL),
    "fd": make("fd", {"gamma": 0.5}),
    "fd, fog": make("fd", {"gamma": 0.5, "server_at": "fog"}),
}


def tasks(dropout: float = 0.0) -> list[Task]:
    """The toy network, and logistic regression on the same samples."""
    first = toy_task(dropout=dropout)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return [first, Task(nn.Linear(8, 4).double(), public=first.public, classes=4)]


def build(name: str, kind: str, tree: str, mode: str, store: Store | None = None, **changes: Any) -> Engine:
    settings, faults = trees(MODES[mode].participation)[tree], MODES[mode].faults
    plan = small_plan()
    return make_engine(kind, CASES[name], tasks(**changes), plan, settings, faults, store=store, kinds=KINDS)


def agree(a: Trace, b: Trace, limit: float = FLOAT64) -> None:
    assert [happened(log) for log in a.logs] == [happened(log) for log in b.logs]
    assert apart(a.engine, b.engine) <= limit
    everybody = np.arange(DEVICES)
    assert gap(evaluated(a.engine, everybody), evaluated(b.engine, everybody)) <= limit


def test_all_that_can_are_here() -> None:
    able = {name for name in REGISTRY if make(name).mixed_models}
    assert able == {name for name in CASES if name in REGISTRY}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", CASES)
def test_engines_agree(name: str, tree: str, mode: str) -> None:
    rounds = 3 if tree == "flat" else 2  # there a device is asked once a round
    both = [trace(build(name, kind, tree, mode, dropout=0.3), rounds) for kind in ("serial", "vectorized")]
    agree(both[0], both[1])


@pytest.mark.parametrize("name", CASES)
def test_chunks_do_not_matter(name: str) -> None:
    def after(size: int) -> Trace:
        engine = build(name, "vectorized", "3 tiers", "partial")
        assert isinstance(engine, Vectorized)
        engine.chunk = size
        return trace(engine, 2)

    agree(after(2), after(256))


@pytest.mark.parametrize("name", CASES)
def test_every_device_has_its_own(name: str) -> None:
    engine = run(build(name, "vectorized", "3 tiers", "full"), 2)
    for m in models(engine, np.arange(DEVICES)):
        keys = set(engine.tasks[KINDS[m.device]].keys)
        assert m.personal_post is not None
        assert m.personal_pre.keys() == m.personal_post.keys() == keys
        assert (m.global_model or {}) == (m.team or {}) == {}
        assert gap(m.personal_pre, m.personal_post) > 0.0


@pytest.mark.parametrize("name", ["local", "fd"])
def test_without_words_each_kind_trains_as_if_alone(name: str) -> None:
    """Local training, and FD without distillation, of a mixture: the same bits as in a run of one kind only."""
    algorithm = make(name, {"gamma": 0.0} if name == "fd" else {})
    mixed = run(make_engine("vectorized", algorithm, tasks(), small_plan(), kinds=KINDS), 2)
    for kind in range(2):
        alone = run(make_engine("vectorized", algorithm, tasks()[kind], small_plan()), 2)
        assert [gap(mixed.own(i), alone.own(i)) for i in np.flatnonzero(kind == KINDS)] == [0.0] * (kind == KINDS).sum()


@pytest.mark.parametrize("name", CASES)
def test_resumed_is_uninterrupted(name: str, tmp_path: Path) -> None:
    whole = run(build(name, "vectorized", "3 tiers", "lossy", MemoryStore()), 4)
    store = DiskStore(tmp_path / "state")
    half = run(build(name, "vectorized", "3 tiers", "lossy", store), 2)
    store.commit(half.meta(), [])
    half.step()  # killed before its commit
    store.close()
    store = DiskStore(tmp_path / "state")
    resumed = build(name, "vectorized", "3 tiers", "lossy", store)
    resumed.restore(store.meta)
    run(resumed, 2)
    store.commit(resumed.meta(), [])
    kept = by_name(whole)
    assert gap({k: store.get(k.partition("/")[0], int(k.partition("/")[2])) for k in kept}, kept) == 0.0
    store.close()


@pytest.mark.parametrize("name", ["local", "fedmd", "perfit-fd", "fd"])
def test_relays_are_not_there(name: str) -> None:
    """T-00"""
    flat, *others = (run(build(name, "vectorized", tree, "full"), 3) for tree in TREES)
    assert max(gap(flat.own(i), other.own(i)) for i in range(DEVICES) for other in others) <= 1e-12
