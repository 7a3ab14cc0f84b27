"""What README and docs show is run, parsed or looked up; the examples are run."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
from dataclasses import fields
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import tierfed
import zygote
from tierfed.algorithms import REGISTRY, make
from tierfed.cli import app
from tierfed.config import Config, from_table
from tierfed.data import DATASETS
from tierfed.testing.toy import cloud, gap, make_engine, quad, records, run

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
EXAMPLES = ("own_model", "own_algorithm", "own_data_csv", "tree_and_faults", "export_and_use")
ENTRY_POINTS = {"project"}


def blocks(language: str) -> list[Any]:
    """The fenced blocks of a language, with the line where each begins."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for m in re.finditer(rf"^```{language}(?: title=[^\n]*)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text[: m.start()].count("\n") + 1
            found.append(pytest.param(m[1], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


def commands() -> list[str]:
    """The lines of all shell blocks, without remarks."""
    lines = [line for p in blocks("sh") for line in str(p.values[0]).splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.partition("#")[0].strip()]


def as_module(name: str, code: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A block as a module that a config can name."""
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, name, "exec"), vars(module))
    return module


def source(path: Path) -> types.ModuleType:
    """A file outside of the package as a module."""
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = """
import runpy, sys, warnings
from pathlib import Path
warnings.simplefilter("error")
sys.argv[:] = sys.argv[1:]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(path: Path, folder: Path, *arguments: str, fresh: bool = False) -> str:
    """What a script says, run in a folder of its own with warnings as errors; also those of imports in a fresh one."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"}
    if fresh:
        command = [sys.executable, "-W", "error", str(path), *arguments]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout
    with zygote.start("-c", SCRIPT, str(path), *arguments, cwd=folder, env=env) as child:
        out, err = child.communicate(timeout=250)
    assert child.wait() == 0, err
    return out


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    as_module("a_block_of_the_docs", code, monkeypatch)


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_blocks_are_configs(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    tables = tomllib.loads(text)
    if ENTRY_POINTS & tables.keys():
        assert set(tables["project"]["entry-points"]) == {"tierfed.algorithms"}
        return
    assert tables.keys() <= {f.name for f in fields(Config)}
    settings = dict(from_table(tables).algorithm)
    assert isinstance(make(settings.pop("name"), settings), tierfed.Algorithm)


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("tierfed")])
def test_commands_parse(line: str) -> None:
    command: Any = typer.main.get_command(app)
    _, *arguments = shlex.split(line)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    assert command.make_context(name, arguments).params


@pytest.mark.parametrize("text", blocks("bash"))
def test_scripts_can_be_read_by_a_shell(text: str) -> None:
    """Lines for another machine or as root are not run; their grammar is checked, and the extras that they name."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {e for names in re.findall(r"tierfed\[([\w,]+)\]", text) for e in names.split(",")} <= extras.keys()


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    """What is mere text has no commands in it."""
    for page in PAGES:
        found = re.findall(r"^```(\S*)[^\n]*\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        assert {kind for kind, _ in found} <= {"python", "toml", "sh", "bash", "text", "ini", "mermaid"}, page
        mere = [text for kind, text in found if kind == "text"]
        assert [text for text in mere if re.search(r"^(tierfed|python3?|pip|make|import) ", text, re.MULTILINE)] == []


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md"))


def test_the_reference_of_python_has_all_that_is_public() -> None:
    text = (ROOT / "docs/reference/api.md").read_text("utf-8")
    there = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    assert set(tierfed.__all__) - {"__version__", "Config"} <= there


def test_shell_blocks_know_their_targets() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    asked = {shlex.split(c)[1] for c in commands() if c.startswith("make ")}
    assert {"demo", "test", "check", "format"} <= asked
    assert asked <= targets
    assert {shlex.split(c)[0] for c in commands()} == {"make", "tierfed", "python"}


@pytest.mark.parametrize("page", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]*)#?[^)]*\)", page.read_text("utf-8")):
        assert not target or (page.parent / target).exists(), target


def test_readme_lists_what_there_is() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| .* \| ([\w, ]+) \|$", text, re.MULTILINE))
    assert rows == {name: entry.models for name, entry in REGISTRY.items()}
    assert [name for name in DATASETS if f"`{name}`" not in text] == []
    for entry in REGISTRY.values():
        number = re.search(r"arXiv (\d{4}\.\d{5})", entry.paper)
        assert number is None or f"https://arxiv.org/abs/{number[1]}" in text


def test_changelog_has_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_configuration_reference_is_up_to_date() -> None:
    """If this fails: python docs/gen_config.py"""
    assert source(ROOT / "docs" / "gen_config.py").page() == (ROOT / "docs/reference/config.md").read_text("utf-8")


