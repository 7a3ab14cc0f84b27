"""Evaluation of a sample of the devices: who is drawn, what is recorded, what is shown."""

import io
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import tierfed
from tierfed import Dataset, InputError, Progress, Result
from tierfed.evaluation import evaluate, evaluated
from tierfed.folders import read_baseline
from tierfed.metrics import Row, Scores, confidence
from tierfed.preview import preview
from tierfed.progress import scores as told
from tierfed.record import gain_over, headline, margins, score_rows
from tierfed.report import summary, summary_table, write_report
from tierfed.report.grid import GridFolder, gains
from tierfed.report.labels import by_label
from tierfed.report.load import RunFolder
from tierfed.rng import sample
from tierfed.setup import prepare
from tierfed.store import MemoryStore

DEVICES = 8


def toy() -> Dataset:
    """Eight devices with 10 to 17 rows of three numbers, the last three or four of them for tests."""
    rng = np.random.default_rng(0)
    sizes = 10 + np.arange(DEVICES)
    device = np.repeat(np.arange(DEVICES), sizes)
    split = np.concatenate([np.where(np.arange(n) < n - 3 - i % 2, 0, 2) for i, n in enumerate(sizes)])
    x = rng.normal(size=(len(device), 3))
    y = (x[:, 0] + x[:, 1] * (device % 2) > 0).astype(np.int64)
    return Dataset(
        name="toy",
        x=torch.from_numpy(x.astype(np.float32)),
        y=torch.from_numpy(y),
        bits_per_sample=96,
        classes=("down", "up"),
        device=device,
        devices=tuple(f"d{i}" for i in range(DEVICES)),
        split=split,
    )


def config(devices: int = 3, **changes: Any) -> dict[str, Any]:
    tables: dict[str, Any] = {
        "run": {"rounds": 3, "threads": 1},
        "data": {"batch": 4},
        "model": {"name": "mclr"},
        "algorithm": {"name": "ditto"},
        "eval": {"every": 1, "devices": devices},
    }
    return {k: {**tables.get(k, {}), **changes.get(k, {})} for k in tables | changes}


def run(**changes: Any) -> Result:
    return tierfed.run(config(**changes), data=toy(), folder=False)


def to_folder(path: Path, **changes: Any) -> Path:
    tierfed.run(config(**{**changes, "run": {"out": str(path), **changes.get("run", {})}}), data=toy())
    return path


def world_of(devices: int) -> Any:
    return prepare(tierfed.load_config(config(devices=devices)), toy())


def of_devices(rows: list[Row], round_: int | None = None) -> dict[tuple[int, str, str, str], float]:
    return {
        (r.round, r.node, r.model, r.metric): r.value
        for r in rows
        if r.tier == "device" and r.model and round_ in (None, r.round)
    }


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_a_sample_has_no_device_twice(sizes: tuple[int, int], key: int) -> None:
    n, population = sizes
    drawn = sample(n, population, key)
    assert np.array_equal(drawn, np.unique(drawn))
    assert (len(drawn), drawn.min() >= 0, drawn.max() < population) == (n, True, True)
    assert np.array_equal(sample(n, population, key), drawn)


def test_every_subset_is_as_likely() -> None:
    """2 of 4: six subsets, 3,000 draws; each 500 times, within four standard deviations (81)."""
    found = [tuple(sample(2, 4, 7, k).tolist()) for k in range(3000)]
    counts = [found.count(pair) for pair in itertools.combinations(range(4), 2)]
    assert sum(counts) == 3000
    assert all(abs(c - 500) < 4 * math.sqrt(3000 * 5 / 36) for c in counts)


def test_a_few_of_very_many() -> None:
    drawn = sample(5, 10**12, 1)
    assert len(set(drawn.tolist())) == 5
    assert drawn.max() < 10**12


