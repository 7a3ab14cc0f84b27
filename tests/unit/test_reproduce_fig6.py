"""The study of pFedLA's figures: its numbers by hand, what is drawn, and how figures come onto a page."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tierfed.report.load import RunFolder
from tierfed.reproduce import STUDIES, Figure, Line, Options, pfedla_fig6
from tierfed.reproduce.page import cells, markdown, write_page
from tierfed.reproduce.pfedla_fig6 import decay, leading, own_weight
from tierfed.reproduce.runner import Entry, Outcome
from unit.tie_folder import write_ties

STUDY = STUDIES["pfedla-fig6"]
NAMES = [f"device-{i}" for i in range(8)]
COUNTS = [[50 if 0 <= k - i <= 2 else 0 for k in range(10)] for i in range(8)]
LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")


def near(strength: float) -> Any:
    """Weights that decay with the number of labels that are not shared; 0: equal."""
    far = np.minimum(np.abs(np.subtract.outer(np.arange(8), np.arange(8))), 3)
    raw = np.exp(-strength * far)
    return raw / raw.sum(1, keepdims=True)


def folder(path: Path, weights: dict[int, dict[str, Any]], counts: list[Any] = COUNTS) -> RunFolder:
    names = NAMES[: len(counts)]
    return RunFolder.read(write_ties(path, weights, {"cloud": names}, counts))


class TestNumbers:
    def test_decay_with_the_distance(self, tmp_path: Path) -> None:
        """Label distributions of clients 0, 1, 2, 3 and more apart differ by 0, 1/3, 2/3, 1. Weights in the opposite
        order have the correlation -1, in the same order +1; equal weights have none.
        """
        assert decay(folder(tmp_path / "a", {1: {"m": near(1.0)}})) == pytest.approx(-1)
        assert decay(folder(tmp_path / "b", {1: {"m": near(-1.0)}})) == pytest.approx(1)
        assert decay(folder(tmp_path / "c", {1: {"m": near(1.0), "n": near(-1.0)}})) == pytest.approx(0, abs=1e-12)
        assert decay(RunFolder.read(tmp_path / "c"), "n") == pytest.approx(1)
        assert np.isnan(decay(folder(tmp_path / "d", {1: {"m": near(0.0)}})))

    def test_decay_by_hand(self, tmp_path: Path) -> None:
        """Of client 0 the others are 0.5 and 1 away with weights 0.3, 0.2: -1. Of client 1 both are 0.5 away: left out.
        Of client 2: 1 and 0.5 away with weights 0.3, 0.1: +1. The mean is 0.
        """
        weights = [[0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.3, 0.1, 0.6]]
        counts = [[9, 9, 0, 0], [0, 5, 5, 0], [0, 0, 2, 2]]
        assert decay(folder(tmp_path / "r", {1: {"m": weights}}, counts)) == pytest.approx(0, abs=1e-12)

    def test_own_model_leads(self, tmp_path: Path) -> None:
        """In five of six rows of two layers."""
        first = [[0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.3, 0.1, 0.6]]
        second = [[0.4, 0.5, 0.1], [0.3, 0.4, 0.3], [0.3, 0.1, 0.6]]
        run = folder(tmp_path / "r", {0: {"m": np.ones((3, 3)) / 3}, 9: {"m": first, "n": second}}, COUNTS[:3])
        assert leading(run) == pytest.approx(100 * 5 / 6)
        assert leading(run, "n") == pytest.approx(100 * 2 / 3)
        assert own_weight("n", run) == pytest.approx(100 * (0.4 + 0.4 + 0.6) / 3)

    def test_a_run_without_ties(self, tmp_path: Path) -> None:
        run = folder(tmp_path / "r", {1: {"m": near(1.0)}})
        (run.path / "ties.parquet").unlink()
        again = RunFolder.read(run.path)
        assert all(np.isnan(v) for v in (leading(again), decay(again), own_weight("m", again)))
        assert pfedla_fig6.draw_weights("k", ("m",), {"k": [again]}) == ""
        assert pfedla_fig6.draw_own("k", {"k": [again], "k-large": [again]}) == ""


class TestStudy:
    def test_the_paper_has_no_numbers(self) -> None:
        assert {line.paper for line in STUDY.lines} == {None}
        assert {case.tables["run"]["rounds"] for case in STUDY.cases} == {600}

    def test_every_case_has_lines_and_figures(self) -> None:
        keys = {case.key for case in STUDY.cases}
        assert {line.case for line in STUDY.lines} == keys
        assert {c for figure in STUDY.figures for c in figure.cases} == keys

    def test_the_remark_is_shown_unless_something_is_missing(self) -> None:
        line = Line(data="D", method="M", quantity="Q", algorithm="pfedla", remark="paper: more")
        assert cells(Entry(line=line, values=(1.0,)))[-1] == "paper: more"
        assert cells(Entry(line=line, missing="not finished"))[-1] == "not finished"


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    """Two of the cases are finished: those of MNIST."""
    weights = {r: {layer: near(0.1 * r * k) for k, layer in enumerate(LAYERS)} for r in (0, 5, 10)}
    runs = {key: [folder(tmp_path / "runs" / key, weights)] for key in ("mnist", "mnist-large")}
    return Outcome(study=STUDY, options=Options(), entries=(), rounds={}, seconds={}, finished=True, runs=runs)


class TestFigures:
    def test_files_beside_the_page(self, outcome: Outcome, tmp_path: Path) -> None:
        page = write_page(outcome, tmp_path / "docs" / "pfedla-fig6.md")
        names = {f"pfedla-fig6-mnist{rest}.svg" for rest in ("-own", "-weights", "-large-weights")}
        assert {p.name for p in page.parent.iterdir()} == {"pfedla-fig6.md", *names}
        text = page.read_text("utf-8")
        assert {f"({name})" for name in names} <= set(text.replace("\n", " ").replace("]", " ").split())
        for name in names:
            ElementTree.fromstring((page.parent / name).read_text("utf-8"))
        assert "cifar" not in text.partition("## What the paper leaves open")[0]

    def test_what_is_drawn(self, outcome: Outcome) -> None:
        """Ten rounds of strength 0.1 k: layers in order, the last one has the largest own weight."""
        own, weights = (f.draw(outcome.runs) for f in STUDY.figures[:2])
        for layer in LAYERS:
            assert f">{layer}</text>" in own
            assert f">{layer}</text>" in weights
        diagonal = near(4.0).diagonal().mean()
        assert f"fc3: mean self weight {diagonal:.3f}" in weights
        assert weights.count(f">{near(4.0)[0, 0]:.3f}<") >= 2
        assert own == STUDY.figures[0].draw(outcome.runs)

    def test_nothing_to_show(self, outcome: Outcome) -> None:
        def draw(runs: Any) -> str:
            return "<svg/>" if "cifar" in runs else ""

        figures = (
            Figure(name="a", caption="A.", draw=draw),
            Figure(name="b", caption="B.", draw=draw, cases=("cifar",)),
        )
        bare = Outcome(**{**vars(outcome), "study": type(STUDY)(**{**vars(STUDY), "figures": figures})})
        assert "## Figures" not in markdown(bare)
