"""What goes wrong between processes, on the network in memory: every drill ends with the model of a simulation."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.harness import config, distance, everything, models_of, simulated, tree
from tierfed.config import Config
from tierfed.deploy.frame import Frame
from tierfed.deploy.joining import address
from tierfed.deploy.memory import Memory
from tierfed.deploy.process import AtWork, Cloud, begin_node, world_of
from tierfed.errors import InputError
from tierfed.loop import Progress
from tierfed.store import DiskStore, MemoryStore
from tierfed.testing.trees import Exactly

JOBFED = {"name": "jobfed"}
LONG = 120.0


@pytest.fixture
def network() -> Iterator[Memory]:
    made = Memory()
    yield made
    made.close()


def small(folder: Path, algorithm: dict[str, Any] = JOBFED, **tables: Any) -> Config:
    return config(folder, algorithm, **{"eval": {"every": 10, "post": False}, **tables})


def at_round(number: int, do: Callable[[], object]) -> Callable[[Progress], None]:
    """A watcher that does something once, after a round."""
    done = []

    def watch(progress: Progress) -> None:
        if progress.round == number and not progress.doing and not done:
            done.append(progress)
            do()

    return watch


def blocked(one: AtWork, round_: int) -> threading.Event:
    """A device that begins a round and does not come back until the event is set."""
    go, answer = threading.Event(), one.member.answer

    def slow(frame: Frame, going: Callable[[], bool]) -> bytes:
        if (frame.kind, frame.header["round"]) == ("ask", round_):
            go.wait(LONG)
        return answer(frame, going)

    one.member.answer = slow
    return go


def test_a_straggler_is_as_one_whose_reply_was_lost(network: Memory, tmp_path: Path) -> None:
    """It moves and nobody hears of it; when it comes back it goes on from there."""
    waits = {"deadline_seconds": [LONG, 5.0], "quorum": [1.0, 0.5]}
    wanted = small(tmp_path, topology={"team_rounds": 1}, deploy=waits)
    cloud = Cloud(wanted, network)
    with tree(wanted, network) as nodes:
        go = blocked(nodes["4"], 1)
        result = cloud.run(at_round(2, go.set), folder=False)
        kept = everything(result, nodes)
    simulation, models = simulated(wanted, faults=Exactly(lost_at=((2, 4, 1),)))
    assert distance(kept, models) < 1e-10
    lost = [e for e in result.events if e["event"] == "lost"]
    assert lost == [e for e in simulation.events if e["event"] == "lost"]
    assert len(lost) == 1


def test_too_few_are_an_error_that_names_who_is_missing(network: Memory, tmp_path: Path) -> None:
    wanted = small(tmp_path, deploy={"deadline_seconds": [LONG, 5.0]})
    with tree(wanted, network) as nodes:
        go = blocked(nodes["4"], 1)
        told = (
            r"round 2 at cloud: .* missing: fog-. \(round 2 at fog-.: . of . have answered, .* missing: 4 \(no answer"
        )
        try:
            with pytest.raises(InputError, match=told):
                Cloud(wanted, network).run(folder=True)
        finally:
            go.set()
        result = Cloud(wanted, network).run(folder=True)
        kept = everything(result, nodes)
    assert result.trained == 2
    assert distance(kept, simulated(wanted)[1]) < 1e-10


def test_connections_that_break_all_the_time(network: Memory, tmp_path: Path) -> None:
    wanted = small(tmp_path)
    world = world_of(wanted)
    stop = threading.Event()

    def cut() -> None:
        while not stop.wait(0.05):
            for name in ("cloud", "fog-0", "fog-1", "fog-2"):
                network.cut(address(world, name))

    cloud, breaking = Cloud(wanted, network), threading.Thread(target=cut)
    with tree(wanted, network) as nodes:
        breaking.start()
        try:
            result = cloud.run(at_round(2, stop.set), folder=False)
        finally:
            stop.set()
            breaking.join()
        kept = everything(result, nodes)
    assert distance(kept, simulated(wanted)[1]) < 1e-10


@pytest.mark.parametrize("moment", ["before the commit", "in the middle of a round", "after the commit"])
def test_a_cloud_that_dies(network: Memory, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nodes live on; the same command goes on with the next round that was not committed."""
    wanted = small(tmp_path)
    first, commit = Cloud(wanted, network), DiskStore.commit

    def die(self: DiskStore, meta: dict[str, Any], log: list[Any]) -> None:
        if self.path.parent.name == "run" and meta["round"] == 2:
            if moment == "after the commit":
                commit(self, meta, log)
            raise ZeroDivisionError("killed")
        commit(self, meta, log)

    with tree(wanted, network) as nodes:
        with monkeypatch.context() as patched:
            if moment == "in the middle of a round":
                patched.setattr(Cloud, "_open", _dying_open)
            else:
                patched.setattr(DiskStore, "commit", die)
            with pytest.raises(ZeroDivisionError):
                first.run(folder=True)
        result = Cloud(wanted, network).run(folder=True)
        kept = everything(result, nodes)
    simulation, models = simulated(wanted)
    assert result.engine.round == 3
    assert distance(kept, models) < 1e-10
    theirs = {r[:-1]: r.value for r in simulation.rows}
    assert {r[:-1]: r.value for r in result.rows} == pytest.approx(theirs, abs=1e-9)


