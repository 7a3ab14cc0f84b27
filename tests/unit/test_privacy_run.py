"""Runs under differential privacy: what is counted, when they stop, what they say, what they refuse."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tierfed
from tierfed.cost import Burst
from tierfed.engine import RoundLog
from tierfed.errors import InputError
from tierfed.ledger import Ledger, promises
from tierfed.preview import preview
from tierfed.privacy.accounting import Release, epsilon
from tierfed.report import write_report
from tierfed.report.load import RunFolder
from tierfed.setup import World, prepare
from tierfed.store import MemoryStore

NORMED = {"model__name": "mlp", "model__options": {"batch_norm": True}}


def columns(rows: int = 96, devices: int = 12) -> dict[str, Any]:
    """Devices with eight samples each; the label is a + b > 0."""
    x = np.random.default_rng(0).normal(size=(rows, 3))
    who = np.array([f"d{i:02}" for i in range(devices)])[np.arange(rows) % devices]
    return {**dict(zip("abc", x.T, strict=True)), "label": np.where(x[:, 0] + x[:, 1] > 0, "up", "down"), "device": who}


def config(link: str = "cloud-device", privacy: dict[str, Any] | None = None, **changes: Any) -> tierfed.Config:
    tables = {
        "run": {"rounds": 6, "threads": 1},
        "data": {"batch": 2},
        "model": {"name": "mclr"},
        "topology": {"fogs": 0, "weighting": "devices"},
        "algorithm": {"name": "fedavg", "lr": 0.5},
        "eval": {"every": 2, "post": False},
        "links": {} if privacy is None else {link: {"privacy": {"clip": 0.5, "noise_multiplier": 4.0, **privacy}}},
    }
    return tierfed.load_config(tables, {k.replace("__", "."): v for k, v in changes.items()})


def world(given: tierfed.Config) -> World:
    data = tierfed.loop.dataset(columns(), given.data.columns)
    return prepare(given, data)


def burst(depth: int, parents: list[int], kids: list[int]) -> Burst:
    none = np.zeros(len(kids), np.int64)
    return Burst(depth=depth, tick=0, parents=np.array(parents), kids=np.array(kids), down_bytes=none, up_bytes=none)


class TestLedger:
    def test_noise_of_a_parent_counts_its_bursts(self) -> None:
        there = world(config("fog-device", {}, topology__fogs=3, topology__team_rounds=2, algorithm__name="hierfavg"))
        ledger, log = Ledger(there, MemoryStore()), RoundLog()
        log.bursts = [burst(0, [0, 0], [0, 2]), burst(1, [0, 0, 2], [1, 4, 5]), burst(1, [0, 2], [1, 5])]
        ledger.book(log)
        ledger.book(log)
        assert ledger.counts(0).tolist() == [4, 0, 4]
        ((promise, spent),) = ledger.spent()
        assert (promise.unit, promise.at_once) == ("device", 2)
        assert spent == epsilon({Release(noise_multiplier=4.0): 4}, 1e-5)

    def test_noise_of_children_counts_their_replies(self) -> None:
        there = world(config("cloud-device", {"noise_at": "child"}, topology__participation=0.5))
        ledger, log = Ledger(there, MemoryStore()), RoundLog()
        log.bursts = [burst(0, [0, 0, 0], [3, 4, 9])]
        ledger.book(log)
        log.bursts = [burst(0, [0, 0], [4, 5])]
        ledger.book(log)
        assert ledger.counts(0).tolist() == [0, 0, 0, 1, 2, 1, 0, 0, 0, 1, 0, 0]
        assert promises(there)[0].release.sampling == "all"  # whoever sees a noised reply knows whose it is

    def test_whoever_moves_takes_along_what_was_released(self) -> None:
        there = world(config("fog-device", {}, topology__fogs=3, algorithm__name="hierfavg"))
        ledger, log = Ledger(there, MemoryStore()), RoundLog()
        log.bursts, log.moved = [burst(1, [0, 0], [1, 4])], [(4, 0, 2)]
        ledger.book(log)
        assert ledger.counts(0).tolist() == [1, 1, 1]

    @pytest.mark.parametrize(("sampling", "kind"), [("fixed", "fixed"), ("poisson", "poisson")])
    def test_a_draw_by_the_parent_amplifies(self, sampling: str, kind: str) -> None:
        given = config("cloud-device", {"delta": 0.4}, topology__participation=0.5, topology__sampling=sampling)
        (promise,) = promises(world(given))
        assert (promise.release.sampling, promise.release.rate) == (kind, 0.5)
        if kind == "fixed":
            assert (promise.release.drawn, promise.release.among) == (6, 12)
        else:
            assert promise.release.slip == pytest.approx(0.5 * 0.5**11)  # it alone was drawn

    def test_fogs_that_are_drawn_amplify_nothing(self) -> None:
        drawn = {"topology__participation": [0.4, 1.0], "algorithm__name": "hierfavg"}
        assert promises(world(config("fog-device", {}, topology__fogs=3, **drawn)))[0].release.sampling == "all"

    def test_samples_count_passes(self) -> None:
        given = config(dp_sgd__clip=1.0, dp_sgd__noise_multiplier=3.0, algorithm__epochs=2)
        ledger, log = Ledger(world(given), MemoryStore()), RoundLog()
        log.bursts = [burst(0, [0, 0], [4, 5])]
        ledger.book(log)
        assert ledger.counts(0).max() == 2
        assert ledger.spent()[0][1] == epsilon({Release(noise_multiplier=3.0): 2}, 1e-5)


def test_a_run_says_what_it_has_spent(tmp_path: Path) -> None:
    lines: list[str] = []
    given = config("cloud-device", {}, run__out=str(tmp_path / "r"))
    run = tierfed.run(given, data=columns(), watch=lambda p: lines.append(p.spent))
    spent = {r.round: r.value for r in run.rows if r.metric == "epsilon_device"}
    assert spent == {n: epsilon({Release(noise_multiplier=4.0): n}, 1e-5) for n in (2, 4, 6)}
    assert lines[-1] == f"ε {spent[6]:.3g} per device (δ 1e-05)"
    assert ("cloud", "epsilon_device") in RunFolder.read(tmp_path / "r").traces
    page = write_report(tmp_path / "r").read_text("utf-8")
    assert "privacy spent per device" in page
    assert f"ε = {spent[6]:.3g}" in page


def test_the_budget_ends_a_run_before_it_is_exceeded(tmp_path: Path) -> None:
    release = Release(noise_multiplier=4.0)
    budget = (epsilon({release: 3}, 1e-5) + epsilon({release: 4}, 1e-5)) / 2
    given = config("cloud-device", {"epsilon": budget}, run__out=str(tmp_path / "r"))
    run = tierfed.run(given, data=columns())
    assert run.engine.round == 3
    (stop,) = [e for e in run.events if e["event"] == "stop"]
    assert stop["rule"].startswith("the privacy budget of a device is spent (links.cloud-device.privacy)")
    assert "stops after round 3 of 6" in preview(run.world)["privacy"]["links.cloud-device.privacy"]
    assert tierfed.resume(tmp_path / "r", data=columns()).trained == 0  # the ledger is in the checkpoint


def test_the_noise_of_a_run_is_what_its_config_says() -> None:
    """With a clip of nearly nothing a round moves every number by noise alone: N(0, (z C / n)^2)."""
    given = config("cloud-device", {"clip": 1e-3, "noise_multiplier": 300.0}, run__rounds=40, eval__every=40)
    run = tierfed.run(given, data=columns(), folder=False)
    before = run.world.task.init()
    moved = np.concatenate([(v - before[k]).numpy().ravel() for k, v in run.engine.kept(0, 0)["params"].items()])
    wanted = math.sqrt(40) * 300.0 * 1e-3 / 12
    assert 0.4 * wanted < moved.std() < 2 * wanted  # eight numbers; what is learned moves them by less than 40 C


def test_adaptive_clipping_follows_the_norms() -> None:
    adaptive = {"clip": 1e-3, "noise_multiplier": 0.0, "adaptive": {"quantile": 0.5, "rate": 2.0}}
    run = tierfed.run(config("cloud-device", adaptive), data=columns(), folder=False)
    kept = run.engine.store.get("rule0", 0)
    assert kept is not None
    assert float(kept["bound"]) > 0.005  # from a thousandth to where the updates are


def test_samples_are_protected_by_whole_batches_alone() -> None:
    given = config(dp_sgd__clip=1.0, data__batch=3)  # 8 samples or fewer: two batches of three
    there = world(given)
    assert (there.plan.counts(np.arange(12), there.algorithm) == there.plan.samples // 3).all()
    rows = there.plan.rows(0, 1, int(there.plan.samples[0]) // 3, 0, 0)
    assert len(np.unique(rows)) == rows.size


@pytest.mark.parametrize(
    ("privacy", "changes", "reason"),
    [
        ({"epsilon": 1e-3}, {}, "less than one round needs"),
        ({}, {"topology__weighting": "auto"}, "weighs what it hears by samples"),
        ({"noise_at": "fog"}, {}, "wanted 'child', 'parent' or one of cloud, device"),
        ({"accountant": "pld"}, {"topology__participation": 0.5}, "draw without replacement"),
        ({}, {"topology__participation": 0.5, "topology__sampling": "poisson"}, "is the only one drawn"),
        ({}, {"topology__participation": 6, "topology__sampling": "poisson"}, "give a share"),
        (
            {"delta": 0.4},
            {"topology__participation": 0.5, "topology__sampling": "poisson", "topology__over": "all"},
            "tell how many took part",
        ),
        ({}, {"personalize__mechanism": "reptile"}, "send more after the training"),
        ({}, {"data__public": 0.2}, "makes samples of the devices public"),
        ({}, {"topology__fogs": 2, "topology__teams": "ifca"}, "forms teams from replies|has the links"),
        ({}, {"algorithm__name": "jobfed", **NORMED}, "beside the change of the model"),
        (None, {"dp_sgd__clip": 1.0, "algorithm__name": "apfl"}, "reads its samples itself"),
        (None, {"dp_sgd__clip": 1.0, "algorithm__steps": 9}, "samples twice"),
        (None, {"dp_sgd__clip": 1.0, **NORMED}, "it mixes the samples"),
    ],
)
def test_what_has_no_guarantee_is_refused_before_the_first_round(
    tmp_path: Path, privacy: dict[str, Any] | None, changes: dict[str, Any], reason: str
) -> None:
    given = config("cloud-device", privacy, run__out=str(tmp_path / "r"), **changes)
    with pytest.raises(InputError, match=reason):
        tierfed.run(given, data=columns())
    assert not (tmp_path / "r").exists()
