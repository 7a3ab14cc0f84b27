"""What a new user does, by the pages and notebooks alone."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cli.shell import Shell
from cli.test_commands import told

ROOT = Path(__file__).parents[1]
SHORT = {
    "run": ("--rounds", "2", "--set", "run.jobs=1", "--set", "eval.post=false", "--no-report"),
    "--seeds": ("--seeds", "0"),
}
ELSEWHERE = ("ui", "up")  # they do not end by themselves, or begin a process for every node: tests/ui/test_deployed.py


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    empty = tmp_path / "empty"
    empty.mkdir()
    shell = Shell(tmp_path, monkeypatch, capsys)
    monkeypatch.chdir(empty)
    return shell


def test_the_quickstart(shell: Shell) -> None:
    """Every block of the page in its order, with fewer rounds and seeds: run, own table, report, export."""
    text, done = (ROOT / "docs/quickstart.md").read_text("utf-8"), []
    for kind, title, block in re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        if title:
            Path(title).write_text(block, "utf-8")
        elif kind == "python":
            exec(compile(block, "quickstart.md", "exec"), {})
        for line in block.splitlines() if kind == "sh" else ():
            _, command, *arguments = shlex.split(line, comments=True)
            more = [a for word in (command, *arguments) for a in SHORT.get(word, ())]
            if command not in ELSEWHERE and "quickstart" not in arguments:
                shell.good(command, *arguments, *more)
            done.append(command)
    assert done == ["run", "show", "run", "report", "ui", "run", "compare", "export", "up"]
    assert Path("comparison.html").exists()
    assert Path("runs/pumps/export/pump-3-personal.onnx").exists()
    found = told(shell.good("report", "runs/methods", "--json"))
    assert set(found["algorithms"]) == {"jobfed", "finetune", "fedavg", "local"}


@pytest.mark.parametrize("name", ["first_steps", "compare_methods"])
def test_notebooks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells in their order, with one round in the place of the notebook's; what they have shown is kept in them."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text("utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert sum("ROUNDS" in text for text in code) >= 2
    space: dict[str, Any] = {}
    for text in code:
        short = re.sub(r"^(ROUNDS\b.*?) = \d+", r"\1 = 1", text, flags=re.MULTILINE).replace("(0, 1, 2)", "(0,)")
        exec(compile(short, f"{name}.ipynb", "exec"), space)
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    assert not any(o["output_type"] == "error" for o in outputs)
    assert len(outputs) >= len(code) - 3
    assert not any("nan" in "".join(o.get("text", "")) for o in outputs)
    assert str(ROOT) not in json.dumps(cells)
