"""Devices with files of their own: nobody else reads them, the run is the one that all data in one place would give."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.harness import FEATURES, config, deploy, distance, everything, simulated, tree
from deploy.test_drills import at_round
from tierfed.config import Config
from tierfed.data import Federation
from tierfed.deploy.census import counted, own
from tierfed.deploy.household import Superseded
from tierfed.deploy.joining import agreed
from tierfed.deploy.memory import Memory
from tierfed.deploy.process import AtWork, Cloud, begin_node, world_of
from tierfed.errors import InputError
from tierfed.store import MemoryStore

WHO = {"fog-0": ["ann", "bob", "eve"], "fog-1": ["joe", "kim"]}
NAMES = [name for names in WHO.values() for name in names]


def made(folder: Path, **deploy: Any) -> Config:
    """A file for each device, and a config that names them."""
    for i, name in enumerate(NAMES):
        rng = np.random.default_rng(i)
        x = rng.normal(size=(14 + 3 * i, FEATURES)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    tables = {"devices": WHO, "shape": [FEATURES], "classes": 2, "deadline_seconds": 120.0, **deploy}
    data = {"path": str(folder / "{name}.npz")}
    jobfed = {"name": "jobfed", "recluster_every": 2}
    return config(folder, jobfed, data=data, deploy=tables, topology={"teams": "auto"})


def together(wanted: Config) -> Federation:
    """What all devices hold, in one place."""
    parts = [own(wanted, name, None) for name in NAMES]
    begin = np.cumsum([0, *(len(p.x) for p in parts)])
    held = {
        part: tuple(np.array(p.part(part)[i]) + begin[i] for i, p in enumerate(parts))
        for part in ("train", "val", "test")
    }
    sizes = np.array([[len(rows) for rows in part] for part in held.values()], np.int64)
    x, y = torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts])
    return replace(counted(wanted, sizes), x=x, y=y, **held)


def test_as_with_all_data_in_one_place(tmp_path: Path) -> None:
    wanted = made(tmp_path)
    simulation, models = simulated(wanted, together(wanted))
    deployed = deploy(wanted)
    assert distance(deployed.kept, models) < 1e-10
    theirs = {r[:-1]: r.value for r in simulation.rows}
    assert {r[:-1]: r.value for r in deployed.result.rows} == pytest.approx(theirs, abs=1e-9)
    assert any(e["event"] == "regroup" for e in deployed.result.events)


def test_whatever_the_path_is_called_elsewhere(tmp_path: Path) -> None:
    wanted = made(tmp_path)
    other = replace(wanted, data=replace(wanted.data, path="elsewhere.npz"))
    assert agreed(other) == agreed(wanted)
    fewer = replace(wanted, deploy=replace(wanted.deploy, devices={"fog-0": tuple(NAMES)}))
    assert agreed(fewer) != agreed(wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": {"fog-0": ["ann"], "fog-2": ["bob"]}}, "wanted fog-0, fog-1"),
        ({"devices": {"fog-0": ["ann", "ann"]}}, "names 'ann' twice"),
        ({"shape": []}, "give the shape of one sample"),
        ({"shape": [4]}, "deploy.shape is"),
        ({"classes": 0}, "deploy.classes is 0"),
        ({"devices": {"fog-0": ["bob"]}}, "names no device 'ann'"),
    ],
)
def test_what_does_not_fit(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        world_of(made(tmp_path, **settings), "ann")


def test_a_file_that_is_not_this_device(tmp_path: Path) -> None:
    wanted = made(tmp_path)
    with pytest.raises(InputError, match=r"nobody\.npz"):
        world_of(wanted, "ann", tmp_path / "nobody.npz")
    with pytest.raises(InputError, match="--data is for devices"):
        world_of(replace(wanted, deploy=replace(wanted.deploy, devices={})), "ann", tmp_path / "ann.npz")


@pytest.fixture
def network() -> Iterator[Memory]:
    made = Memory()
    yield made
    made.close()


def begun_again(nodes: dict[str, AtWork], name: str, wanted: Config, network: Memory, anew: bool = False) -> None:
    """Another process of a fog, with what it has committed, or with nothing."""
    before = nodes[name]
    before.close()
    assert isinstance(before.store, MemoryStore)
    before.store.discard()
    kept = MemoryStore() if anew else before.store
    nodes[name] = begin_node(world_of(wanted), name, "fog", network, memory=True, store=kept, anew=anew)


def test_a_fog_that_begins_anew_before_everybody_else_begins_again(
    network: Memory, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    """It was told the numbers of samples in a round that the cloud has not committed, and that cloud's successor does
    not know that it was lost.
    """
    wanted = made(tmp_path)
    wanted = replace(wanted, algorithm={"name": "h-sgd", "lr": 0.05}, run=replace(wanted.run, rounds=4))
    first = Cloud(wanted, network)
    with tree(wanted, network) as nodes:

        def lost() -> None:
            begun_again(nodes, "fog-1", wanted, network, anew=True)
            assert nodes["fog-1"].member.welcome.wait(60)  # it is told the tree before it is asked
            engine = first.engine
            assert engine is not None
            engine.put_question = partial(_dying, engine.put_question)  # type: ignore[method-assign]

        with pytest.raises(ZeroDivisionError):
            first.run(at_round(2, lost), folder=True)
        begun_again(nodes, "fog-1", wanted, network)
        result = Cloud(wanted, network).run(folder=True)
        kept = everything(result, nodes)
        nodes["fog-1"].close()
    assert "it speaks for" not in log.text
    assert "fog-1 has begun anew" in log.text
    assert distance(kept, simulated(wanted, together(wanted))[1]) < 1e-10


def _dying(put: Any, depth: int, question: Any, *rest: Any) -> Any:
    """After all have answered, and before the cloud knows what that comes to."""
    found = put(depth, question, *rest)
    if question.kind == "ask":
        raise ZeroDivisionError("killed")
    return found


def test_a_file_that_has_grown(network: Memory, tmp_path: Path) -> None:
    """The run counts on the samples that there were when it began."""
    wanted = made(tmp_path)
    with tree(wanted, network) as nodes:
        cloud = Cloud(wanted, network)

        def grown() -> None:
            nodes["ann"].close()
            more = np.load(tmp_path / "eve.npz")
            np.savez(tmp_path / "ann.npz", **more)
            nodes["ann"] = begin_node(world_of(wanted, "ann"), "ann", "device", network, memory=True)
            assert nodes["ann"].member.done.wait(60)
            assert cloud.engine is not None
            cloud.engine.going = lambda: False

        with suppress(Superseded):
            cloud.run(at_round(2, grown), folder=False)
        failure = nodes["ann"].member.failure
        nodes["ann"].close()
    assert "ann has 11 training samples, fog-0 counts on 8; give it the data that it had" in str(failure)