def test_the_interval_by_hand() -> None:
    """3 of 12 devices with 1/2, 3/4, 1: s^2 = 1/16, f = 1/4, t(2) = 4.302653 (tables): 4.302653 sqrt(3/4 / 16 / 3).

    Weights 1, 1, 2 give the mean 13/16 and, with mean(w) = 4/3, w (v - mean) / mean(w) = -15/64, -3/64, 18/64.
    """
    assert confidence([0.5, 0.75, 1.0], 12) == pytest.approx(4.302653 / 8, rel=1e-6)
    squares = (15**2 + 3**2 + 18**2) / 64**2
    assert confidence([0.5, 0.75, 1.0], 12, [1, 1, 2]) == pytest.approx(
        4.302653 * math.sqrt(0.75 * squares / 2 / 3), rel=1e-6
    )
    # 4 were drawn, of which one has no test data
    assert confidence([0.5, 0.75, 1.0], 12, drawn=4) == pytest.approx(4.302653 * math.sqrt(2 / 3 / 16 / 3), rel=1e-6)
    assert confidence([0.5, 0.75, 1.0], 3) == 0.0
    assert math.isnan(confidence([0.5], 12))
    assert math.isnan(confidence([0.5, math.inf], 12))


def test_the_interval_has_the_variance_of_the_mean() -> None:
    """Over all samples of 3 of 6 devices: the mean of (half / t)^2 is the variance of the sample mean."""
    values = np.array([0.1, 0.4, 0.5, 0.9, 1.0, 0.2])
    subsets = [values[list(s)] for s in itertools.combinations(range(6), 3)]
    t = confidence([0.0, 1.0, 2.0], 10**15) / math.sqrt(1 / 3)
    assert t == pytest.approx(4.302653, rel=1e-6)
    assert np.mean([(confidence(s, 6) / t) ** 2 for s in subsets]) == pytest.approx(np.var([s.mean() for s in subsets]))


def test_devices_are_drawn_anew_by_seed_and_round() -> None:
    world = prepare(tierfed.load_config(config(devices=4)), toy())
    drawn = {r: tuple(evaluated(world, r).tolist()) for r in range(12)}
    assert all(len(d) == 4 for d in drawn.values())
    assert len(set(drawn.values())) > 6
    other = prepare(tierfed.load_config(config(devices=4, run={"seed": 1})), toy())
    assert drawn != {r: tuple(evaluated(other, r).tolist()) for r in range(12)}
    everybody = prepare(tierfed.load_config(config(devices=4, eval={"devices": 4, "final": "all"})), toy())
    assert tuple(evaluated(everybody, 3).tolist()) == drawn[3]
    assert evaluated(everybody, 3, last=True).tolist() == list(range(DEVICES))


def test_the_rows_of_a_sample_are_those_of_the_whole() -> None:
    """The same training; of each evaluation the rows of three devices, statistics over them, and half widths."""
    some, whole = run(), run(devices=0)
    mine, every = of_devices(some.rows), of_devices(whole.rows)
    assert mine == pytest.approx({k: every[k] for k in mine})
    for r in range(4):
        drawn = {f"d{i}" for i in evaluated(some.world, r)}
        assert {node for round_, node, *_ in mine if round_ == r} == drawn
        values = [
            v for (round_, _, model, metric), v in mine.items() if (round_, model, metric) == (r, "global", "loss")
        ]
        rows = {x.metric: x.value for x in some.rows if (x.round, x.tier, x.model) == (r, "cloud", "global")}
        assert len(values) == 3
        assert rows["loss/mean"] == pytest.approx(np.mean(values))
        assert rows["loss/ci95"] == pytest.approx(confidence(values, DEVICES))
        assert rows["loss/weighted_ci95"] > 0
    assert not any("ci95" in x.metric for x in whole.rows)
    assert {(x.round, x.model, x.metric) for x in whole.rows if x.tier == "cloud"} == {
        (x.round, x.model, x.metric) for x in some.rows if x.tier == "cloud" and "ci95" not in x.metric
    }


def test_the_last_evaluation_may_be_of_all() -> None:
    result = run(eval={"every": 1, "devices": 3, "final": "all"})
    assert {node for _, node, *_ in of_devices(result.rows, 3)} == {f"d{i}" for i in range(DEVICES)}
    assert len({node for _, node, *_ in of_devices(result.rows, 2)}) == 3
    assert {x.round for x in result.rows if "ci95" in x.metric} == {0, 1, 2}


