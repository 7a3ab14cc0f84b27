"""Parts of a run that meet: different models, offloading, augmentation, personalization, export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tierfed
from tierfed.config import load_config
from tierfed.engine.evaluate import models
from tierfed.errors import InputError
from tierfed.loop import run
from tierfed.offload import SplitTask
from tierfed.result import Result
from tierfed.setup import World, prepare
from tierfed.start import left_by
from tierfed.task import Task
from tierfed.testing.toy import gap
from tierfed.tree import Params

WIDE, DEEP = {"name": "mlp", "options": {"hidden": [7]}}, {"name": "mlp", "options": {"hidden": [5, 4]}}
OTHER = {"kinds": [{**DEEP, "devices": 2}, WIDE]}
DIFFERENT: dict[str, Any] = {
    "run": {"rounds": 1},
    "data": {"devices": 4, "batch": 10, "public": 0.3, "train_fraction": 0.3},
    "model": {"kinds": [{**WIDE, "devices": 2}, DEEP]},
    "algorithm": {"name": "fedmd", "subset": 8},
    "topology": {"fogs": 2, "teams": "random"},
    "eval": {"post": False},
}


def world(**tables: Any) -> World:
    return prepare(load_config({**DIFFERENT, **tables}))


def own(result: Result) -> list[Params]:
    return [m.personal_pre for m in models(result.engine, np.arange(4), post=False)]


def test_every_device_goes_on_with_its_own_kind_of_model() -> None:
    before = run(DIFFERENT, folder=False)
    after = world(algorithm={"name": "ftl"}, start={"run": "it"})
    left = left_by(before, after)
    assert max(gap(a, b) for a, b in zip(left.own, own(before), strict=True)) == 0.0
    assert [t.what for t in left.transfers] == ["models to begin with"]
    second = run({**DIFFERENT, "algorithm": {"name": "ftl"}, "start": {"run": "it"}}, folder=False, before=before)
    trained = own(second)
    assert [p.keys() for p in trained] == [p.keys() for p in left.own]
    assert min(gap(a, b) for a, b in zip(trained, left.own, strict=True)) > 0.0


def test_models_of_another_kind_are_no_beginning() -> None:
    before = run(DIFFERENT, folder=False)
    with pytest.raises(InputError, match="has another model than this one"):
        left_by(before, world(algorithm={"name": "ftl"}, start={"run": "it"}, model=OTHER))


def test_one_model_is_cut_not_several() -> None:
    with pytest.raises(InputError, match=r"cuts one model for all, but devices have 2 different ones"):
        world(offload={"mode": "split"}, algorithm={"name": "local"})


def test_a_trusted_edge_sends_every_device_its_own_model() -> None:
    there = world(offload={"mode": "edge"})
    (final,) = there.at_end
    inputs = int(np.prod(there.federation.shape))
    sizes = [4 * (inputs * 7 + 7 + 7 * 7 + 7), 4 * (inputs * 5 + 5 + 5 * 4 + 4 + 4 * 7 + 7)]
    assert there.kinds is not None
    assert final.down_bytes.tolist() == [sizes[k] for k in there.kinds]
    assert [t.what for t in there.transfers] == ["public samples", "raw data"]


def test_a_first_model_for_all_needs_one_model() -> None:
    with pytest.raises(InputError, match="trains one first model for all, but devices have 2 different ones"):
        world(algorithm={"name": "local"}, augment={"kind": "share", "warmup_epochs": 1})


def test_shared_samples_and_public_samples_are_both_counted() -> None:
    there = world(augment={"kind": "share"})
    assert [t.what for t in there.transfers] == ["shared samples", "public samples"]
    assert there.augmentation is not None
    assert set(there.augmentation.cloud) <= set(np.concatenate(there.plan.train).tolist())


@pytest.mark.parametrize("kind", [0, 1])
def test_the_exported_network_is_that_of_the_device(tmp_path: Path, kind: int) -> None:
    result = run(DIFFERENT, folder=False)
    assert result.world.kinds is not None
    i = result.world.kinds.tolist().index(kind)
    device = result.world.federation.devices[i]
    made = tierfed.export(result, device, tmp_path / "m.safetensors", format="safetensors")
    assert (made.card.model, made.card.options) == ("mlp", [WIDE, DEEP][kind]["options"])
    module, _ = tierfed.load_model(tmp_path / "m.safetensors")
    assert gap(dict(module.state_dict()), own(result)[i]) == 0.0


@pytest.mark.parametrize(("tail", "down", "up"), [("", 2, 4), ("1", 4, 4)])
def test_outputs_cross_the_cut_and_are_counted(tail: str, down: int, up: int) -> None:
    """Of each of 5 samples 4 floats go up; 2 outputs come back, or 4 floats for a tail on the device."""
    whole = Task(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)))
    split, x = SplitTask(whole, "0", tail), torch.arange(15.0).view(5, 3)
    assert torch.equal(split.outputs(whole.init(), x), whole.outputs(whole.init(), x))
    assert split.exchanged() == (5 * 4 * down, 5 * 4 * up)
