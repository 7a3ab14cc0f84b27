"""T-00: relays are not there. Three and four tiers of them leave what a flat tree leaves."""

import pytest

from laws.cases import CASES, liftable, subject
from tierfed.testing.laws import relays_are_not_there
from tierfed.testing.toy import gap, make_engine, run, toy_task
from tierfed.testing.trees import small_plan, trees


@pytest.mark.parametrize("name", liftable())
def test_relays_are_not_there(name: str) -> None:
    relays_are_not_there(subject(name))


@pytest.mark.parametrize("kind", ["serial", "vectorized"])
def test_relays_poll_like_one_another(kind: str) -> None:
    """With partial polling it is the tree that decides who is asked, not who stands in between: an edge server that
    averages once over all of its devices hears the same devices as a relay."""
    task, plan, settings = toy_task(), small_plan(), trees(0.5, team_rounds=1)["4 tiers"]
    relayed, averaged = (make_engine(kind, CASES[name], task, plan, settings) for name in ("fedavg", "hierfavg"))
    for engine in (relayed, averaged):
        run(engine, 2)
    assert gap(relayed.kept(0, 0), averaged.kept(0, 0)) <= 1e-12
