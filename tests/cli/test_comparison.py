"""`tierfed reproduce comparison`: one budget for every method, a page that says what the runs say, failures too."""

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cli.shell import Shell
from tierfed import cli
from tierfed.algorithms import REGISTRY, make
from tierfed.config import from_table
from tierfed.errors import InputError
from tierfed.pool import run_all
from tierfed.report.svg import scatter
from tierfed.reproduce import STUDIES, Options, comparison, comparison_page
from tierfed.reproduce.comparison import OWN, READ, SETTINGS, STUDY, VISIT, Own, Setting, build, tables_of
from tierfed.reproduce.comparison_page import (
    AFTER,
    BALANCE,
    BEFORE,
    BYTES,
    GLOBAL,
    HEADERS,
    SAMPLES,
    TEAM,
    WORST,
    cells,
    draw,
    facts,
    noise,
    rows_of,
)
from tierfed.reproduce.runner import NOT_ASKED, Entry, Outcome, config_of

METHODS = ("fedavg", "local", "permfl", "fedfomo")
TOY = Setting(
    title="Toy",
    about="Eight devices.",
    tables={
        "run": {"rounds": 4},
        "data": {"source": "npz", "path": "toy.npz", "batch": 5, "split": {"val": 0.0}},
        "model": {"name": "mlp", "options": {"hidden": [8]}},
        "topology": {"teams": "natural"},
    },
)


class TestBudget:
    def test_every_method_is_there(self) -> None:
        assert STUDIES["comparison"] is STUDY
        assert {(c.source, c.method) for c in STUDY.cases} == {(d, n) for d in ("uci_har", "mnist") for n in REGISTRY}
        assert OWN.keys() <= REGISTRY.keys()

    @pytest.mark.parametrize("name", REGISTRY)
    def test_gradients_of_a_visit(self, name: str) -> None:
        """Passes of a visit, steps of a pass, gradients of a step. If a new method fails here: a row in `OWN`."""
        (settings,) = [c.tables["algorithm"] for c in STUDY.cases if c.key == f"mnist-{name}"]
        algorithm = make(name, {k: v for k, v in settings.items() if k != "name"})
        assert algorithm.passes * settings["steps"] * algorithm.gradients == VISIT
        assert algorithm.lr == 0.1

    @pytest.mark.parametrize("data", SETTINGS)
    def test_visits_of_devices(self, data: str) -> None:
        configs = [from_table(c.tables) for c in STUDY.cases if c.source == data]
        visits = {c.run.rounds * int(c.topology.team_rounds) for c in configs}  # type: ignore[arg-type]
        assert visits == {SETTINGS[data].tables["run"]["rounds"]}
        for part in ("data", "model", "eval", "faults", "cost"):
            assert len({str(getattr(c, part)) for c in configs}) == 1
        assert {c.algorithm["name"] for c in configs if c.topology.team_rounds != 1} == {"hierfavg", "h-sgd", "permfl"}

    def test_own_settings_are_explained(self) -> None:
        for own in OWN.values():
            changed = own.team_rounds > 1 or set(own.settings) - {"steps"}
            assert bool(own.why) == bool(changed)
            assert bool(own.visit) == bool({"steps", "tune_epochs"} & set(own.settings))


def entries(method: str, values: dict[str, Sequence[float]], missing: str = "") -> list[Entry]:
    lines = {line.quantity: line for line in build({"toy": TOY}, [method]).lines}
    return [Entry(line=line, values=tuple(values.get(q, ())), missing=missing) for q, line in lines.items()]


def outcome_of(*parts: list[Entry], **more: Any) -> Outcome:
    rest: dict[str, Any] = {"options": Options(), "rounds": {}, "seconds": {}, "finished": True, **more}
    return Outcome(study=build({"toy": TOY}, METHODS), entries=tuple(e for p in parts for e in p), **rest)


def scored(method: str, before: float, global_: float | None = None, mb: float = 10.0, **more: float) -> list[Entry]:
    known = {BEFORE: before, AFTER: before, WORST: before, BYTES: mb, SAMPLES: 10_000.0, **more}
    return entries(method, {q: (v,) for q, v in known.items()} | ({} if global_ is None else {GLOBAL: (global_,)}))


