"""Rules, attacks and compression: both engines do the same with them, and a run that goes on has the same bits."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laws.cases import CASES, task_of
from tierfed.engine import Engine
from tierfed.engine.log import RoundLog
from tierfed.links import AttackSettings, Compress, Links, LinkSettings, build_links
from tierfed.settings import build
from tierfed.store import DiskStore, Store
from tierfed.testing.laws import agree, same
from tierfed.testing.toy import make_engine
from tierfed.testing.trees import MODES, by_name, happened, small_plan, trace, trees
from tierfed.topology import build_topology

RULES = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_bound")
FLIP = {"kind": "sign_flip", "attackers": 0.4, "strength": 2.0}


def linked(tree: str, links: dict[str, Any], attack: dict[str, Any] | None = None) -> Links:
    """The links of a toy tree."""
    plan = small_plan()
    topology = build_topology(trees(0.7)[tree], plan.samples)
    tables = {k: build(LinkSettings, v, f"links.{k}") for k, v in links.items()}
    return build_links(tables, build(AttackSettings, attack or {}, "attack"), topology.levels, topology.shape, 0)


def up_bytes(logs: Sequence[RoundLog]) -> int:
    return sum(int(b.up_bytes.sum()) for log in logs for b in log.bursts)


def engine_of(kind: str, name: str, tree: str, links: Links, store: Store | None = None) -> Engine:
    return make_engine(
        kind,
        CASES[name],
        task_of(name),
        small_plan(),
        trees(0.7)[tree],
        MODES["lossy"].faults,
        store=store,
        links=links,
    )


@pytest.mark.parametrize(
    ("rule", "name", "tree"),
    [
        ("median", "fedavg", "3 tiers"),
        ("trimmed_mean", "permfl", "4 tiers"),
        ("krum", "fedavg", "flat"),
        ("multi_krum", "ditto", "3 tiers"),
        ("geometric_median", "jobfed", "clusters"),
        ("norm_bound", "mtfl", "3 tiers"),
    ],
)
def test_engines_agree_under_rules(rule: str, name: str, tree: str) -> None:
    links = linked(tree, {"all": {"reduce": {"rule": rule, "bound": 0.05}}}, FLIP)
    agree(*(trace(engine_of(kind, name, tree, links)) for kind in ("serial", "vectorized")))


@pytest.mark.parametrize("kind", ["sign_flip", "noise", "scale"])
def test_attackers_change_what_is_learned(kind: str) -> None:
    attack = {"kind": kind, "attackers": 2, "strength": 3.0, "tier": "fog"}
    plain, attacked = linked("3 tiers", {}), linked("3 tiers", {}, attack)
    both = [trace(engine_of(k, "hierfavg", "3 tiers", attacked)) for k in ("serial", "vectorized")]
    agree(*both)
    far = by_name(trace(engine_of("vectorized", "hierfavg", "3 tiers", plain)).engine)
    with pytest.raises(AssertionError, match="differ"):
        same("with attackers", by_name(both[0].engine), far, 1e-3)


COMPRESSED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "top": ("fedavg", "3 tiers", {"all": {"compress": {"kind": "topk", "ratio": 0.1}}}),
    "drawn, owed": ("scaffold", "flat", {"all": {"compress": {"kind": "randomk", "ratio": 0.2, "bits": 8}}}),
    "owed at fogs": ("scaffold, edge", "3 tiers", {"all": {"compress": {"kind": "randomk", "ratio": 0.2}}}),
    "rank, then median": (
        "jobfed",
        "4 tiers",
        {"fog-device": {"compress": {"kind": "lowrank"}}, "region-fog": {"reduce": {"rule": "median"}}},
    ),
    "one server": ("pfedla", "3 tiers", {"fog-device": {"compress": {"kind": "topk", "ratio": 0.3}}}),
    "layers": ("permfl", "clusters", {"cluster-device": {"compress": {"kind": "layers", "bits": 8}}}),
}


@pytest.mark.parametrize("case", COMPRESSED)
def test_engines_agree_on_compressed_replies(case: str) -> None:
    name, tree, links = COMPRESSED[case]
    both = [trace(engine_of(kind, name, tree, linked(tree, links))) for kind in ("serial", "vectorized")]
    agree(*both)
    plain = trace(engine_of("vectorized", name, tree, linked(tree, {})))
    assert up_bytes(both[0].logs) < 0.9 * up_bytes(plain.logs)
    residuals = [k for k in by_name(both[0].engine) if k.startswith("link")]
    assert residuals


@pytest.mark.parametrize("case", ["owed at fogs", "rank, then median"])
def test_a_resumed_run_has_its_residuals(case: str, tmp_path: Path) -> None:
    name, tree, links = COMPRESSED[case]
    whole = trace(engine_of("vectorized", name, tree, linked(tree, links)), 4).engine
    path, first = tmp_path / "state", DiskStore(tmp_path / "state")
    engine = trace(engine_of("vectorized", name, tree, linked(tree, links), first), 2).engine
    first.commit(engine.meta(), [])
    engine.step()  # killed before it was committed
    first.close()
    store = DiskStore(path)
    again = engine_of("vectorized", name, tree, linked(tree, links), store)
    again.restore(store.meta)
    trace(again, 2)
    for key, record in by_name(whole).items():
        table, ident = key.split("/")
        same(key, store.get(table, int(ident)), record)
    store.close()


def test_no_compression_is_as_if_there_were_none() -> None:
    """The same bits, and nothing more is kept."""
    runs = [
        trace(engine_of("vectorized", "jobfed", "3 tiers", linked("3 tiers", links)))
        for links in ({}, {"all": {"compress": {"kind": "none"}, "reduce": {"rule": "mean"}}})
    ]
    same("without compression", by_name(runs[0].engine), by_name(runs[1].engine))
    assert [happened(log) for log in runs[0].logs] == [happened(log) for log in runs[1].logs]


def test_a_lossless_link_is_no_link() -> None:
    """All entries by their places: the same run, up to the rounding of a difference and a sum."""
    every = linked("3 tiers", {"all": {"compress": {"kind": "topk", "ratio": 1.0}}})
    runs = [
        trace(engine_of("vectorized", "scaffold, edge", "3 tiers", links)) for links in (every, linked("3 tiers", {}))
    ]
    kept = [{k: v for k, v in by_name(r.engine).items() if not k.startswith("link")} for r in runs]
    same("with all entries", *kept, 1e-12)


def test_bytes_of_a_run_are_those_of_the_formula() -> None:
    """Every device that answered has sent a tenth of its model: 4 bytes for each place, 8 for each number."""
    links = linked("flat", {"all": {"compress": {"kind": "topk", "ratio": 0.1}}})
    run = trace(engine_of("serial", "fedavg", "flat", links))
    step, keys = links.above(1).steps[0], task_of("fedavg").init()
    assert isinstance(step, Compress)
    each = step.size({k: tuple(t.shape) for k, t in keys.items()}, 8)
    total = sum(t.numel() for t in keys.values())
    assert each == 12 * math.ceil(0.1 * total)
    for log in run.logs:
        sent = np.concatenate([b.up_bytes for b in log.bursts])
        assert set(sent.tolist()) <= {0, each}
        assert sent.any()
