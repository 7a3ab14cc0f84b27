import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.errors import InputError
from tierfed.metrics import (
    METRICS,
    STATISTICS,
    Row,
    gain,
    higher_is_better,
    main_metric,
    per_sample_scores,
    summarize,
    to_table,
    write_atomic,
)

SCORES = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


def test_summary_of_four_devices_by_hand():
    got = summarize([0.2, 0.4, 0.6, 1.0], [1, 1, 1, 5])
    # weighted (0.2 + 0.4 + 0.6 + 5) / 8; deviations from 0.55 squared: .1225 .0225 .0025 .2025;
    # position 0.1 * 3 = 0.3 of the way from 0.2 to 0.4; ceil(0.4) = 1 worst device
    assert got == pytest.approx(
        {"weighted": 0.775, "mean": 0.55, "std": math.sqrt(0.35 / 4), "p10": 0.26, "worst": 0.2}, abs=1e-12
    )
    assert tuple(got) == STATISTICS


def test_the_bad_side_of_an_error_is_the_high_one():
    got = summarize([1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1], worst_share=0.5, higher_is_better=False)
    assert got["p10"] == pytest.approx(3.7)
    assert got["worst"] == pytest.approx(3.5)


@pytest.mark.parametrize(("share", "worst"), [(0.0, 0.0), (0.1, 1.0), (0.11, 1.5), (1.0, 14.5)])
def test_the_worst_share_is_rounded_up_and_holds_one_device_at_least(share, worst):
    # 30 devices score 0..29: 10 % are 3 devices (0, 1, 2), although 0.1 * 30 > 3 in floats; 11 % are 4
    assert summarize(np.arange(30.0), np.ones(30), share)["worst"] == pytest.approx(worst)


def test_devices_without_samples_are_left_out():
    assert summarize([math.nan, 0.5], [0, 10])["mean"] == 0.5
    assert all(math.isnan(v) for v in summarize([1.0], [0]).values())
    assert all(math.isnan(v) for v in summarize([], []).values())


def test_a_diverged_device_shows_and_does_not_crash():
    got = summarize([1.0, math.inf, 2.0], [1, 1, 1], higher_is_better=False)
    assert got["weighted"] == got["worst"] == got["p10"] == math.inf
    ranked = summarize([0.5] * 20 + [math.nan], [1] * 21)
    assert math.isnan(ranked["mean"])
    assert math.isnan(ranked["worst"])
    # position 0.1 * 20 = 2, past the NaN, which ranks first
    assert ranked["p10"] == 0.5


@pytest.mark.parametrize(
    ("values", "samples", "share", "message"),
    [
        ([1.0, 2.0], [1], 0.1, "wanted two vectors"),
        ([1.0], [-1], 0.1, "at least 0"),
        ([1.0], [1], 1.5, r"within \[0, 1\]"),
    ],
)
def test_impossible_summaries_are_refused(values, samples, share, message):
    with pytest.raises(InputError, match=message):
        summarize(values, samples, share)


@given(SCORES)
@settings(max_examples=25, deadline=None)
def test_statistics_keep_their_order(values):
    got = summarize(values, np.ones(len(values)))
    assert min(values) <= got["worst"] <= got["mean"] + 1e-9
    assert got["weighted"] == pytest.approx(got["mean"], abs=1e-9)
    assert got["p10"] == pytest.approx(np.percentile(values, 10), abs=1e-9)


@given(SCORES)
@settings(max_examples=25, deadline=None)
def test_errors_are_accuracies_upside_down(values):
    ones = np.ones(len(values))
    high, low = summarize(values, ones), summarize(-np.array(values), ones, higher_is_better=False)
    assert low["p10"] == pytest.approx(-high["p10"])
    assert low["worst"] == pytest.approx(-high["worst"])


