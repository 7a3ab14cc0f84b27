"""Small configs, the command line in this process or in one of its own, and what a run folder holds bit by bit."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import lmdb
import numpy as np
import pytest

from tierfed import cli

DEVICES, ROWS, FEATURES = 8, 20, 5
SOURCE = Path(cli.__file__).parent.parent

TOY = """
[run]
rounds = 3
threads = 1

[data]
source = "npz"
path = "toy.npz"
batch = 5

[model]
name = "mlp"

[model.options]
hidden = [8]
batch_norm = true

[topology]
teams = "natural"

[algorithm]
name = "fedavg"

[eval]
every = 1
post = false
"""


def toy_arrays(regression: bool = False) -> dict[str, Any]:
    """Eight devices in two teams, 20 rows each: the team turns the sign of what decides the label."""
    rng = np.random.default_rng(3)
    device = np.repeat(np.arange(DEVICES), ROWS)
    x = rng.normal(size=(DEVICES * ROWS, FEATURES)).astype(np.float32)
    signal_ = x[:, 0] * np.where(device % 2, 1.0, -1.0)
    y = signal_.astype(np.float32) if regression else (signal_ > 0).astype(np.int64)
    return {"x": x, "y": y, "device": device, "team": device % 2}


def toy(folder: Path, name: str = "toy", **changes: str) -> Path:
    """toy.npz and a config over it in a folder; the path of the config. :param changes: parts of `TOY` to replace"""
    np.savez(folder / "toy.npz", **toy_arrays())
    text = TOY
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """The command line in this process, in a folder of its own with the toy data."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [*sys.path])
        self.config = toy(folder)

    def __call__(self, *arguments: str) -> Outcome:
        """What `tierfed ARGUMENTS` ends with and writes; whatever is not explained to a user is raised."""
        self._monkeypatch.setattr(sys, "argv", ["tierfed", *arguments])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return Outcome(0 if code is None else int(code), *self._capsys.readouterr())

    def good(self, *arguments: str) -> str:
        """The standard output of a command that succeeds."""
        code, out, err = self(*arguments)
        assert code == 0, err
        return out

    def bad(self, *arguments: str) -> str:
        """The message of a command that must fail: exit code 2, one line, nothing written."""
        before = content(self.folder)
        code, out, err = self(*arguments)
        assert code == 2, (code, out, err)
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert content(self.folder) == before
        return err


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, and every folder; locks are no content."""
    return {
        str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.suffix not in (".lock", ".pyc") and p.name not in ("lock.mdb", "__pycache__")
    }


def records(run: Path) -> dict[bytes, bytes]:
    """Everything that the store of a run holds, as it lies there: states, log, counters."""
    with lmdb.open(str(run / "state"), readonly=True, lock=False) as env, env.begin() as txn:
        return dict(txn.cursor().iternext())


def environment() -> dict[str, str]:
    paths = [str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def process(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python -m tierfed` to its end, as a real process."""
    command = [sys.executable, "-m", "tierfed", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=120, **options
    )


def begin(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`python -m tierfed` in a process group of its own, under way.

    It hears Ctrl-C, though a background job of a script, as CI may be, has children that ignore it.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "tierfed", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  one call, no lock
    )


def wait_for(child: "subprocess.Popen[str]", text: str) -> str:
    """The first line of the standard output that holds a text."""
    stream: IO[str] | None = child.stdout
    assert stream is not None
    for line in stream:
        if text in line:
            return line
    errors = child.stderr.read() if child.stderr else ""
    raise AssertionError(f"{text!r} never came; {errors}")


def kill(child: "subprocess.Popen[str]", after_seconds: float = 0.0) -> None:
    """kill -9."""
    time.sleep(after_seconds)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL
