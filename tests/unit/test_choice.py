"""Which kernel, how many processes, how many devices at once: by rule, by the config, by a trial."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tierfed
from tierfed.choice import Choice, choose, round_seconds, tried, visits, worth_a_trial
from tierfed.config import EngineSettings
from tierfed.engine import Vectorized
from tierfed.errors import InputError
from tierfed.setup import World, prepare
from tierfed.store import MemoryStore


def world(module: nn.Module | None = None, **tables: Any) -> World:
    """Twenty devices with windows of a watch; [9, 50] numbers a sample."""
    config = tierfed.load_config({"data": {"source": "watch"}, "run": {"rounds": 2}, **tables})
    return prepare(config, module=module)


def engine(**tables: Any) -> Vectorized:
    made = world(**tables).engine(MemoryStore())
    assert isinstance(made, Vectorized)
    return made


def dense(activation: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(6), activation(), nn.Linear(6, 7))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(50, 4, batch_first=True), nn.Linear(4, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(x)[0][:, -1])  # type: ignore[no-any-return]


@pytest.mark.parametrize(("model", "kernel"), [("mlp", "native"), ("cnn1d", "loop"), ("mclr", "native")])
def test_by_the_kind_of_the_model(model: str, kernel: str) -> None:
    choice = world(model={"name": model}).choice
    assert (choice.kernel, choice.workers) == (kernel, 1)


def test_recurrent_layers_are_trained_one_device_after_the_other() -> None:
    assert world(Recurrent()).choice.kernel == "loop"


def test_another_activation_has_no_kernel_by_hand() -> None:
    module = dense(nn.GELU)
    module(torch.zeros(1, *world().federation.shape))
    assert world(module).choice.kernel == "vmap"


def test_a_kernel_that_cannot_run_the_model_gives_way_with_a_word() -> None:
    choice = world(model={"name": "cnn1d"}, engine={"kernel": "fused"}).choice
    assert choice.kernel == "loop"
    assert choice.why.startswith("engine.kernel = 'fused' cannot run here: the model is no chain of Linear")
    assert choice.why.endswith("; loop in its place")
    told = list[tierfed.Progress]()
    run = tierfed.run(
        {"data": {"source": "watch"}, "run": {"rounds": 1}, "engine": {"kernel": "fused"}, "eval": {"post": False}},
        watch=told.append,
        folder=False,
    )
    assert told[0].doing == choice.why
    assert {"round": 0, "event": "kernel", "why": choice.why} in run.events


def test_an_unknown_kernel() -> None:
    with pytest.raises(InputError, match=r"engine.kernel = 'fussed'.*'fused'"):
        tierfed.load_config({"engine": {"kernel": "fussed"}})


def test_bf16_goes_with_one_kernel() -> None:
    with pytest.raises(InputError, match=r"engine.bf16 goes with the kernel 'loop' alone, .* 'native'"):
        world(model={"name": "mlp"}, engine={"bf16": True})
    assert world(model={"name": "cnn1d"}, engine={"bf16": True}).choice.bf16


def test_short_runs_begin_no_processes_and_long_ones_do() -> None:
    some = engine(model={"name": "cnn1d"})
    assert 0 < round_seconds(some) < 1
    assert choose(EngineSettings(), some, seconds=1).workers == 1
    assert choose(EngineSettings(workers=3), some, seconds=1).workers == 3
    many = choose(EngineSettings(), some, seconds=1000)
    assert many.workers == len(os.sched_getaffinity(0))
    assert not worth_a_trial(EngineSettings(), seconds=1, choice=Choice())
    assert worth_a_trial(EngineSettings(), seconds=1000, choice=Choice())
    assert not worth_a_trial(EngineSettings(kernel="vmap"), seconds=1000, choice=Choice())


def test_c_needs_neither_processes_nor_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of one process do as well, where they are few."""
    some = engine(model={"name": "mlp"})
    found = choose(EngineSettings(), some, seconds=1000)
    assert not worth_a_trial(EngineSettings(), seconds=1000, choice=found)
    monkeypatch.setattr("tierfed.choice.cores", lambda: 4)
    assert choose(EngineSettings(), some, seconds=1000).workers == 1
    monkeypatch.setattr("tierfed.choice.cores", lambda: 16)
    assert choose(EngineSettings(), some, seconds=1000).workers == 16


def test_visits_of_a_round() -> None:
    """20 devices below 4 fogs that are all asked twice, each of 2 of its devices: 4 * 2 * 2."""
    tree = {"fogs": 4, "participation": 2, "team_rounds": 2, "teams": "random"}
    assert visits(engine(topology=tree, algorithm={"name": "hierfavg"})) == 16


def test_a_trial_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    some, told = engine(model={"name": "mlp"}), list[str]()
    first = tried(Choice(), EngineSettings(), some, told.append)
    assert told == ["trying kernels: loop, vmap, fused, native"]
    assert first.why.startswith("measured, ms per device and 4 steps: ")
    (known,) = json.loads((tmp_path / "tierfed" / "kernels.json").read_text()).values()
    assert first.kernel == min(known, key=known.__getitem__)
    again = tried(Choice(), EngineSettings(), some, told.append)
    assert (again.kernel, len(told)) == (first.kernel, 1)
    assert again.why == first.why.replace("measured", "remembered")
    other = engine(model={"name": "mlp"}, algorithm={"name": "fedprox"})
    assert tried(Choice(), EngineSettings(), other, None).why.startswith("measured")


class Branching(nn.Module):
    """A convolution, and a branch that depends on the data: vmap cannot map it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv1d(6, 3, 5), nn.Linear(3, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.layer(x).mean(-1)
        return self.head(-out if bool(out.sum() > 0) else out)  # type: ignore[no-any-return]


def test_a_trial_outlives_a_kernel_that_cannot_run_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    some = world(Branching()).engine(MemoryStore())
    assert isinstance(some, Vectorized)
    for how in ("measured", "remembered"):
        choice = tried(Choice(), EngineSettings(), some, None)
        assert choice.kernel == "loop"
        assert choice.why.startswith(how)
        assert choice.why.endswith("vmap inf")


def test_a_damaged_memory_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "tierfed").mkdir()
    (tmp_path / "tierfed" / "kernels.json").write_text("[1")
    some = engine(model={"name": "mlp"})
    assert tried(Choice(), EngineSettings(), some, None).why.startswith("measured")
    (tmp_path / "tierfed" / "kernels.json").unlink()
    (tmp_path / "tierfed").rmdir()
    (tmp_path / "tierfed").write_text("in the way")
    assert tried(Choice(), EngineSettings(), some, None).why.startswith("measured")


def test_a_run_goes_on_with_the_kernel_that_it_began_with(tmp_path: Path) -> None:
    tables = {
        "data": {"source": "watch"},
        "run": {"rounds": 1, "out": str(tmp_path / "r")},
        "model": {"name": "mlp"},
        "eval": {"post": False},
    }
    first = tierfed.run(tierfed.load_config(tables))
    assert first.world.choice.kernel == "native"
    went_on = tierfed.resume(tmp_path / "r", rounds=2)
    assert (went_on.world.choice.kernel, went_on.world.choice.why) == ("native", "as the run began")
