"""Small configs, the command line in this process or in one of its own, and what a run folder holds bit by bit."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import pytest

import zygote
from tierfed import cli
from zygote import Child

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


def process(folder: Path, *arguments: str, file_size: int | None = None) -> "subprocess.CompletedProcess[str]":
    """`python -m tierfed` to its end, as a real process that is forked from one with its imports.

    :param file_size: bytes that a file can have at most, as on a full disk
    """
    command = ("-m", "tierfed", *arguments)
    with zygote.start(*command, cwd=folder, env=environment(), file_size=file_size) as child:
        out, err = child.communicate(timeout=250)
    return subprocess.CompletedProcess(command, child.wait(), out, err)


def interpreter(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`python -m tierfed` to its end, in a new interpreter as a user has it."""
    command = [sys.executable, "-m", "tierfed", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=250
    )


_begun: list[Child] = []


def begin(folder: Path, *arguments: str) -> Child:
    """`python -m tierfed` in a session of its own, under way; it never runs away from who reads its output.

    It waits at each line until the one before was read: after `wait_for` it is at most two lines further, however slow
    or fast the machine is.
    """
    child = zygote.start("-m", "tierfed", *arguments, cwd=folder, env=environment(), in_step=True)
    _begun.append(child)
    return child


def end_all() -> None:
    """Ends what a test has begun and left, as one that fails does."""
    while _begun:
        _begun.pop().close()


def wait_for(child: Child, text: str) -> str:
    """The first line of the standard output that holds a text."""
    return wait_until(child, lambda line: text in line, text)


def wait_for_round(child: Child, at_least: int, of: str = "") -> int:
    """Until it tells of a round of a run, or of a later one; which one it is.

    A killed process may have committed more than it has told, and who goes on tells of the next one only.
    """
    tells = re.compile(rf"{re.escape(of)}: round (\d+)/" if of else r": round (\d+)/")

    def there(line: str) -> bool:
        found = tells.search(line)
        return found is not None and int(found[1]) >= at_least

    found = tells.search(wait_until(child, there, f"round {at_least} or a later one"))
    assert found is not None
    return int(found[1])


def wait_until(child: Child, holds: Callable[[str], bool], what: str) -> str:
    """The first line of the standard output of which something holds."""
    for line in child.stdout:
        if holds(line):
            return line
    _, errors = child.communicate(timeout=250)
    raise AssertionError(f"{what!r} never came; {errors}")


def kill(child: Child, after_seconds: float = 0.0) -> None:
    """kill -9."""
    time.sleep(after_seconds)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=250)
    assert child.returncode == -signal.SIGKILL
