"""Rules, attacks and compression: both engines do the same with them, and a run that goes on has the same bits."""

from typing import Any

import pytest

from laws.cases import CASES, task_of
from laws.world import MODES, by_name, small_plan, trace, trees
from support import make_engine
from tierfed.engine import Engine
from tierfed.links import AttackSettings, Links, LinkSettings, build_links
from tierfed.settings import build
from tierfed.store import Store
from tierfed.testing.laws import agree, same
from tierfed.topology import build_topology

RULES = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_bound")
FLIP = {"kind": "sign_flip", "attackers": 0.4, "strength": 2.0}


def linked(tree: str, links: dict[str, Any], attack: dict[str, Any] | None = None) -> Links:
    """The links of a toy tree."""
    plan = small_plan()
    topology = build_topology(trees(0.7)[tree], plan.samples)
    tables = {k: build(LinkSettings, v, f"links.{k}") for k, v in links.items()}
    return build_links(tables, build(AttackSettings, attack or {}, "attack"), topology.levels, topology.shape, 0)


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
