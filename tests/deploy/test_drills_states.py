"""States that are damaged, and a fog that is lost with its state."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.drills import SECONDS, Absent, Tap, drill, is_reply, simulated, small
from deploy.harness import distance, models_of
from deploy.test_drills_messages import FLOAT64
from tierfed.deploy.joining import run_folder, state_folder
from tierfed.deploy.journal import FIRST, Journal, Lineage
from tierfed.deploy.memory import Memory
from tierfed.deploy.process import Cloud, begin_node, world_of
from tierfed.errors import InputError
from tierfed.store import DiskStore, MemoryStore


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    """Nobody begins with it, nothing is changed, and with a copy of it the run goes on."""
    config = small(tmp_path, rounds=2)
    with drill(config, folder=True) as one:
        one.steps.finish()
    network, world = Memory(), world_of(config)
    longer = replace(config, run=replace(config.run, rounds=4))
    try:
        for name, tier in (("cloud", "cloud"), ("fog-0", "fog"), ("1", "device")):
            folder = run_folder(config) / "state" if tier == "cloud" else state_folder(config, name)
            data, good = folder / "data.mdb", (folder / "data.mdb").read_bytes()
            for size in (len(good) // 2, 5000, 100):
                data.write_bytes(good[:size])
                with pytest.raises(InputError, match=r"is damaged: .* restore the .*folder from a copy"):
                    Cloud(longer, network).run() if tier == "cloud" else begin_node(world, name, tier, network)
                assert data.read_bytes() == good[:size]
            data.write_bytes(good)
    finally:
        network.close()
    with drill(longer, folder=True) as one:
        assert one.steps.finish().engine.round == 4
        kept = {k: v for node in one.nodes.values() for k, v in models_of(node.node.journal).items()}
    store = DiskStore(run_folder(config) / "state")
    try:
        kept |= models_of(store)
        assert [entry["round"] for entry in store.logs()] == [0, 1, 2, 3, 4]
    finally:
        store.close()
    assert distance(kept, simulated(longer, Absent())) < FLOAT64


def test_a_state_that_was_lost_is_not_taken_for_one(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    """A device without its folder says so; its parent names it, and goes on as long as the quorum lets it."""
    with drill(small(tmp_path, rounds=3), stops=[2]) as one:
        one.steps.after(2)
        one.nodes["0"].close()
        one.nodes["0"] = begin_node(world_of(one.config), "0", "device", one.network, memory=True)
        one.steps.finish()
    assert "round 3 at fog-0: goes on without 0 (the parent counts on state" in log.text
    assert "or let it begin anew: --anew" in log.text


def test_a_fog_that_is_lost_in_a_team_round(tmp_path: Path) -> None:
    """Another machine takes its place and name, at another address, with nothing: its devices have what they had before
    the round, and the round begins again. What the new fog says first is lost as well.
    """
    config = small(tmp_path, "h-sgd", topology={"team_rounds": 2})
    with drill(config, stops=[2]) as one:
        one.steps.after(2)
        new, worlds = "127.0.0.1:29999", [world_of(config) for _ in range(3)]
        seen, held = list[bytes](), threading.Event()

        def up(frame: bytes) -> list[bytes]:
            if not is_reply(frame, 3):
                return [frame]
            seen.append(frame)
            if len(seen) == 2:  # in the second team round, which nobody hears of
                held.set()
            return [frame] if len(seen) < 2 else []

        one.taps["0"].up = up
        one.steps.go()
        assert held.wait(SECONDS)
        one.nodes["fog-0"].close()
        lossy, lost = Tap(one.network), threading.Event()

        def once(frame: bytes) -> list[bytes]:
            if is_reply(frame, 3) and not lost.is_set():
                lost.set()
                assert lossy.now is not None
                lossy.now.close()
                return []
            return [frame]

        lossy.up = once
        one.nodes["fog-0"] = begin_node(worlds[0], "fog-0", "fog", lossy, memory=True, anew=True, listen=new)
        for name, world in zip(("0", "2"), worlds[1:], strict=True):
            before = one.nodes[name]
            before.close()
            assert isinstance(before.store, MemoryStore)
            one.nodes[name] = begin_node(
                world, name, "device", one.network, memory=True, store=before.store, parent=new
            )
        kept = one.kept()
        assert lost.is_set()
        for name in ("fog-0", "0", "2"):
            one.nodes[name].close()
    assert distance(kept, simulated(config, Absent())) < FLOAT64


def test_what_a_node_finds() -> None:
    """The version that a parent counts on, which has not heard of several rounds, or knows of none."""
    store = MemoryStore()
    journal = Journal(store)
    seen = list[str]()
    for round_, ask in enumerate(("aa", "bb", "cc")):  # three rounds, and nobody hears of them
        lineage = Lineage(FIRST, ("aa", "bb", "cc")[:round_])
        journal.begin(round_, journal.find(lineage, round_))
        seen.append(journal.commit_visit(ask, {}, {}))
    journal = Journal(store)  # the process was killed
    assert journal.find(Lineage(FIRST, ("aa", "bb", "cc")), 3) == seen[2]
    assert journal.find(Lineage(FIRST, ("aa", "bb")), 2) == seen[1]  # the third round begins again
    assert journal.find(Lineage(None), 2) == seen[1]
    assert journal.find(Lineage(None), 3) == seen[2]
    with pytest.raises(InputError, match="the parent counts on state of the beginning"):
        journal.find(Lineage(FIRST), 3)
    with pytest.raises(InputError, match="the parent counts on state dd"):
        journal.find(Lineage("dd"), 3)
    with pytest.raises(InputError, match="asked of round 1, but round 2 has begun"):
        journal.begin(1, seen[2])


def test_what_a_node_finds_that_has_begun_anew() -> None:
    store = MemoryStore()
    journal = Journal(store, anew=True)
    journal.begin(5, journal.find(Lineage("dd"), 5))
    first = journal.commit_visit("aa", {}, {})
    journal = Journal(store)
    assert journal.find(Lineage("dd"), 5) == FIRST  # the parent was killed, and asks again
    assert journal.find(Lineage("dd", ("aa",)), 5) == first  # it has not heard of it
    journal.begin(6, journal.find(Lineage("dd", ("aa",)), 6))
    second = journal.commit_visit("bb", {}, {})
    assert journal.find(Lineage(second), 6) == second
    assert journal.find(Lineage("dd", ("aa",)), 6) == first  # the parent was killed once more
    journal.begin(7, journal.find(Lineage(second), 7))  # it has committed the round
    with pytest.raises(InputError, match="the parent counts on state dd"):
        journal.find(Lineage("dd"), 7)
