"""T-00: relays are not there. Three and four tiers of them leave what a flat tree leaves."""

import pytest

from laws.cases import CASES, liftable, task_of
from laws.world import ROUNDS, by_name, small_plan, trees
from support import gap, make_engine, run, toy_task
from tierfed.engine.base import Engine
from tierfed.tree import Tree


def without_fogs(engine: Engine) -> Tree:
    """What the cloud and the devices keep, and what the cloud remembers of devices."""
    return {k: v for k, v in by_name(engine).items() if k.partition("/")[0] in ("own", "kept0", "rows0")}


@pytest.mark.parametrize("name", liftable())
def test_relays_are_not_there(name: str) -> None:
    task, plan = task_of(name), small_plan()
    flat, *others = (
        without_fogs(run(make_engine("vectorized", CASES[name], task, plan, settings), ROUNDS))
        for settings in trees().values()
    )
    assert "kept0/0" in flat
    assert [gap(flat, other) <= 1e-12 for other in others] == [True] * 3


@pytest.mark.parametrize("kind", ["serial", "vectorized"])
def test_relays_poll_like_one_another(kind: str) -> None:
    """With partial polling it is the tree that decides who is asked, not who stands in between: an edge server that
    averages once over all of its devices hears the same devices as a relay."""
    task, plan, settings = toy_task(), small_plan(), trees(0.5, team_rounds=1)["4 tiers"]
    relayed, averaged = (make_engine(kind, CASES[name], task, plan, settings) for name in ("fedavg", "hierfavg"))
    for engine in (relayed, averaged):
        run(engine, 2)
    assert gap(relayed.kept(0, 0), averaged.kept(0, 0)) <= 1e-12