class TestTable:
    def test_sorted_by_balance_then_personal_then_what_failed(self) -> None:
        """Balances (80 + 90) / 2 = 85 and (88 + 84) / 2 = 86; the others have none."""
        outcome = outcome_of(
            entries("fedfomo", {}, "does not run: no data"),
            scored("fedper", 70),
            scored("fedavg", 90, 80),
            scored("local", 99),
            scored("ditto", 84, 88),
            entries("permfl", {}, NOT_ASKED),
        )
        rows = rows_of(outcome, "Toy")
        assert [r.method for r in rows] == ["ditto", "fedavg", "local", "fedper", "fedfomo"]
        texts = {row[0]: dict(zip(HEADERS, row, strict=True)) for row in cells(rows, lambda text: f"<{text}>")}
        assert texts["ditto"][BALANCE] == "<86.0>"
        assert (texts["ditto"][GLOBAL], texts["fedavg"][GLOBAL]) == ("<88.0>", "80.0")
        assert (texts["local"][BALANCE], texts["local"][GLOBAL], texts["local"][BEFORE]) == ("–", "–", "<99.0>")
        assert texts["fedfomo"]["remark"] == "does not run: no data"
        assert {texts["fedfomo"][h] for h in HEADERS[1:-1]} == {"–"}

    def test_mean_and_deviation_over_seeds(self) -> None:
        """Balances (80 + 90) / 2 and (84 + 92) / 2: 85 and 88, mean 86.5, deviation 3 / sqrt(2) = 2.12"""
        part = entries("fedavg", {GLOBAL: (80, 84), BEFORE: (90, 92), BYTES: (1.5, 1.5), SAMPLES: (9, 9)})
        outcome = outcome_of(part, options=Options(seeds=(0, 1)), seconds={"toy-fedavg-s0": 3.0, "toy-fedavg-s1": 5.0})
        (row,) = rows_of(outcome, "Toy")
        assert row.cell(BALANCE) == "86.5 ± 2.1"
        assert row.cell(TEAM) == "–"
        assert row.cell(BYTES) == "1.50 ± 0.00"
        assert row.wall == 4.0

    @pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (0.01234, "0.0123"), (5.0, "5.00"), (1234.4, "1234")])
    def test_three_digits_of_a_cost(self, value: float, text: str) -> None:
        (row,) = rows_of(outcome_of(scored("fedavg", 90, mb=value)), "Toy")
        assert row.cell(BYTES) == text


class TestFacts:
    def test_noise(self) -> None:
        """Two standard errors of 90 % on 10,000 samples: 200 sqrt(0.9 0.1 / 10,000) = 0.6 points."""
        assert noise(90.0, 10_000.0) == pytest.approx(0.6)

    def test_sentences(self) -> None:
        rows = rows_of(
            outcome_of(
                scored("fedavg", 85, 85, mb=20),
                scored("local", 88, mb=0),
                scored("ditto", 90, 85.2, mb=30),
                scored("permfl", 89.5, 80, mb=15, **{TEAM: 82}),
                scored("fedper", 89, mb=5),
                entries("fedfomo", {}, "does not run: no data"),
            ),
            "Toy",
        )
        assert facts(rows) == [
            "Best balance: `ditto` 87.6, by more than the 0.7 points of chance.",
            "Best global: `ditto` 85.2; within the 0.7 points of chance: `fedavg` 85.0.",
            "Alone in the column team: `permfl` 82.0.",
            "Best personal, before: `ditto` 90.0; within the 0.6 points of chance: `permfl` 89.5.",
            "Best personal, after: `ditto` 90.0; within the 0.6 points of chance: `permfl` 89.5.",
            "Best for the worst tenth of the devices: `ditto` 90.0, `permfl` 89.5, `fedper` 89.0.",
            "Local-only training has 88.0: 3 of 4 other methods predict better than that before local training.",
            "FedAvg's global model has 85.0: 1 of 2 other global models are better.",
            "The team models are better than the global one for 1 of 1 methods.",
            "Least traffic among the best personal models: `permfl`, 15.0 MB; FedAvg: 20.0 MB.",
        ]

    def test_nothing_ran(self) -> None:
        assert facts(rows_of(outcome_of(entries("fedavg", {}, "does not run: why")), "Toy")) == []


class TestPicture:
    def test_points(self) -> None:
        class Run:
            models = ("global", "personal_pre")

            def __init__(self, *values: float) -> None:
                self.values = dict(zip(self.models, values, strict=True))

            def statistics(self, model: str) -> dict[str, float]:
                return {"weighted": self.values[model]}

        runs: Any = {"a": [Run(0.8, 0.9), Run(0.9, 0.9)], "b": [Run(math.nan, 0.9)]}
        picture = draw("Toy", {"a": "ditto", "b": "local", "c": "gone"}, runs)
        assert "ditto 85, 90." in picture
        assert [t.text for t in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")].count("local") == 0
        assert draw("Toy", {"b": "local"}, runs) == ""

    def test_nothing_to_draw(self) -> None:
        with pytest.raises(InputError, match="'t' has no finite point"):
            scatter({"a": (math.nan, 1.0)}, title="t", x="x", y="y")

    def test_names_do_not_cover_each_other(self) -> None:
        """Four points on one spot: the names are in four places."""
        picture = scatter(dict.fromkeys("abcd", (1.0, 1.0)), title="t", x="x", y="y")
        found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="\w+">[abcd]<', picture)
        assert len(set(found)) == 4


@pytest.fixture
def toy_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.STUDIES, "comparison", build({"toy": TOY}, METHODS))


