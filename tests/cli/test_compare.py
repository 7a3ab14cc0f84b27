"""`tierfed compare`: page, table, JSON, what is refused."""

import json
from pathlib import Path

import pytest

from cli.shell import Shell
from tierfed.report.load import RunFolder
from unit.test_report import page
from unit.test_report_compare import scored


def test_page_table_and_json(tmp_path: Path, shell: Shell) -> None:
    a = scored(tmp_path / "a", "ditto", [0.9, 0.8, 0.7, 0.6, 0.5, 0.45])
    scored(tmp_path / "b", "fedavg", [0.2, 0.3, 0.4, 0.3, 0.1, 0.42])
    text = shell.good("compare", "a", "b", "--out", "c.html")
    assert "ditto against fedavg" in text
    assert "0.031" in text
    assert text.endswith("comparison: c.html\n")
    got = page(Path("c.html"))
    assert got.loads == []
    for words in (
        "2 algorithms on digits",
        "Balance map",
        "Paired tests",
        "From the worst device to the best",
        "The tree after round 1: a",
        "tierfed compare",
    ):
        assert words in got.text, words
    said = json.loads(shell.good("compare", "a", "b", "--reference", "fedavg", "--json"))
    assert said["report"] == "comparison.html"
    first = said["tests"][0]
    assert (first["first"], first["n"], first["better"], first["p"]) == ("ditto", 6, 6, pytest.approx(2 / 64))
    assert (
        said["algorithms"]["ditto"]["personal_post"]["mean"]
        == RunFolder.read(a).statistics("personal_post")["weighted"]
    )


def test_bad_input(tmp_path: Path, shell: Shell) -> None:
    scored(tmp_path / "a", "ditto", [0.9, 0.8])
    scored(tmp_path / "b", "fedavg", [0.2, 0.3])
    assert "wanted two at least" in shell.bad("compare", "a")
    assert "did you mean 'ditto'" in shell.bad("compare", "a", "b", "--reference", "dito")
    assert "choose another --out" in shell.bad("compare", "a", "b", "--out", "no/c.html")


def test_a_live_view_of_nothing(shell: Shell) -> None:
    assert "nowhere is no folder" in shell.bad("ui", "nowhere")
