"""`tierfed new`: what it writes runs, and its tests are green."""

import os
import subprocess
import sys

import pytest

from cli.shell import Shell, environment
from cli.test_commands import told


def test_a_new_project_works(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(shell.good("new", "my-project", "--json"))
    folder = shell.folder / "my-project"
    assert {p.name for p in folder.iterdir()} == {os.path.basename(f) for f in found["files"]}
    assert (folder / "README.md").read_text().startswith("# my-project\n")
    monkeypatch.chdir(folder)
    short = ("--rounds", "2", "--no-report", "--json")
    result = told(shell.good("run", "config.toml", *short))
    assert (result["algorithm"], result["devices"], result["teams"]) == ("my_algorithm:Mine", 12, 3)
    assert set(result["models"]) == {"global", "personal_pre", "personal_post"}
    assert "pull" in shell.bad("run", "config.toml", "--set", "algorithm.pul=1", "--out", "r")


def test_its_laws_are_green(shell: Shell) -> None:
    """A real pytest in the project; of the laws some, for the others cost as much again."""
    assert "my-project exists" in (shell.good("new", "my-project") and shell.bad("new", "my-project"))
    some = "law and form or hand or alone"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "-k", some]
    folder = shell.folder / "my-project"
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