@pytest.mark.usefixtures("toy_study")
class TestRun:
    COMMAND = ("reproduce", "comparison", "--out", "tried", "--write-docs", "--jobs", "1")

    def test_end_to_end(self, shell: Shell) -> None:
        said = json.loads(shell.good(*self.COMMAND, "--scale", "0.5", "--json"))
        assert said["pages"] == [str(Path("tried") / "comparison.md"), str(Path("docs") / "comparison.md")]
        assert said["rounds"] == {"toy-fedavg-s0": [2, 4], "toy-local-s0": [2, 4], "toy-permfl-s0": [1, 1]}
        found = {(r["method"], r["quantity"]): r for r in said["rows"]}
        assert found.keys() == {(m, q) for m in METHODS for q in READ}
        assert 0 < found["permfl", TEAM]["ours"] <= 100
        assert found["local", GLOBAL]["missing"] == "the method has no such model, or its scores are not finite"
        assert "fedfomo measures its losses on held-out" in found["fedfomo", BEFORE]["missing"]
        assert found["fedavg", SAMPLES]["ours"] == 8 * 6
        # four entries of float32 for each of 8 devices and 2 fogs (which relay one sum up), both ways, two rounds
        floats = 5 * 8 + 8 + 8 * 2 + 2
        assert found["fedavg", BYTES]["ours"] == pytest.approx(2 * 2 * (8 + 2) * 4 * floats / 1e6)

        page = Path("docs/comparison.md").read_text("utf-8")
        assert page == Path("tried/comparison.md").read_text("utf-8")
        assert "**SCALED DOWN: 1 of 1, 2 of 4 rounds" in page
        assert re.search(r"^\| `permfl` \| .* \|  \|$", page, re.MULTILINE)
        assert re.search(r"^\| `fedfomo` \|( – \|){10} does not run: fedfomo measures its losses", page, re.MULTILINE)
        assert "![Toy: the global and the personal model" in page
        picture = Path("docs/comparison-toy.svg").read_text("utf-8")
        assert all(name in picture for name in ("fedavg", "permfl"))
        assert "| `permfl` | 10 | 4 | `lam = " in page
        assert "| `local` | 10 |" not in page
        assert "tierfed reproduce comparison --scale 0.5 --write-docs\n" in page

    def test_one_method_and_words_by_hand(self, shell: Shell) -> None:
        arguments = (*self.COMMAND, "--methods", "fedavg", "--scale", "0.25")
        assert "fedavg" in shell.good(*arguments)
        page = Path("docs/comparison.md")
        text = page.read_text("utf-8")
        assert "Not asked for (`--methods`): `fedfomo`, `local`, `permfl`." in text
        assert "| `local` |" not in text.partition("## Settings")[0]
        page.write_text(text + "\n## Reading the differences\n\nBecause.\n", "utf-8")
        shell.good(*arguments)
        assert page.read_text("utf-8") == text + "\n## Reading the differences\n\nBecause.\n"

    def test_a_refusal_is_no_error_where_it_may_be_one_row(self, shell: Shell) -> None:
        config = config_of(build({"toy": TOY}, ["fedfomo"]).cases[0], 0, Options(), Path("tried"))
        (done,) = run_all({"toy": config}, 1, "again", tolerant=True).values()
        assert done.refused.startswith("fedfomo measures its losses on held-out")
        assert not Path("tried").exists()
        with pytest.raises(InputError, match="fedfomo measures its losses"):
            run_all({"toy": config}, 1, "again")

    def test_no_data(self, shell: Shell) -> None:
        Path("toy.npz").unlink()
        shell.good(*self.COMMAND)
        page = Path("docs/comparison.md").read_text("utf-8")
        assert "No numbers: skipped: no data." in page
        assert str(Path.cwd()) not in page
        assert "comparison-toy.svg" not in page


def test_a_plain_method_has_the_common_config() -> None:
    tables = tables_of(TOY, "fedavg", Own())
    assert tables["algorithm"] == {"name": "fedavg", "lr": 0.1, "steps": VISIT}
    assert "team_rounds" not in tables["topology"]
    assert tables_of(TOY, "permfl", Own(team_rounds=4))["run"]["rounds"] == 1
    assert comparison.NAME in comparison_page.command(outcome_of())
