"""What a run leaves for another one: models, the tree, and the bytes that it takes to hand them over."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import tierfed
from tierfed.config import load_config
from tierfed.engine.evaluate import models
from tierfed.errors import InputError
from tierfed.loop import run
from tierfed.result import Result
from tierfed.setup import prepare
from tierfed.start import Start, left_by
from tierfed.testing.toy import gap
from tierfed.tree import Params, nbytes, take

TOY: dict[str, Any] = {
    "run": {"rounds": 2},
    "data": {"devices": 5, "batch": 10},
    "model": {"name": "mlp", "options": {"hidden": [6], "batch_norm": True}},
    "topology": {"fogs": 2, "teams": "random"},
    "eval": {"post": False},
}


def after(algorithm: str, **changes: Any) -> Result:
    return run({**TOY, "algorithm": {"name": algorithm}, **changes}, folder=False)


def start(before: Result, algorithm: str, of: str = "personal", **changes: Any) -> Start:
    tables = {**TOY, "algorithm": {"name": algorithm}, "start": {"run": "it", "of": of}, **changes}
    return left_by(before, prepare(load_config(tables)))


def own(result: Result) -> list[Params]:
    return [m.personal_pre for m in models(result.engine, np.arange(5), post=False)]


def cloud(result: Result) -> Params:
    return result.engine.kept(0, 0)["params"]  # type: ignore[no-any-return]


def bytes_of(s: Start) -> dict[str, tuple[list[int], list[int]]]:
    return {t.what: (t.down_bytes.tolist(), t.up_bytes.tolist()) for t in s.transfers}


def test_the_global_model_goes_to_everybody() -> None:
    before = after("fedavg")
    left = start(before, "ftl", "global")
    assert gap(left.common, cloud(before)) == 0.0
    assert left.own == ()
    size = nbytes(left.common)
    assert bytes_of(left) == {"models to begin with": ([size] * 5, [0] * 5)}
    assert left.transfers[0].common


def test_the_models_of_the_devices() -> None:
    """Ditto's own model is on the device; what comes down is the last message."""
    before = after("ditto")
    left = start(before, "ftl")
    for mine, params in zip(left.own, own(before), strict=True):
        assert gap(mine, params) == 0.0
    assert gap(left.common, cloud(before)) == 0.0
    assert bytes_of(left) == {"models to begin with": ([nbytes(left.common)] * 5, [0] * 5)}


def test_what_the_cloud_lacks_is_the_mean_of_the_devices() -> None:
    """FedPer's heads, weighted by samples. Devices send them only where the tiers begin with them (fedavg)."""
    before = after("fedper")
    left, task = start(before, "fedavg"), before.world.task
    body, head = cloud(before), task.head_keys()
    share = before.world.plan.samples / before.world.plan.samples.sum()
    assert gap(take(left.common, body), body) == 0.0
    for k in head:
        want = sum(w * p[k].double() for w, p in zip(share.tolist(), own(before), strict=True))
        assert gap(left.common[k], want) <= 1e-6
    down = nbytes(body)
    assert bytes_of(left) == {
        "models to begin with": ([down] * 5, [0] * 5),
        "models of the devices": ([0] * 5, [nbytes(take(left.common, head))] * 5),
    }
    for name in ("fedper", "ftl", "local"):
        assert set(bytes_of(start(before, name))) == {"models to begin with"}


@pytest.mark.parametrize("name", ["l2gd", "fmtl", "fedamp", "fedfomo"])
def test_who_remembers_every_model_gets_every_model(name: str) -> None:
    before = after("ditto")
    left = start(before, name)
    assert bytes_of(left)["models of the devices"][1] == [nbytes(left.common)] * 5


def test_after_local_training_nothing_comes_down() -> None:
    assert bytes_of(start(after("local"), "ftl")) == {}


def test_messages_of_a_server_that_mixes_differ() -> None:
    left = start(after("pfedla"), "ftl")
    assert not left.transfers[0].common


def test_teams_go_on_where_the_tree_is_the_same() -> None:
    before = after("jobfed", run={"rounds": 3})
    teams = before.engine.topology.parents[-1].tolist()
    assert teams != before.world.topology.parents[-1].tolist()
    parents = start(before, "ftl").parents
    assert parents is not None
    assert parents[-1].tolist() == teams
    assert start(before, "ftl", topology={"fogs": 0}).parents is None


def test_teams_that_were_formed_are_not_formed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor when the second stage was stopped and goes on."""
    monkeypatch.chdir(tmp_path)
    formed = {**TOY, "topology": {"fogs": 2, "teams": "ifca", "formation_rounds": 2}}

    def stop(progress: tierfed.Progress) -> None:
        if progress.name == "a/personalized" and progress.round == 1:
            raise KeyboardInterrupt

    stage = {"personalize": {"mechanism": "permfl", "rounds": 2}}
    assert tierfed.run({**formed, **stage, "run": {"rounds": 1, "out": "a"}}, watch=stop).interrupted
    resumed = tierfed.resume("a").personalized
    assert resumed is not None
    assert {e["event"] for e in resumed.events} == {"start", "transfer", "resume", "done"}
    first, second = (pq.read_table(f"a/{part}devices.parquet")["team"].to_pylist() for part in ("", "personalized/"))
    assert first == second
    with tierfed.open_run("a") as before:
        parents = before.engine.topology.parents[-1].tolist()
    assert resumed.engine.topology.parents[-1].tolist() == parents
    assert resumed.world.topology.parents[-1].tolist() == parents


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("fedper", {"of": "global"}, "fedper has no complete global model"),
        ("fedavg", {"start": {"run": "it", "round": 1}}, "start.round = 1, but the run in None is at round 2"),
        ("fedavg", {"data": {"devices": 4, "batch": 10}}, "the 4 devices of this run have other data than the 5"),
        ("fedavg", {"data": {"devices": 5, "batch": 10, "split": {"test": 0.4}}}, "have other data"),
        ("fedavg", {"model": {"name": "mlp", "options": {"hidden": [7]}}}, "another model"),
    ],
)
def test_what_does_not_fit(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as err:
        start(after(name), "ftl", **changes)
    assert said in str(err.value)


def test_a_run_that_begins_with_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any config may: the first numbers of the second run are the last ones of the first."""
    monkeypatch.chdir(tmp_path)
    first = run({**TOY, "algorithm": {"name": "fedper"}, "run": {"rounds": 2, "out": "a"}})
    second = run({**TOY, "algorithm": {"name": "fedper"}, "run": {"rounds": 1, "out": "b"}, "start": {"run": "a"}})
    begun = {(r.node, r.metric): r.value for r in second.rows if r.round == 0 and r.tier == "device" and r.model}
    ended = {(r.node, r.metric): r.value for r in first.rows if r.round == 2 and r.tier == "device" and r.model}
    assert begun == ended
    assert second.events[0] == {"round": 0, "event": "start", "from": "personal", "at": 2}


def test_an_unfinished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def stop(progress: tierfed.Progress) -> None:
        if progress.round == 1:
            raise KeyboardInterrupt

    assert run({**TOY, "run": {"rounds": 2, "out": "a"}}, watch=stop).interrupted
    with pytest.raises(InputError, match="the run in a is not finished: round 1 of 2"):
        tierfed.personalize("a", "ftl")
    assert not (tmp_path / "a" / "personalized").exists()
