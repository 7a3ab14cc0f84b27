"""Trackers: what is in the files afterwards, read by the libraries that they are for."""

import sys
import warnings
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import tierfed
from tierfed import track
from unit.test_selection import columns


def config(folder: Path | None, *to: str, **more: Any) -> tierfed.Config:
    tables = {
        "run": {"rounds": 3, "threads": 1, **({} if folder is None else {"out": str(folder)})},
        "data": {"batch": 5},
        "eval": {"every": 2, "post": False},
        "track": {"to": list(to), **more},
    }
    return tierfed.load_config(tables)


def stopped_after(round_: int) -> Any:
    def interrupt(progress: tierfed.Progress) -> None:
        if progress.round == round_ and not progress.doing:
            raise KeyboardInterrupt

    return interrupt


def test_tables(tmp_path: Path) -> None:
    """A row per round, scores where there was an evaluation; the same after an interruption as without one."""
    whole = tierfed.run(config(tmp_path / "r", "csv", "parquet"), data=columns())
    found = pq.read_table(tmp_path / "r" / "track.parquet").to_pydict()
    assert found["round"] == [0, 1, 2, 3]
    assert [v is None for v in found["global/accuracy/weighted"]] == [False, True, False, False]
    assert found["global/accuracy/weighted"][-1] == whole.scores["global"]
    sent = [r.value for r in whole.rows if r.metric == "up_bytes"]
    assert found["link/cloud-device/up_bytes"] == [None, *sent]
    assert not any("ann" in name for name in found)
    csv = pyarrow.csv.read_csv(tmp_path / "r" / "track.csv").to_pydict()
    assert csv.keys() == found.keys()
    assert csv["round"] == found["round"]
    stop = tierfed.run(config(tmp_path / "s", "csv", "parquet"), data=columns(), watch=stopped_after(1))
    assert stop.interrupted
    tierfed.resume(tmp_path / "s", data=columns())
    for name in ("track.csv", "track.parquet"):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "r" / name).read_bytes()


def test_tensorboard(tmp_path: Path) -> None:
    """Read back by TensorBoard itself; a round that comes again is there once."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stop = tierfed.run(config(tmp_path / "r", "tensorboard"), data=columns(), watch=stopped_after(1))
    assert stop.interrupted
    run = tierfed.resume(tmp_path / "r", data=columns())
    read = events.EventAccumulator(str(tmp_path / "r" / "tensorboard"))
    read.Reload()
    accuracy = read.Scalars("global/accuracy/weighted")
    assert [s.step for s in accuracy] == [0, 2, 3]
    assert accuracy[-1].value == pytest.approx(run.scores["global"])
    assert [s.step for s in read.Scalars("cloud/joules")] == [1, 2, 3]
    assert "rounds = 3" in read.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


def test_watchers_in_python(tmp_path: Path) -> None:
    seen: list[int] = []
    with track.Table(tmp_path / "t.csv") as first:
        both = track.together(first, lambda p: seen.append(p.round), None)
        tierfed.run(config(None), data=columns(), watch=both, folder=False)
    assert seen == [0, 1, 2, 3]
    assert pyarrow.csv.read_csv(tmp_path / "t.csv").num_rows == 4


class Breaks(track.Tracker):
    def log(self, round_: int, numbers: Any) -> None:
        raise ConnectionError("the server has gone away")


def test_a_tracker_that_fails_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "Table", lambda path: Breaks())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = tierfed.run(config(tmp_path / "r", "csv"), data=columns())
    assert run.engine.round == 3
    assert [str(w.message) for w in said] == ["track: csv stopped: ConnectionError: the server has gone away"]


@pytest.mark.parametrize(("name", "hint"), [("mlflow", "tierfed[mlflow]"), ("wandb", "tierfed[wandb]")])
def test_libraries_that_are_not_here(name: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(tierfed.InputError) as found:
        tierfed.run(config(tmp_path / "r", name), data=columns())
    assert f"{name} is not installed; pip install '{hint}'" in str(found.value)
    assert not (tmp_path / "r").exists()


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(tierfed.InputError, match="did you mean 'wandb'"):
        config(None, "wandbb")
    with pytest.raises(tierfed.InputError, match=r"wanted a name that ends with \.csv or \.parquet"):
        track.Table(tmp_path / "t.xlsx")
    (tmp_path / "t.parquet").write_text("no table")
    with pytest.raises(tierfed.InputError, match="cannot be gone on with"):
        track.Table(tmp_path / "t.parquet")
