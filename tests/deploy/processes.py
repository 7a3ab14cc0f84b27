"""A run as real processes on loopback, in working folders of their own, which tests kill, stop and start again."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from cli.shell import environment
from deploy.harness import models_of
from tierfed.config import Config, to_toml
from tierfed.deploy.journal import Journal
from tierfed.deploy.names import folder_name
from tierfed.store import DiskStore
from tierfed.tree import Tree

try:
    from zygote import start as fork
except ImportError:  # every process imports torch by itself then
    fork = None

CONFIG, RUN = "run.toml", "run"


def free_ports(count: int) -> int:
    """The first of so many ports in a row on which nobody listens."""
    for base in range(20_000 + os.getpid() % 400 * 25, 60_000, 25):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for i, one in enumerate(sockets):
                one.bind(("127.0.0.1", base + i))
            return base
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise AssertionError("no free ports")


class Process:
    """One process of a run. What it writes is kept, line by line.

    :param code: Python that runs in it before anything else
    """

    def __init__(self, arguments: Sequence[str], folder: Path, env: Mapping[str, str], code: str = "") -> None:
        self.arguments, self.lines = list(arguments), list[str]()
        self._changed = threading.Condition()
        how = ["-c", f"{code}\nfrom tierfed.cli import main\nmain()"] if code else ["-m", "tierfed"]
        if fork is not None:
            self.child: Any = fork(*how, *arguments, cwd=folder, env=env)
        else:
            self.child = subprocess.Popen(
                [sys.executable, *how, *arguments],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self.child.stdout, self.child.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def until(self, text: str, times: int = 1, seconds: float = 250.0) -> None:
        """Until so many lines hold a text.

        :raises AssertionError: that takes too long, or the process has ended
        """
        end = time.monotonic() + seconds
        with self._changed:
            while sum(text in line for line in self.lines) < times:
                ended = self.child.poll() is not None and not any(r.is_alive() for r in self._readers)
                if ended or time.monotonic() > end:
                    raise AssertionError(f"{text!r} never came from {self.arguments}:\n{self.text}")
                self._changed.wait(0.1)

    def kill(self) -> None:
        """kill -9."""
        self.child.send_signal(signal.SIGKILL)
        self.wait()

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    def wait(self, seconds: float = 250.0) -> int:
        """The exit code, once it has ended and all that it wrote is here."""
        try:
            code: int = self.child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.arguments} does not end:\n{self.text}") from None
        for reader in self._readers:
            reader.join(10.0)
        return code

    def close(self) -> None:
        """Killed if it is still there; nothing stays open."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGKILL)
        self.wait()
        if hasattr(self.child, "close"):
            self.child.close()
        else:
            self.child.stdout.close()
            self.child.stderr.close()


class Run:
    """The processes of a config; `cloud`, `fog-0` and names of devices are what they are called.

    :param tiers: of every node by name
    """

    def __init__(self, folder: Path, wanted: Config, tiers: Mapping[str, str]) -> None:
        self.folder, self.config, self.tiers = folder, wanted, dict(tiers)
        self.processes: dict[tuple[str, ...], Process] = {}
        self.past: list[Process] = []
        self.access = ["--insecure"]
        self.env: dict[str, str] = environment()
        (folder / CONFIG).write_text(to_toml(wanted))

    def start(self, *names: str, more: Sequence[str] = (), code: str = "") -> Process:
        """One process with a node, or several devices. :param code: as of `Process`"""
        tier = self.tiers[names[0]]
        named = [] if tier == "cloud" else [a for name in names for a in ("--name", name)]
        process = Process([tier, CONFIG, *named, *self.access, *more], self.folder, self.env, code)
        if names in self.processes:
            self.past.append(self.processes[names])
        self.processes[names] = process
        return process

    def of(self, name: str) -> Process:
        """The process that a node is in."""
        return next(p for names, p in self.processes.items() if name in names)

    def kill(self, name: str) -> tuple[str, ...]:
        """kill -9 of the process of a node; who was in it."""
        names = next(names for names in self.processes if name in names)
        self.processes[names].kill()
        return names

    def again(self, name: str, more: Sequence[str] = ()) -> Process:
        """kill -9, and the same command once more."""
        return self.start(*self.kill(name), more=more)

    def finish(self, seconds: float = 250.0) -> None:
        """Until all have ended well."""
        assert self.of("cloud").wait(seconds) == 0, self.of("cloud").text
        for names, process in self.processes.items():
            assert process.wait() == 0, (names, process.text)

    def kept(self) -> dict[str, Tree]:
        """What all nodes have on disk, as the store of a simulation has it."""
        out: dict[str, Tree] = {}
        for name, tier in self.tiers.items():
            path = self.folder / RUN / "state" if tier == "cloud" else self.folder / f"{RUN}.nodes" / folder_name(name)
            store = DiskStore(path)
            try:
                out |= models_of(store if tier == "cloud" else Journal(store))
            finally:
                store.close()
        return out

    def close(self) -> None:
        for process in (*self.processes.values(), *self.past):
            process.close()


@contextmanager
def running(
    folder: Path, wanted: Callable[..., Config], tiers: Mapping[str, str], *, inner: int = 4, **tables: Any
) -> Iterator[Run]:
    """A run with free ports; all its processes are gone at the end.

    :param wanted: the config, given `run` and `deploy` tables
    :param tiers: of every node by name
    :param inner: cloud and fogs, which listen
    """
    base = free_ports(inner)
    deploy = {"port": base, "retry_seconds": 0.5, **tables.pop("deploy", {})}
    run = {"out": RUN, **tables.pop("run", {})}
    made = Run(folder, wanted(run=run, deploy=deploy, **tables), tiers)
    try:
        yield made
    finally:
        made.close()
