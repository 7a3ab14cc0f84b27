"""What goes wrong: nothing heard changes nothing, who is away stays as it was, what was lost is still owed."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from laws.cases import CASES, VARIANTS, subject
from tierfed.algorithm import Algorithm
from tierfed.algorithms import make
from tierfed.engine.base import Engine
from tierfed.faults import Faults
from tierfed.testing.laws import silence_changes_nothing
from tierfed.testing.toy import ENGINES, Ids, apart, gap, make_engine, records, run, toy_task
from tierfed.testing.trees import DEVICES, MODES, Exactly, by_name, happened, small_plan, trace, trees
from tierfed.topology import Topology
from tierfed.tree import Params, Tree, nbytes, tmap, zeros

FAR = ["3 tiers", "4 tiers"]


def total(trees_: list[Params], like: Params) -> Params:
    """The sum of some trees."""
    out: Params = zeros(like)
    for t in trees_:
        out = tmap(lambda a, b: a + b, out, t)
    return out


def table(engine: Engine, name: str) -> dict[int, Tree]:
    """The records of one table, by id."""
    return {ident: record for (t, ident), record in records(engine).items() if t == name}


@pytest.mark.parametrize(
    ("name", "kind"), [(n, "vectorized") for n in CASES] + [(n, "serial") for n in CASES if n not in VARIANTS]
)
def test_silence_changes_nothing(name: str, kind: str) -> None:
    silence_changes_nothing(subject(name), kind)


@pytest.mark.parametrize("kind", ENGINES)
def test_nothing_below_a_fog_that_is_away_moves(kind: str) -> None:
    engine = make_engine(
        kind, CASES["hierfavg"], toy_task(), small_plan(), trees()["3 tiers"], Exactly(away_at=((1, 2, 0),))
    )
    teams, log = engine.topology.parents[-1], engine.step()
    computed = {int(i) for v in log.visits for i in v.devices}
    assert computed == set(np.flatnonzero(teams != 2).tolist())
    assert set(table(engine, "kept1")) == {0, 1, 3}
    assert log.silent == {0: 1}
    assert not any(2 in b.parents for b in log.bursts if b.depth == 1)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("name", ["scaffold", "fedbn", "jobfed"])
def test_a_device_whose_reply_is_lost_has_moved(name: str, kind: str) -> None:
    """The same private state as without the loss, in a round that starts from the same cloud."""
    task, plan, device = toy_task(), small_plan(), 4

    def after(faults: Faults) -> Engine:
        return run(make_engine(kind, CASES[name], task, plan, trees(team_rounds=1)["flat"], faults), 1)

    lost, heard = after(Exactly(lost_at=((1, device, 0),))), after(Faults())
    assert gap(table(lost, "own"), table(heard, "own")) == 0.0
    assert gap(table(lost, "own")[device], lost.algorithm.init(task, task.init())) > 1e-3
    assert gap(lost.kept(0, 0)["params"], heard.kept(0, 0)["params"]) > 1e-4
    assert lost.log.lost == {0: 1}


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("tree", ["flat", *FAR, "clusters"])
def test_lost_bytes_were_sent(tree: str, kind: str) -> None:
    """A lost reply has crossed its link: the same bytes on the lowest link as without losses, fewer above."""
    task, plan = toy_task(), small_plan()

    def carried(faults: Faults) -> dict[tuple[int, str], int]:
        return make_engine(kind, CASES["fedavg"], task, plan, trees()[tree], faults).step().link_bytes()

    sent, lost = carried(Faults()), carried(Faults(loss=1.0))
    lowest = max(depth for depth, _ in sent)
    assert lost[lowest, "up"] == sent[lowest, "up"] > 0
    assert all(lost[d, "up"] == 0 for d in range(lowest))
    assert all(lost[d, "down"] == sent[d, "down"] for d in range(lowest + 1))


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("tree", ["flat", *FAR])
def test_what_was_lost_is_still_owed(tree: str, edge: bool, kind: str) -> None:
    """SCAFFOLD: N c at the cloud, and what is on its way on every link, are together the sum of all c_i."""
    algorithm = make("scaffold", {"edge": edge})
    engine = make_engine(kind, algorithm, toy_task(), small_plan(), trees(0.7)[tree], Faults(loss=0.4))
    for _ in range(4):
        engine.step()
        c = engine.kept(0, 0)["c"]
        owed = [r["dc"] for (t, _), r in records(engine).items() if t.startswith("owed")]
        arrived = tmap(lambda t: DEVICES * t, c)
        assert gap(total([arrived, *owed], c), total([r["c"] for r in table(engine, "own").values()], c)) <= 1e-11
    assert any(t.startswith("owed") for t, _ in records(engine))


@pytest.mark.parametrize("kind", ENGINES)
def test_what_is_owed_arrives_with_the_next_reply(kind: str) -> None:
    engine = make_engine(
        kind, CASES["scaffold"], toy_task(), small_plan(), trees()["flat"], Exactly(lost_at=((1, 3, 0), (1, 7, 0)))
    )
    engine.step()
    assert set(table(engine, "owed1")) == {3, 7}
    engine.step()
    assert table(engine, "owed1") == {}
    c = engine.kept(0, 0)["c"]
    every = total([r["c"] for r in table(engine, "own").values()], c)
    assert gap(tmap(lambda t: DEVICES * t, c), every) <= 1e-12


@dataclass
class Stopwatch:
    """A virtual clock on which a visit takes as many seconds as the device processes samples, times its slowdown."""

    asked: list[tuple[Ids, Ids, Ids, Ids]] = field(default_factory=list)

    def visit_seconds(
        self, topology: Topology, devices: Ids, down: Ids, up: Ids, samples: Ids, slow: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        assert topology.devices == DEVICES
        self.asked.append((devices, down, up, samples))
        return np.asarray(samples * slow)


def timed(kind: str, algorithm: Algorithm, tree: str, faults: Faults, clock: Stopwatch | None) -> Engine:
    return make_engine(kind, algorithm, toy_task(), small_plan(), trees()[tree], faults, clock=clock)


@pytest.mark.parametrize("tree", ["flat", *FAR])
@pytest.mark.parametrize("name", ["fedavg", "scaffold", "scaffold, edge", "jobfed"])
def test_late_is_lost(name: str, tree: str) -> None:
    """A visit beyond the deadline: as if the reply of exactly these devices were lost, in both engines."""
    plan, depth = small_plan(), {"flat": 1, "3 tiers": 2, "4 tiers": 3}[tree]
    samples = np.array([plan.width(i) * plan.steps(i, CASES[name]) for i in range(DEVICES)])
    deadline = 8.5
    late = tuple((depth, int(i), r) for i in np.flatnonzero(samples > deadline) for r in range(2))
    assert 0 < len(late) < 2 * DEVICES
    lost = trace(timed("serial", CASES[name], tree, Exactly(lost_at=late), None), 2)
    for kind in ENGINES:
        slow = trace(timed(kind, CASES[name], tree, Faults(deadline_seconds=deadline), Stopwatch()), 2)
        assert apart(slow.engine, lost.engine) <= 1e-10
        assert [happened(log) for log in slow.logs] == [happened(log) for log in lost.logs]


@pytest.mark.parametrize("kind", ENGINES)
def test_the_clock_is_told_what_was_carried(kind: str) -> None:
    clock = Stopwatch()
    engine = timed(kind, CASES["fedavg"], "flat", Faults(deadline_seconds=1e9), clock)
    log = engine.step()
    model = nbytes(toy_task().init())
    ((devices, down, up, samples),) = clock.asked
    assert devices.tolist() == list(range(DEVICES))
    assert down.tolist() == up.tolist() == [model] * DEVICES
    plan = small_plan()
    assert samples.tolist() == [plan.width(i) * plan.steps(i, CASES["fedavg"]) for i in range(DEVICES)]
    assert log.lost == {}


def test_slow_devices_are_late_in_both_engines() -> None:
    faults = Faults(deadline_seconds=12.0, slowdown=1.0)
    both = [trace(timed(kind, CASES["fedavg"], "3 tiers", faults, Stopwatch()), 2) for kind in ENGINES]
    assert [happened(log) for log in both[0].logs] == [happened(log) for log in both[1].logs]
    assert apart(both[0].engine, both[1].engine) <= 1e-10
    assert 0 < sum(log.lost.get(1, 0) for log in both[0].logs) < 4 * DEVICES


def test_without_a_clock_nobody_is_late() -> None:
    deadline, free = (
        timed("vectorized", CASES["fedavg"], "flat", f, None) for f in (Faults(deadline_seconds=1e-9), Faults())
    )
    run(deadline, 1)
    run(free, 1)
    assert gap(by_name(deadline), by_name(free)) == 0.0


def test_the_fates_of_a_round_do_not_depend_on_the_algorithm() -> None:
    """Who is polled, away and lost is the run's, so that two algorithms meet the same world."""
    plan = small_plan()
    logs = [
        trace(
            make_engine("vectorized", CASES[name], toy_task(), plan, trees(0.7)["flat"], MODES["lossy"].faults), 3
        ).logs
        for name in ("fedavg", "scaffold")
    ]
    for a, b in zip(*logs, strict=True):
        assert (a.lost, a.silent) == (b.lost, b.silent)
        assert [v.devices.tolist() for v in a.visits] == [v.devices.tolist() for v in b.visits]
    assert any(a.lost for a in logs[0])