def _dying_open(self: Cloud, engine: Any) -> Any:
    """After all fogs have answered in round 1, and before the cloud knows what that comes to."""
    opened = _OPEN(self, engine)
    put = engine.put_question

    def die(depth: int, question: Any, *rest: Any) -> Any:
        found = put(depth, question, *rest)
        if question.kind == "ask" and engine.round == 1:
            raise ZeroDivisionError("killed")
        return found

    engine.put_question = die
    return opened


_OPEN = Cloud._open


def test_a_fog_that_dies_in_a_team_round(network: Memory, tmp_path: Path) -> None:
    """It has heard its devices once, and comes back with what it had committed."""
    wanted = small(tmp_path)
    with tree(wanted, network) as nodes:
        old = nodes["fog-1"]
        engine, put, died = old.node.engine, old.node.engine.put_question, threading.Event()

        def die(depth: int, question: Any, *rest: Any) -> Any:
            if question.kind == "ask" and engine.round == 1 and question.tick == 1:
                died.set()
                threading.Event().wait(0.2)
                raise ZeroDivisionError("killed")
            return put(depth, question, *rest)

        engine.put_question = die  # type: ignore[method-assign]
        done: list[Any] = []
        cloud = Cloud(wanted, network)
        running = threading.Thread(target=lambda: done.append(cloud.run(folder=False)))
        running.start()
        assert died.wait(LONG)
        old.close()
        assert isinstance(old.store, MemoryStore)
        old.store.discard()
        nodes["fog-1"] = begin_node(world_of(wanted), "fog-1", "fog", network, memory=True, store=old.store)
        running.join(LONG)
        kept = everything(done[0], nodes)
        nodes["fog-1"].close()
    assert distance(kept, simulated(wanted)[1]) < 1e-10


@pytest.mark.parametrize("during", [False, True])
def test_a_fog_that_is_replaced(network: Memory, tmp_path: Path, during: bool) -> None:
    """Another machine takes its place with an empty folder, between two rounds or within one; its devices go on from
    where they were. What a fog of HierFAVG keeps its parent sends anew, so nothing is lost.
    """
    wanted = small(tmp_path, {"name": "h-sgd"}, run={"rounds": 4}, topology={"team_rounds": 1})
    with tree(wanted, network) as nodes:
        old, joined = nodes["fog-2"], threading.Event()

        def replaced() -> None:
            old.close()
            nodes["fog-2"] = begin_node(world_of(wanted), "fog-2", "fog", network, memory=True, anew=True)

        def lost() -> None:
            old.close()
            threading.Timer(0.3, lambda: (replaced(), joined.set())).start()

        result = Cloud(wanted, network).run(at_round(2, lost if during else replaced), folder=False)
        assert not during or joined.wait(LONG)
        kept = everything(result, nodes)
        nodes["fog-2"].close()
    assert distance(kept, simulated(wanted)[1]) < 1e-10


def test_a_state_of_long_ago_is_refused(network: Memory, tmp_path: Path) -> None:
    wanted = small(tmp_path, {"name": "permfl"})
    with tree(wanted, network) as nodes:

        def emptied() -> None:
            nodes["fog-2"].close()
            nodes["fog-2"] = begin_node(world_of(wanted), "fog-2", "fog", network, memory=True)

        with pytest.raises(InputError, match=r"counts on state .* --anew"):
            Cloud(wanted, network).run(at_round(2, emptied), folder=False)
        nodes["fog-2"].close()
    assert models_of(nodes["0"].node.journal)
