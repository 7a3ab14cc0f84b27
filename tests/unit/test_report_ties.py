"""Who listens to whom, read from a run folder and shown: arrays by hand, heat maps and lines on the page."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tierfed.errors import InputError
from tierfed.report import write_report
from tierfed.report.load import RunFolder
from tierfed.report.ties import heat_maps, own_over_rounds
from tierfed.report.weights import by_labels, last_weights, own_weights
from tierfed.report.words import NONE
from unit.tie_folder import write_ties

# round -> layer -> row i: what d<i> gets of d0, d1, d2
WEIGHTS = {
    0: {"body": [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]], "head": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]},
    4: {"body": [[0.6, 0.1, 0.3], [0.2, 0.7, 0.1], [0.45, 0.05, 0.5]], "head": [[0.9, 0, 0.1], [0, 1, 0], [0, 0, 1]]},
}
# d0 and d2 have similar labels
COUNTS = [[60, 0, 0], [0, 10, 50], [50, 10, 0]]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.read(write_ties(tmp_path / "r", WEIGHTS, {"cloud": ["d0", "d1", "d2"]}, COUNTS))


def test_own_weights_by_hand(run: RunFolder) -> None:
    own = own_weights(run)
    assert own is not None
    assert (own.rounds.tolist(), own.layers, own.members) == ([0, 4], ("body", "head"), ("d0", "d1", "d2"))
    assert own.values.tolist() == [[[0.5, 0.5, 0.5], [1, 1, 1]], [[0.6, 0.7, 0.5], [0.9, 1, 1]]]


def test_last_weights_are_ordered_by_labels(run: RunFolder) -> None:
    """d0 and d2 are merged first, so they are neighbors, and so are the rows and columns of their weights."""
    last = last_weights(run)
    assert last is not None
    assert (last.round, last.hidden, list(last.layers)) == (4, 0, ["body", "head"])
    assert last.members in (("d0", "d2", "d1"), ("d2", "d0", "d1"))
    for i, a in enumerate(last.members):
        for j, b in enumerate(last.members):
            assert last.layers["body"][i, j] == WEIGHTS[4]["body"][int(a[1])][int(b[1])]


def test_overlapping_labels_are_in_their_order(tmp_path: Path) -> None:
    """Device i has the labels i, i + 1, i + 2; the devices are listed in another order."""
    order = [3, 0, 5, 1, 7, 4, 2, 6]
    counts = [[1 if 0 <= k - i <= 2 else 0 for k in range(10)] for i in order]
    names = [f"d{i}" for i in order]
    found = RunFolder.read(write_ties(tmp_path / "r", {0: {"model": np.eye(8)}}, {"cloud": names}, counts))
    got = by_labels(found, tuple(names))
    assert got in ([f"d{i}" for i in range(8)], [f"d{i}" for i in reversed(range(8))])


def test_servers_at_fogs_have_no_weights_across(tmp_path: Path) -> None:
    nodes = {"fog 0": ["d0", "d1"], "fog 1": ["d2", "d3", "d4"]}
    found = RunFolder.read(write_ties(tmp_path / "r", WEIGHTS, nodes, [[]] * 5))
    last = last_weights(found)
    assert last is not None
    assert last.members == ("d0", "d1", "d2", "d3", "d4")
    known = np.isfinite(last.layers["body"])
    assert known.tolist() == np.kron(np.array([[1, 0], [0, 1]]), np.ones((3, 3)))[1:, 1:].astype(bool).tolist()
    few = last_weights(found, most=3)
    assert few is not None
    assert (few.members, few.hidden) == (("d0", "d1"), 3)
    (body, _) = heat_maps(found)
    assert body.data.rows[0] == ["d0", "0.6000", "0.1000", NONE, NONE, NONE]


def test_the_charts(run: RunFolder) -> None:
    lines = own_over_rounds(run)
    assert lines is not None
    assert lines.data.rows == [["0", "0.5000", "1.0000"], ["4", "0.6000", "0.9667"]]
    assert "Last: body 0.6000; head 0.9667." in lines.alt
    body, head = heat_maps(run)
    assert (body.title, head.title) == ("Who listens to whom: body", "Who listens to whom: head")
    for chart in (body, head):
        assert "rows sum to 1" in chart.note
        assert "3 by 3 devices, after round 4" in chart.alt
    assert "mean own weight (diagonal) is 0.6000, the largest of others 0.4500: d2 listens to d0" in body.note
    (trace,) = body.figure["data"]
    at = {name: i for i, name in enumerate(trace["x"])}
    assert trace["z"][at["d2"]][at["d0"]] == 0.45
    assert trace["z"][at["d0"]][at["d2"]] == 0.3
    assert trace["hovertemplate"].startswith("%{y} listens to %{x}: weight %{z:.4f}")
    assert body.figure["layout"]["yaxis"]["autorange"] == "reversed"


def test_many_devices_have_a_short_table(tmp_path: Path) -> None:
    """30 devices; everybody listens to the next one by 0.4 and to itself by 0.6."""
    n = 30
    weights = 0.6 * np.eye(n) + 0.4 * np.roll(np.eye(n), 1, axis=1)
    names = [f"d{i}" for i in range(n)]
    (chart,) = heat_maps(
        RunFolder.read(write_ties(tmp_path / "r", {1: {"model": weights}}, {"cloud": names}, [[]] * n))
    )
    assert chart.data.headers == ("device", "listens most to", "own weight", "weight of that one")
    assert chart.data.rows[0] == ["d0", "d1", "0.6000", "0.4000"]
    assert chart.data.rows[-1] == ["d29", "d0", "0.6000", "0.4000"]


def test_one_device_listens_to_itself(tmp_path: Path) -> None:
    found = RunFolder.read(write_ties(tmp_path / "r", {1: {"model": [[1.0]]}}, {"cloud": ["d0"]}, [[]]))
    (chart,) = heat_maps(found)
    assert "is 1.0000." in chart.note


def test_on_the_page(run: RunFolder) -> None:
    text = write_report(run.path).read_text("utf-8")
    titles = re.findall(r"<h3>([^<]+)</h3>", text)
    assert titles[:3] == ["Own weight over rounds", "Who listens to whom: body", "Who listens to whom: head"]
    assert "<h2>Who listens to whom</h2>" in text
    (run.path / "ties.parquet").unlink()
    assert "Who listens to whom" not in write_report(run.path).read_text("utf-8")


def test_more_layers_are_folded_away(tmp_path: Path) -> None:
    layers = {f"layer{k}": np.eye(2) for k in range(10)}
    folder = write_ties(tmp_path / "r", {1: layers}, {"cloud": ["d0", "d1"]}, [[]] * 2)
    text = write_report(folder).read_text("utf-8")
    before, found, folded = text.partition("<summary>More layers</summary>")
    assert found
    assert "Who listens to whom: layer6" in before
    assert "Who listens to whom: layer7" not in before
    assert "Who listens to whom: layer9" in folded


def test_in_a_grid(run: RunFolder) -> None:
    (run.path.parent / "grid.json").write_text(json.dumps({"runs": ["r"]}))
    text = write_report(run.path.parent).read_text("utf-8")
    assert "Who listens to whom: head" in text


def test_a_damaged_file_is_named(run: RunFolder) -> None:
    (run.path / "ties.parquet").write_bytes(b"half")
    with pytest.raises(InputError, match=r"ties\.parquet cannot be read"):
        write_report(run.path)
