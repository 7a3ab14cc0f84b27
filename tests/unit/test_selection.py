"""Early stopping and model selection: by validation data, without a trace in the training, kept over kills."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tierfed
from tierfed.loop import at_best
from tierfed.objective import parse
from tierfed.selection import Selection, after, ended


def columns(rows: int = 120) -> dict[str, Any]:
    """Six people; the label is a + b > 0 with a fifth of the labels wrong: a large network learns them by heart."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 3))
    up = (x[:, 0] + x[:, 1] > 0) ^ (rng.random(rows) < 0.2)
    who = np.array(["ann", "bob", "cid", "dan", "eve", "fay"])[np.arange(rows) % 6]
    return {**dict(zip("abc", x.T, strict=True)), "label": np.where(up, "up", "down"), "device": who}


def config(folder: Path | None = None, **changes: Any) -> tierfed.Config:
    tables = {
        "run": {"rounds": 40, "threads": 1, **({} if folder is None else {"out": str(folder)})},
        "data": {"batch": 5, "split": {"val": 0.3}},
        "model": {"options": {"hidden": [64]}},
        "algorithm": {"name": "ditto", "lr": 0.5, "epochs": 3},
        "eval": {"every": 1, "post": False},
        "select": {"by": "personal_pre/loss", "patience": 3},
    }
    return tierfed.load_config(tables, {k.replace("__", "."): v for k, v in changes.items()})


def test_a_run_ends_in_time_and_its_best_models_are_kept(tmp_path: Path) -> None:
    run = tierfed.run(config(tmp_path / "r"), data=columns())
    judged = {r.round: r.value for r in run.rows if r.metric == "validation"}
    best = min(judged, key=lambda r: judged[r])
    assert 0 < best == run.engine.round - 3 < 30
    (stop,) = [e for e in run.events if e["event"] == "stop"]
    assert stop["rule"] == f"no better in 3 evaluations: personal_pre/loss was best in round {best}"
    whole = tierfed.run(config(run__rounds=best, select__by="", select__patience=0), data=columns(), folder=False)
    for opened in (tierfed.open_run(tmp_path / "r", data=columns(), best=True), at_best(run)):
        with opened as kept:
            assert kept.engine.round == best
            for device in ("ann", "fay"):
                pairs = zip(
                    kept.personal_model(device).parameters(), whole.personal_model(device).parameters(), strict=True
                )
                assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(run.global_model().parameters()), next(whole.global_model().parameters()))
    again = tierfed.resume(tmp_path / "r", data=columns())
    assert (again.trained, again.engine.round) == (0, run.engine.round)


def test_export_takes_the_best_round(tmp_path: Path) -> None:
    tierfed.run(config(tmp_path / "r"), data=columns())
    rounds = [
        tierfed.export(
            tmp_path / "r", "bob", tmp_path / f"{last}.safetensors", format="safetensors", data=columns(), last=last
        ).card.round
        for last in (False, True)
    ]
    assert rounds[0] == rounds[1] - 3


def test_a_kill_between_the_commit_and_the_copy(tmp_path: Path) -> None:
    def interrupt(progress: tierfed.Progress) -> None:
        if progress.round == 2:
            raise KeyboardInterrupt

    run = tierfed.run(config(tmp_path / "r"), data=columns(), watch=interrupt)
    assert run.interrupted
    shutil.rmtree(tmp_path / "r" / "best")
    (tmp_path / "r" / "best").mkdir()
    tierfed.resume(tmp_path / "r", data=columns(), watch=interrupt_at_once)
    with tierfed.open_run(tmp_path / "r", data=columns(), best=True) as kept:
        assert kept.engine.round == 2
    whole = tierfed.run(config(), data=columns(), folder=False)
    assert tierfed.resume(tmp_path / "r", data=columns()).metrics.equals(whole.metrics)


def interrupt_at_once(progress: tierfed.Progress) -> None:
    raise KeyboardInterrupt


def test_validation_devices_are_some_of_those_that_have_data() -> None:
    run = tierfed.run(config(select__devices=2, run__rounds=1), data=columns(), folder=False)
    everybody = tierfed.run(config(run__rounds=1), data=columns(), folder=False)
    two, all_ = ([r.value for r in x.rows if r.metric == "validation"] for x in (run, everybody))
    assert len(two) == len(all_) == 2
    assert two != all_
    assert torch.equal(next(run.global_model().parameters()), next(everybody.global_model().parameters()))


def test_patience_by_hand() -> None:
    goal = parse("global")
    s = Selection(goal=goal, sign=1, devices=np.arange(1), rows=(), post=False, patience=2, min_delta=0.1)
    state: dict[str, Any] | None = None
    said = []
    for round_, value in enumerate([0.5, 0.55, 0.65, 0.7, float("nan")]):
        state = after(s, state, value, round_)
        said.append((state["round"], state["since"], bool(ended(s, state))))
    assert said == [(0, 0, False), (0, 1, False), (2, 0, False), (2, 1, False), (2, 2, True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select__by": ""}, "select.patience needs something to judge by"),
        ({"select__by": "personl"}, "did you mean 'personal_"),
        ({"select__by": "link/up_bytes"}, "costs and gains are not validated"),
        ({"select__devices": 7}, "6 devices have validation data"),
        ({"data__split__val": 0.0}, "0 devices have validation data"),
        ({"select__by": "team"}, "this algorithm has global, personal_pre"),
    ],
)
def test_bad_selections(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(tierfed.InputError, match=message):
        tierfed.run(config(tmp_path / "r", **changes), data=columns())
    assert not (tmp_path / "r").exists()


def test_no_best_round_was_kept(tmp_path: Path) -> None:
    tierfed.run(config(tmp_path / "r", select__by="", select__patience=0, run__rounds=1), data=columns())
    with (
        pytest.raises(tierfed.InputError, match="has kept no best round"),
        tierfed.open_run(tmp_path / "r", data=columns(), best=True),
    ):
        pass
