"""Units of systemd, read by systemd itself."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tierfed.cli import app
from tierfed.deploy.units import NAMES, unit

ANALYZE = shutil.which("systemd-analyze")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    done = CliRunner().invoke(app, ["units", "--out", str(tmp_path / "units"), "--user", "fed"])
    assert done.exit_code == 0, done.output
    assert [Path(line).name for line in done.stdout.splitlines()] == list(NAMES.values())
    return tmp_path / "units"


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    assert ANALYZE is not None
    return subprocess.run([ANALYZE, *arguments], capture_output=True, text=True, check=False)


def test_a_unit_starts_this_installation_in_the_folder_of_its_node(folder: Path) -> None:
    lines = (folder / NAMES["fog"]).read_text("utf-8").splitlines()
    assert (
        f"ExecStart={Path(sys.executable).with_name('tierfed')} fog /etc/tierfed/run.toml --name %I --keys keys"
        in lines
    )
    assert "WorkingDirectory=/var/lib/tierfed/%i" in lines
    assert "User=fed" in lines
    cloud = (folder / NAMES["cloud"]).read_text("utf-8")
    assert "%" not in cloud
    assert " cloud /etc/tierfed/run.toml --keys keys\n" in cloud


@pytest.mark.skipif(ANALYZE is None, reason="no systemd here")
def test_systemd_understands_them_and_finds_little_exposed(folder: Path) -> None:
    paths = [str(folder / name) for name in NAMES.values()]
    done = analyze("verify", "--man=no", *paths)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for path in paths:
        assert analyze("security", "--offline=yes", "--threshold=20", path).returncode == 0
    wrong = folder / "wrong.service"
    wrong.write_text(unit("cloud", "/not/here").replace("ProtectHome", "ProtectHomes"), "utf-8")
    said = analyze("verify", "--man=no", str(wrong)).stderr
    assert "ProtectHomes" in said
    assert "/not/here" in said


@pytest.mark.parametrize("wrong", ["run.toml", "/etc/a b/run.toml", "/etc/%i"])
def test_paths_that_no_unit_can_have(wrong: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["units", "--out", str(tmp_path / "units"), "--config", wrong])
    assert done.exit_code == 2
    assert not (tmp_path / "units").exists()