def test_drawn_devices_without_test_data_have_no_score() -> None:
    """All but d2 and d5 are without; where one of them alone is drawn, its interval is not known."""
    world = world_of(3)
    test = tuple(rows if i in (2, 5) else rows[:0] for i, rows in enumerate(world.federation.test))
    world = replace(world, federation=replace(world.federation, test=test))
    engine, seen = world.engine(MemoryStore()), set[int]()
    for r in range(9):
        drawn = evaluated(world, r)
        rows = score_rows(world, r, evaluate(engine, test, "classification", drawn), drawn)
        with_data = {f"d{i}" for i in drawn} & {"d2", "d5"}
        assert {node for _, node, *_ in of_devices(rows, r)} == with_data
        half = [x.value for x in rows if (x.model, x.metric) == ("global", "accuracy/ci95")]
        assert len(half) == bool(with_data)
        assert all(math.isnan(h) == (len(with_data) == 1) for h in half)
        seen.add(len(with_data))
    assert seen == {0, 1, 2}


def test_a_killed_run_draws_the_same(tmp_path: Path) -> None:
    whole = to_folder(tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.round == 1:
            raise KeyboardInterrupt

    tables = config(run={"out": str(tmp_path / "half"), "rounds": 3, "threads": 1})
    assert tierfed.run(tables, data=toy(), watch=stop).interrupted
    again = tierfed.resume(tmp_path / "half", data=toy())
    with tierfed.open_run(whole, data=toy()) as expected:
        assert again.rows == expected.rows


def test_gains_are_over_devices_that_both_runs_have(tmp_path: Path) -> None:
    """The baseline drew three devices at its end; of two that are evaluated now, some are among them."""
    base = to_folder(tmp_path / "local", algorithm={"name": "local"})
    world = prepare(tierfed.load_config(config(eval={"devices": 2, "baseline": str(base)})), toy())
    baseline = read_baseline(world)
    assert baseline is not None
    assert baseline.devices.tolist() == evaluated(world_of(3), 3).tolist()
    result = run(eval={"every": 1, "devices": 2, "baseline": str(base)}, run={"rounds": 9, "threads": 1})
    found = {x.round: x.value for x in result.rows if (x.model, x.metric) == ("personal_post", "accuracy/gain")}
    before = dict(zip(baseline.devices.tolist(), baseline.values.tolist(), strict=True))
    expected = {}
    for r in range(10):
        both = [i for i in evaluated(result.world, r).tolist() if i in before]
        now = of_devices(result.rows, r)
        if both:
            expected[r] = np.mean([now[r, f"d{i}", "personal_post", "accuracy"] - before[i] for i in both])
    assert found == pytest.approx(expected)
    assert 0 < len(found) < 10


def test_gains_of_no_common_device() -> None:
    one, other = (Scores(np.array([i]), np.array([0.5])) for i in (0, 1))
    assert gain_over(one, other, higher=True) is None
    world = world_of(2)
    rows = score_rows(world, 0, {"personal_post": {"accuracy": one}}, np.array([0, 3]), other)
    assert not any("gain" in r.metric for r in rows)


def test_a_whole_baseline_must_have_every_device(tmp_path: Path) -> None:
    """A sampled run takes what it has; a run that evaluates all wants all, unless the baseline is a sample."""
    base = to_folder(tmp_path / "local", devices=0, algorithm={"name": "local"}, data={"batch": 4, "devices": 5})
    want = config(devices=0, eval={"devices": 0, "baseline": str(base)})
    with pytest.raises(InputError, match="has no personal_post score of device"):
        read_baseline(prepare(tierfed.load_config(want), toy()))
    some = read_baseline(prepare(tierfed.load_config(want, {"eval.devices": 2}), toy()))
    assert some is not None
    assert len(some.devices) == 5


def test_more_devices_than_there_are() -> None:
    with pytest.raises(InputError, match=r"eval\.devices = 9, but there are 8 devices"):
        run(devices=9)


def test_progress_has_half_widths() -> None:
    seen: list[Progress] = []
    tierfed.run(config(), data=toy(), folder=False, watch=seen.append)
    last = seen[-1]
    assert last.margins.keys() == last.scores.keys()
    assert f"global {last.scores['global']:.3f} ± {last.margins['global']:.3f}" in told(last)


def test_a_whole_evaluation_after_samples_has_no_half_widths() -> None:
    rows = run(eval={"every": 1, "devices": 3, "final": "all"}).rows
    assert margins([r for r in rows if r.round < 3]).keys() == headline(rows).keys()
    assert margins(rows) == {}


def test_a_long_evaluation_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that makes a second of every look: words after 2, 4, 8 … seconds."""
    world = world_of(0)
    clock = itertools.count()
    monkeypatch.setattr("tierfed.evaluation.time.monotonic", lambda: float(next(clock)))
    words: list[str] = []
    engine = world.engine(MemoryStore())
    test = world.federation.test
    evaluate(engine, test, "classification", np.arange(DEVICES), post=False, chunk=1, tell=words.append)
    assert words == ["evaluating: 3 of 8 devices", "evaluating: 5 of 8 devices"]


def shown(folder: Path) -> str:
    file = io.StringIO()
    Console(width=400, file=file).print(summary_table(folder))
    return file.getvalue()


def test_reports_say_that_it_is_a_sample(tmp_path: Path) -> None:
    folder = to_folder(tmp_path / "r")
    found = summary(folder)
    assert (found["devices"], found["evaluated_devices"]) == (DEVICES, 3)
    read = RunFolder.read(folder)
    statistics = read.statistics("global")
    values = read.last_scores("global").values
    assert len(values) == 3
    assert statistics["mean"] == pytest.approx(values.mean())
    assert statistics["ci95"] == pytest.approx(confidence(values, DEVICES))
    half = f"± {100 * statistics['weighted_ci95']:.1f}"
    text = shown(folder)
    assert "sample of 3 of 8 devices" in text
    assert half in text
    page = write_report(folder).read_text(encoding="utf-8")
    assert "evaluated on a sample of 3 of 8 devices" in page
    assert half in page
    assert set(read.scores("global")) == {0, 1, 2, 3}
    assert all(len(s.values) == 3 for s in read.scores("global").values())


def test_a_whole_last_evaluation_is_no_sample(tmp_path: Path) -> None:
    folder = to_folder(tmp_path / "r", eval={"every": 1, "devices": 3, "final": "all"})
    assert summary(folder)["evaluated_devices"] == DEVICES
    assert "±" not in shown(folder)
    assert "Each evaluation drew 3 of 8 devices" in write_report(folder).read_text(encoding="utf-8")


def test_comparisons_of_samples(tmp_path: Path) -> None:
    """Runs with one seed draw the same devices, so gains are of all three."""
    names = ["local", "ditto"]
    for name in names:
        to_folder(tmp_path / name, algorithm={"name": name})
    (tmp_path / "grid.json").write_text(json.dumps({"runs": names}))
    grid = GridFolder.read(tmp_path)
    each = gains(grid.members[1]).values
    assert each is not None
    local, ditto = (RunFolder.read(tmp_path / n).last_scores("personal_post") for n in names)
    assert np.array_equal(local.devices, ditto.devices)
    assert np.array_equal(each, ditto.values - local.values)
    text = shown(tmp_path)
    assert "sample of 3 of 8 devices" in text
    ditto_half = RunFolder.read(tmp_path / "ditto").statistics("personal_post")["weighted_ci95"]
    assert f"± {100 * ditto_half:.1f}" in text
    assert "Evaluated on a sample of 3 of 8 devices" in write_report(tmp_path).read_text(encoding="utf-8")


def test_show_says_who_is_evaluated() -> None:
    assert preview(world_of(3))["evaluation"] == "3 of 8 devices, drawn anew every round"
    assert "evaluation" not in preview(world_of(0))


def test_accuracies_of_labels_add_up(tmp_path: Path) -> None:
    """Weighted by the test samples of each label they are the accuracy of the device; both engines say the same."""
    said = {}
    for kind in ("serial", "vectorized"):
        out = {"rounds": 1, "threads": 1, "out": str(tmp_path / kind)}
        result = tierfed.run(config(0, run=out, engine={"name": kind}), data=toy())
        federation = result.world.federation
        values = {
            (r.node, r.model): r.value for r in result.rows if (r.round, r.tier, r.metric) == (1, "device", "accuracy")
        }
        found = {m: by_label(RunFolder.read(tmp_path / kind), m) for m in ("global", "personal_pre", "personal_post")}
        counts = federation.label_counts("test")
        for model, shares in found.items():
            assert np.array_equal(np.isnan(shares), counts == 0)
            right = (np.nan_to_num(shares) * counts).sum(1) / counts.sum(1)
            assert right == pytest.approx([values[name, model] for name in federation.devices], abs=1e-4)
        said[kind] = found
    for model, shares in said["serial"].items():
        assert np.array_equal(shares, said["vectorized"][model], equal_nan=True)
    tierfed.run(config(0, run={"rounds": 1, "out": str(tmp_path / "no")}, eval={"labels": False}), data=toy())
    assert not (tmp_path / "no" / "labels.parquet").exists()
