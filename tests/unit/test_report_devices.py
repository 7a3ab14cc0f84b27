"""The charts of devices and of the tree: ranks, gains, teams over rounds."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tierfed.metrics import Row, to_table
from tierfed.report import forest, spread, write_report
from tierfed.report.grid import member_of
from tierfed.report.labels import accuracies, by_label
from tierfed.report.load import RunFolder
from unit.test_report import page, rewrite, write_grid, write_run

NAMES = [f"d{i}" for i in range(12)]


def small(folder: Path, values: list[float], algorithm: str = "ditto", rounds: int = 1) -> RunFolder:
    """A run of twelve devices in two teams with these personal accuracies, the same in every round."""
    write_run(folder, algorithm, devices=12, rounds=rounds)
    rows = [
        Row(t, "device", n, "personal_post", "test", "accuracy", v)
        for t in range(1, rounds + 1)
        for n, v in zip(NAMES, values, strict=True)
    ]
    rewrite(folder, rows)
    return RunFolder.read(folder)


def events(run: RunFolder, *happened: dict[str, object]) -> RunFolder:
    (run.path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in happened))
    return RunFolder.read(run.path)


def move(round_: int, device: str, to: str) -> dict[str, object]:
    return {"round": round_, "event": "regroup", "device": device, "from": "?", "to": to}


def test_ranks_from_the_worst_and_the_worst_tenth(tmp_path):
    """Of 12 devices a tenth is 1.2, rounded up 2: d3 (0.1) and d0 (0.2), on average 0.15."""
    run = small(tmp_path / "r", [0.2, 0.5, 0.9, 0.1] + [0.6 + 0.01 * i for i in range(8)])
    chart = spread.ranked(run)
    worst, others = chart.figure["data"]
    assert (worst["x"], worst["y"], worst["text"]) == ([1, 2], [0.1, 0.2], ["d3", "d0"])
    assert others["text"][0] == "d1"
    assert others["text"][-1] == "d2"
    assert "Mean of the worst 10 %: 15.0 %" in chart.note
    assert chart.data.rows[0][:2] == ["1", "d3"]
    assert "The worst: d3, d0" in chart.alt


def test_a_device_that_is_not_finite_is_the_worst(tmp_path):
    run = small(tmp_path / "r", [0.5, float("nan")] + [0.6] * 10)
    assert spread.ranked(run).data.rows[0][1::3] == ["d1", "not finite"]


def test_lower_errors_are_better(tmp_path):
    run = RunFolder.read(write_run(tmp_path / "r", "ditto", devices=12, regression=True))
    values = spread.ranked(run).figure["data"][0]["y"] + spread.ranked(run).figure["data"][1]["y"]
    assert values == sorted(values, reverse=True)


def test_gains_of_a_run_that_names_its_baseline(tmp_path):
    """Gains 0.1, 0, -0.2 and nine times 0.3: the mean is 2.6 / 12."""
    small(tmp_path / "alone", [0.5] * 12, "local")
    run = small(tmp_path / "r", [0.6, 0.5, 0.3] + [0.8] * 9)
    assert spread.gained(member_of(run)) is None
    text = (run.path / "config.toml").read_text() + f"\n[eval]\nbaseline = {str(tmp_path / 'alone')!r}\n"
    (run.path / "config.toml").write_text(text)
    chart = spread.gained(member_of(RunFolder.read(run.path)))
    worse, better = chart.figure["data"]
    assert (worse["y"], worse["text"]) == ([-0.2], ["d2"])
    assert better["y"] == pytest.approx([0, 0.1] + [0.3] * 9)
    assert "10 of 12 devices do better than alone, 1 worse; mean gain +21.7 %" in chart.note


def test_gains_of_a_run_in_a_grid(tmp_path):
    write_grid(tmp_path / "grid", devices=12)
    run = RunFolder.read(tmp_path / "grid" / "ditto-s1")
    member = member_of(run)
    assert member.baseline is not None
    assert (member.baseline.algorithm, member.baseline.seed) == ("local", 1)
    assert spread.gained(member) is not None
    assert spread.gained(member_of(RunFolder.read(tmp_path / "grid" / "local-s1"))) is None
    (tmp_path / "grid" / "local-s0" / "metrics.parquet").write_bytes(b"broken")
    assert spread.gained(member_of(run)) is None


def test_the_tree_after_each_round(tmp_path):
    run = small(tmp_path / "r", [0.5] * 12, rounds=3)
    run = events(run, move(1, "d0", "fog 2"), move(3, "d0", "fog 3"), move(3, "d1", "fog 1"))
    got = {r: forest.shape_after(run, r).teams[:2] for r in range(4)}
    assert got == {0: ("fog 1", "fog 2"), 1: ("fog 2", "fog 2"), 2: ("fog 2", "fog 2"), 3: ("fog 3", "fog 1")}


def test_teams_below_regions_that_change(tmp_path):
    run = small(tmp_path / "r", [0.5] * 12)
    table = pq.read_table(run.path / "devices.parquet")
    above = pa.array([["region a"] if t == "fog 1" else ["region b"] for t in table["team"].to_pylist()])
    pq.write_table(table.append_column("above", above), run.path / "devices.parquet")
    run = events(run, {"round": 1, "event": "rebuild", "node": "fog 2", "from": "region b", "to": "region a"})
    assert forest.shape_after(run, 0).above == {"fog 1": ("region a",), "fog 2": ("region b",)}
    assert forest.shape_after(run, 1).above == {"fog 1": ("region a",), "fog 2": ("region a",)}
    titles = forest.tree(run).figure["data"][1]["text"]
    assert sorted(titles) == ["cloud", "fog 1: 6 devices", "fog 2: 6 devices", "region a: 12 devices"]


def test_a_tree_that_a_damaged_file_bends_into_a_circle(tmp_path):
    run = small(tmp_path / "r", [0.5] * 12)
    loop = [{"round": 1, "event": "rebuild", "node": a, "to": b} for a, b in (("fog 1", "fog 2"), ("fog 2", "fog 1"))]
    table = pq.read_table(run.path / "devices.parquet")
    pq.write_table(table.append_column("above", pa.array([["x"]] * 12)), run.path / "devices.parquet")
    chart = forest.tree(events(run, *loop))
    assert len(chart.figure["data"][-1]["x"]) == 12


def test_the_picture_of_the_tree(tmp_path):
    run = events(small(tmp_path / "r", [i / 11 for i in range(12)], rounds=3), move(2, "d0", "fog 2"))
    chart = forest.tree(run)
    edges, nodes, devices = chart.figure["data"]
    assert len(devices["x"]) == 12
    assert np.hypot(devices["x"], devices["y"]) == pytest.approx(np.ones(12), abs=1e-3)
    assert devices["marker"]["color"] == pytest.approx([i / 11 for i in range(12)], abs=1e-4)
    assert devices["text"][0] == "d0, fog 2, began in fog 1"
    assert devices["marker"]["symbol"] == ["diamond"] + ["circle"] * 11
    assert edges["x"].count(None) == 2 + 12
    assert nodes["text"] == ["cloud", "fog 2: 7 devices", "fog 1: 5 devices"]
    steps = chart.figure["layout"]["sliders"][0]["steps"]
    assert [s["label"] for s in steps] == ["1", "2", "3"]
    assert steps[0]["args"][0]["text"][2][0] == "d0, fog 1"
    assert chart.data.rows[0] == ["d0", "fog 2", "fog 1", "1", "0.0 %"]


def test_a_flat_tree_is_a_star(tmp_path):
    chart = forest.tree(RunFolder.read(write_run(tmp_path / "r", "fedavg", devices=3, teams=0)))
    edges, nodes, devices = chart.figure["data"]
    assert (len(nodes["x"]), edges["x"].count(None), len(devices["x"])) == (1, 3, 3)
    assert "sliders" not in chart.figure["layout"]


def test_teams_of_those_that_moved(tmp_path):
    run = events(small(tmp_path / "r", [0.5] * 12, rounds=3), move(2, "d0", "fog 2"), move(3, "d0", "fog 1"))
    (line,) = forest.memberships(run).figure["data"]
    assert line["y"] == ["d0"]
    assert dict(zip(line["x"], line["customdata"][0], strict=True)) == {0: "fog 1", 1: "fog 1", 2: "fog 2", 3: "fog 1"}
    assert forest.memberships(events(run)) is None


def test_a_hundred_devices_and_rounds_stay_below_three_megabytes(tmp_path):
    from tierfed.report import write_report

    folder = write_run(tmp_path / "r", "jobfed", devices=100, teams=10, rounds=100)
    assert write_report(folder).stat().st_size < 3e6


def test_a_run_without_scores_has_no_such_charts(tmp_path):
    run = small(tmp_path / "r", [0.5] * 12)
    pq.write_table(to_table([]), run.path / "metrics.parquet")
    run = RunFolder.read(run.path)
    assert (forest.tree(run), spread.ranked(run), spread.gained(member_of(run))) == (None, None, None)


def test_labels_and_devices(tmp_path: Path) -> None:
    """d0 has two of three labels: 3 of 4 answers right on the one, none on the other; d1 has the third alone."""
    folder = write_run(tmp_path / "run", "fedavg", devices=2, teams=0, rounds=1)
    rows = [("d0", 0, 0.75), ("d0", 2, 0.0), ("d1", 1, 1.0)]
    more = to_table(Row(1, "device", n, "personal_post", "test", f"accuracy/label/{k}", v) for n, k, v in rows)
    pq.write_table(more, folder / "labels.parquet")
    table = pq.read_table(folder / "devices.parquet")
    names = {"labels": json.dumps(["ok", "worn", "<b>broken</b>"])}
    pq.write_table(table.replace_schema_metadata(names), folder / "devices.parquet")
    run = RunFolder.read(folder)
    found = by_label(run, "personal_post")
    assert np.array_equal(found, [[0.75, np.nan, 0.0], [np.nan, 1.0, np.nan]], equal_nan=True)
    (chart,) = accuracies(run)  # nothing was measured of the global model
    heat = chart.figure["data"][0]
    assert heat["z"] == [[0.75, None], [None, 1.0], [0.0, None]]
    assert heat["y"][:3] == ["ok", "worn", "&lt;b&gt;broken&lt;/b&gt;"]
    assert chart.data.rows[0] == ["d0", "75.0 %", "–", "0.0 %"]
    assert "label <b>broken</b>, 0.0 % on average" in chart.alt
    assert "Accuracy on each label" in page(write_report(folder)).text
