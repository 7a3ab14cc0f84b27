"""A run that is killed and goes on leaves the same bits as one that was never interrupted."""

from pathlib import Path

import pytest

from laws.cases import CASES, subject, task_of
from tierfed.store import MemoryStore
from tierfed.testing.laws import resumed_is_uninterrupted
from tierfed.testing.toy import gap, make_engine
from tierfed.testing.trees import MODES, by_name, small_plan, trace, trees

RUNS = [(name, "vectorized") for name in CASES] + [(name, "serial") for name in ("scaffold, edge", "jobfed", "fedbn")]


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_resumed_is_uninterrupted(name: str, kind: str, tmp_path: Path) -> None:
    resumed_is_uninterrupted(subject(name), tmp_path, kind)


def test_a_discarded_round_is_forgotten() -> None:
    store, name = MemoryStore(), "scaffold, edge"
    settings, lossy = trees(0.7)["3 tiers"], MODES["lossy"].faults
    engine = make_engine("vectorized", CASES[name], task_of(name), small_plan(), settings, lossy, store=store)
    trace(engine, 1)
    store.commit(engine.meta(), [])
    before = dict(by_name(engine))
    engine.step()
    assert gap(by_name(engine), before) > 0.0
    store.discard()
    assert gap(by_name(engine), before) == 0.0