def test_gain_is_positive_when_better():
    assert gain([0.9, 0.5], [0.75, 0.75]).tolist() == pytest.approx([0.15, -0.25])
    assert gain([1.0, 4.0], [2.0, 2.0], higher_is_better=False).tolist() == [1.0, -2.0]
    with pytest.raises(InputError, match="same devices"):
        gain([1.0], [1.0, 2.0])


def test_metric_directions():
    assert higher_is_better("accuracy")
    assert higher_is_better("abs_error/gain")
    assert not any(map(higher_is_better, ["loss", "abs_error", "squared_error/weighted"]))
    assert (main_metric("classification"), main_metric("regression")) == ("accuracy", "abs_error")


def test_classification_scores():
    outputs = torch.tensor([[2.0, 1.0], [0.0, 3.0], [math.nan, 0.0], [5.0, math.nan]])
    got = per_sample_scores(
        outputs, torch.tensor([0, 0, 0, 1]), "classification", torch.tensor([0.1, 3.0, math.nan, math.inf])
    )
    # the last two hold a NaN: wrong, although argmax takes a NaN for the maximum (column 0 and column 1, the labels)
    assert got["accuracy"].tolist() == [1, 0, 0, 0]
    assert got["loss"][1] == 3
    assert got["loss"].isfinite().tolist() == [True, True, False, False]


def test_regression_scores_are_means_over_dimensions():
    got = per_sample_scores(
        torch.tensor([[1.0, 5.0], [0.0, 0.0]]), torch.tensor([[2.0, 2.0], [0.0, 4.0]]), "regression", torch.ones(2)
    )
    assert got["abs_error"].tolist() == [2, 2]
    assert got["squared_error"].tolist() == [5, 8]


def test_a_column_and_a_vector_are_the_same_target():
    # broadcasting [2, 1] against [2] would silently compare every pair
    got = per_sample_scores(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]), "regression", torch.zeros(2))
    assert got["abs_error"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("outputs", "y", "kind"),
    [
        (torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), "classification"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), "classification"),
        (torch.zeros(3, 2), torch.zeros(3), "regression"),
    ],
)
def test_outputs_that_do_not_fit_the_targets_are_refused(outputs, y, kind):
    with pytest.raises(InputError, match="let the model return"):
        per_sample_scores(outputs, y, kind, torch.zeros(3))


def test_scores_map_over_devices():
    outputs, y = torch.eye(2).expand(3, 2, 2), torch.tensor([[0, 1], [1, 0], [0, 0]])
    got = torch.func.vmap(lambda o, t: per_sample_scores(o, t, "classification", torch.zeros(2))["accuracy"])(
        outputs, y
    )
    assert got.tolist() == [[1, 1], [0, 0], [1, 0]]


def test_rows_survive_the_file(tmp_path):
    rows = [
        Row(0, "device", "d0", "global", "test", "accuracy", 0.5),
        Row(1, "link", "cloud-fog", "", "", "down_bytes", 2.0**40 + 1),
        Row(1, "cloud", "cloud", "global", "test", "loss/weighted", math.nan),
    ]
    write_atomic(tmp_path / "metrics.parquet", to_table(rows))
    table = pq.read_table(tmp_path / "metrics.parquet")
    assert table.schema.equals(METRICS)
    back = [Row(**r) for r in table.to_pylist()]
    assert back[:2] == rows[:2]
    assert math.isnan(back[2].value)
    assert to_table([]).num_rows == 0


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "note.txt"
    write_atomic(path, "old é")
    with pytest.raises(TypeError):
        write_atomic(path, 3)  # type: ignore[arg-type]
    assert path.read_bytes() == "old é".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_written_files_follow_the_umask(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "atomic", b"x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_table_replaces_a_table(tmp_path):
    for value in (1.0, 2.0):
        write_atomic(tmp_path / "m.parquet", to_table([Row(0, "", "", "", "", "m", value)]))
    assert pq.read_table(tmp_path / "m.parquet")["value"] == pa.chunked_array([[2.0]])
