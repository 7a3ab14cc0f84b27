"""Devices with files of their own: nobody else reads them, the run is the one that all data in one place would give."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.harness import FEATURES, config, deploy, distance, simulated
from tierfed.config import Config
from tierfed.data import Federation
from tierfed.deploy.census import counted, own
from tierfed.deploy.joining import agreed
from tierfed.deploy.process import world_of
from tierfed.errors import InputError

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
