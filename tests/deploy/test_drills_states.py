"""States that are damaged, and a fog that is lost with its state."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.drills import Absent, Tap, drill, is_reply, simulated, small
from deploy.harness import distance, models_of
from deploy.test_drills_messages import FLOAT64
from tierfed.deploy.joining import run_folder, state_folder
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


@pytest.mark.parametrize("moment", ["between rounds", "in a team round"])
def test_a_fog_that_is_lost_for_good(tmp_path: Path, moment: str, log: pytest.LogCaptureFixture) -> None:
    """Another machine takes its place and name, at another address, with nothing: its devices keep what they have."""
    config = small(tmp_path, "fedavg", topology={"team_rounds": 2})
    with drill(config, stops=[2]) as one:
        one.steps.after(2)
        lost, new = one.nodes["fog-0"], "127.0.0.1:29999"
        if moment == "in a team round":
            seen = list[bytes]()

            def up(frame: bytes) -> list[bytes]:
                if is_reply(frame, 3):
                    seen.append(frame)
                return [frame] if len(seen) < 2 else []  # what it says in the second team round, nobody hears

            one.taps["0"].up = up
            one.steps.go()
            while len(seen) < 2:
                one.house("fog-0")
        lost.close()
        one.nodes["fog-0"] = begin_node(
            world_of(config), "fog-0", "fog", one.network, memory=True, anew=True, listen=new
        )
        for name in ("0", "2"):
            before = one.nodes[name]
            before.close()
            assert isinstance(before.store, MemoryStore)
            one.nodes[name] = begin_node(
                world_of(config), name, "device", Tap(one.network), memory=True, store=before.store, parent=new
            )
        kept = one.kept()
        for node in one.nodes.values():
            node.close()
    assert distance(kept, simulated(config, Absent())) < FLOAT64
