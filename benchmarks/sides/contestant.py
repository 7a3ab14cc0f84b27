"""The caller's end of the pipe: starts a contestant in a process of its own, has it train, measures its memory."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from sides.job import Job, environment

HERE = Path(__file__).resolve().parent.parent
NEEDS = {"ours": ("tierfed",), "loop": ("torch",), "flower": ("flwr", "ray"), "pfl": ("pfl",), "fedjax": ("fedjax",)}
_LAST_SECONDS = 10.0


class ContestantError(Exception):
    """A contestant has died; the last lines of what it said."""


class Contestant:
    """A process that trains a round when it is told to.

    :param python: the interpreter that has its libraries
    """

    def __init__(self, job: Job, python: str) -> None:
        self.job, self.rss_mb, self.startup_seconds = job, 0.0, 0.0
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open for as long as the process
        self._begun = time.perf_counter()
        self._process = subprocess.Popen(
            [python, "-m", "sides", job.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=_environment(environment(job)),
            start_new_session=True,  # Ctrl-C is the caller's, who closes in order
        )

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def round(self) -> float:
        """Seconds of one more round, as the contestant has measured it.

        :raises ContestantError: it has died
        """
        seconds = self.ask("seconds")
        if not self.startup_seconds:
            self.startup_seconds = time.perf_counter() - self._begun
        return seconds

    def turn(self, least: float) -> float:
        """The median round of a turn, in which rounds follow one another for `least` seconds. The first one does not
        count: memory and processor were the other's. Afterwards the memory is looked at.

        :raises ContestantError: it has died
        """
        self.round()
        taken = [self.round()]
        while sum(taken) < least:
            taken.append(self.round())
        self.rss_mb = max(self.rss_mb, resident_mb(self._process.pid))
        return statistics.median(taken)

    def ask(self, what: str) -> float:
        """Has it train a round, or whatever else its side does; one number of its answer.

        :raises ContestantError: it has died
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write("round\n")
            self._process.stdin.flush()
        if answer := self._process.stdout.readline():
            return float(json.loads(answer)[what])
        self._said.seek(0)
        lines = [line for line in self._said.read().splitlines() if line.strip()]
        raise ContestantError(f"{self.job.side} has stopped: " + (" | ".join(lines[-3:]) or "it said nothing"))

    def close(self) -> None:
        """Ends the process, and whatever it has left."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write("stop\n")
            self._process.stdin.close()
        left = processes(self._process.pid)
        try:
            self._process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            left |= processes(self._process.pid)
            self._process.kill()
            self._process.wait()
        for pid, born in left.items():
            if born is not None and _born(pid) == born:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()


def installed(python: str, side: str) -> bool:
    """Whether an interpreter finds what a contestant needs."""
    code = f"import sys, importlib.util as u; sys.exit(not all(u.find_spec(n) for n in {NEEDS[side]!r}))"
    return subprocess.run([python, "-c", code], env=_environment({}), check=False, capture_output=True).returncode == 0


def _environment(more: dict[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


def processes(pid: int) -> dict[int, str | None]:
    """A process and all below it, each with the time of its birth; without /proc only itself."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            below.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found, todo = dict[int, str | None](), [pid]
    while todo:
        found[todo[-1]] = _born(todo[-1])
        todo += below.get(todo.pop(), [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()


def _born(pid: int) -> str | None:
    try:
        return _stat(pid)[19]
    except (OSError, IndexError):
        return None


def resident_mb(pid: int) -> float:
    """Resident memory of a process and all below it, pages that they share counted once [MB]; 0 without /proc."""
    kilobytes = 0
    for one in processes(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = Path(f"/proc/{one}/smaps_rollup").read_text("utf-8").splitlines()
            kilobytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes * 1024 / 1e6