def test_the_reference_of_commands_is_up_to_date() -> None:
    """If this fails: python docs/gen_cli.py"""
    assert source(ROOT / "docs" / "gen_cli.py").page() == (ROOT / "docs/reference/cli.md").read_text("utf-8")


def test_the_guide_to_methods_has_the_numbers_of_the_comparison() -> None:
    """If this fails: python docs/gen_choose.py"""
    assert source(ROOT / "docs" / "gen_choose.py").page() == (ROOT / "docs/choose.md").read_text("utf-8")


def test_every_key_of_the_reference_has_a_meaning() -> None:
    rows = [r for r in (ROOT / "docs/reference/config.md").read_text("utf-8").splitlines() if r.startswith("| `")]
    assert len(rows) > 100
    assert [r for r in rows if re.search(r"\|\s*\|$", r)] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name: str, tmp_path: Path) -> None:
    said = start(ROOT / "examples" / f"{name}.py", tmp_path, "--rounds", "1", fresh=name == "own_model")
    assert "global" in said
    assert "personal_pre" in said
    assert list(tmp_path.iterdir()) == []


def test_the_benchmark_of_many_devices_runs(tmp_path: Path) -> None:
    """200 devices: 100 of them in a round, all are evaluated."""
    small = ("--devices", "200", "--cohort", "100", "--rounds", "2", "--evaluated", "0", "--json")
    found = json.loads(start(ROOT / "benchmarks/scale.py", tmp_path, *small))["results"]
    assert [(one["devices"], one["ratio"]) for one in found] == [(200, 1.0)]
    assert found[0]["checkpoint_mb"] > 0.3  # 100 devices with 800 numbers each


def test_the_median_of_the_docs_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On QUAD one full step of size 1 leads to a_i: the median of 0, 3, 30 is 3, their mean is 11."""
    (code,) = [str(p.values[0]) for p in blocks("python") if "class Median(" in str(p.values[0])]
    median = as_module("median_of_the_docs", code, monkeypatch).Median(lr=1.0)
    for kind in ("serial", "vectorized"):
        task, plan = quad([0.0, 3.0, 30.0])
        assert cloud(run(make_engine(kind, median, task, plan), 1))["w"].tolist() == [3.0]


@pytest.mark.parametrize("where", ["README.md", "examples/own_algorithm.py"])
class TestDitto:
    """QUAD with a = (0, 3, 30), equal weights, one full-batch step s = 0.1 a round, from 0."""

    @pytest.fixture
    def ditto(self, where: str, monkeypatch: pytest.MonkeyPatch) -> Any:
        if where == "README.md":
            (code,) = [str(p.values[0]) for p in blocks("python") if "class Ditto(" in str(p.values[0])]
            return as_module("ditto_of_the_readme", code, monkeypatch).Ditto
        return as_module("ditto_of_the_example", (ROOT / where).read_text("utf-8"), monkeypatch).Ditto

    def test_two_rounds_by_hand(self, ditto: Any) -> None:
        """x: 0 -> 1.1 -> 2.09. v of a = 3: 0 -> 0.3 -> 0.3 - 0.1 ((0.3 - 3) + 2 (0.3 - 1.1)) = 0.73"""
        task, plan = quad([0.0, 3.0, 30.0])
        engine = run(make_engine("vectorized", ditto(lr=0.1, lam=2.0), task, plan), 2)
        assert float(cloud(engine)["w"]) == pytest.approx(2.09, abs=1e-12)
        assert float(records(engine)["own", 1]["v"]["w"]) == pytest.approx(0.73, abs=1e-12)

    def test_it_ends_between_its_own_and_the_global_optimum(self, ditto: Any) -> None:
        """v = (a + lam x) / (1 + lam), x = 11"""
        task, plan = quad([0.0, 3.0, 30.0])
        engine = run(make_engine("vectorized", ditto(lr=0.1, lam=2.0), task, plan), 300)
        found = [float(records(engine)["own", i]["v"]["w"]) for i in range(3)]
        assert found == pytest.approx([22 / 3, 25 / 3, 52 / 3], abs=1e-9)

    def test_without_a_pull_it_is_local_training_beside_fedavg(self, ditto: Any) -> None:
        task, plan = quad([0.0, 3.0, 30.0])
        both, fedavg, local = (
            run(make_engine("vectorized", algorithm, task, plan), 3)
            for algorithm in (ditto(lr=0.1, lam=0.0), make("fedavg", {"lr": 0.1}), make("local", {"lr": 0.1}))
        )
        assert gap(cloud(both), cloud(fedavg)) == 0.0
        for i in range(3):
            assert torch.equal(records(both)["own", i]["v"]["w"], records(local)["own", i]["own"]["w"])
