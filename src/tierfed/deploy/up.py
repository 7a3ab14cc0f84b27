"""All nodes of a run as processes of this machine, with one view of them."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tierfed.deploy.names import CLOUD, Node
from tierfed.errors import InputError

BAD_INPUT = 2
_END_SECONDS = 20.0
_LOOK_SECONDS = 0.2
_MOST_STARTS = 5  # of one process, until it is of no use
_STEADY_SECONDS = 60.0


@dataclass(kw_only=True, eq=False)
class Part:
    """One process. :param nodes: who is in it; :param arguments: of `tierfed`"""

    nodes: tuple[str, ...]
    arguments: list[str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    begun: float = 0.0
    starts: int = 0
    last: str = "starting"

    @property
    def name(self) -> str:
        more = len(self.nodes) - 1
        return self.nodes[0] + (f" and {more} more" if more else "")


@dataclass(kw_only=True, eq=False)
class Crew:
    """The processes of a run.

    :param env: of all of them; `stops` is set in it, so that they end when their standard input does
    """

    parts: list[Part]
    env: Mapping[str, str]
    progress: list[str] = field(default_factory=list)
    """What the cloud has said."""

    def begin(self, part: Part) -> None:
        """Starts a process; its lines go to its log and to the view."""
        part.begun, part.starts = time.monotonic(), part.starts + 1
        part.process = subprocess.Popen(
            [sys.executable, "-m", "tierfed", *part.arguments],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which tells the others
        )
        threading.Thread(target=self._read, args=(part, part.process.stdout), daemon=True).start()

    def _read(self, part: Part, stream: IO[bytes]) -> None:
        with part.log.open("ab") as log, stream:
            for raw in stream:
                log.write(raw)
                log.flush()
                part.last = raw.decode(errors="replace").rstrip()
                if part.nodes == (CLOUD,) and ": round " in part.last:
                    self.progress.append(part.last)

    def watch(self) -> bool:
        """Whether the run goes on. A process that was killed is started again.

        :raises InputError: a process cannot go on
        """
        for part in self.parts:
            code = None if part.process is None else part.process.poll()
            if code is None or (code == 0 and part.nodes != (CLOUD,)):
                continue
            if code == 0:
                return False
            if time.monotonic() - part.begun > _STEADY_SECONDS:
                part.starts = 0
            if code > 0 or part.starts >= _MOST_STARTS:
                raise InputError(f"{part.name} ended with code {code}: {part.last.partition('error: ')[2] or part.last}"
                                 f"; its lines are in {part.log}")  # fmt: skip
            part.last = f"ended by signal {-code}; started again"
            self._close(part)
            self.begin(part)
        return True

    def stop(self) -> None:
        """All end in an orderly way, and by force what does not."""
        for part in self.parts:
            if part.process is not None and part.process.poll() is None:
                part.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + _END_SECONDS
        for part in self.parts:
            if part.process is None:
                continue
            try:
                part.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                part.process.kill()
                part.process.wait()
            self._close(part)

    def wait(self) -> None:
        """After the end of the run: all end by themselves."""
        end = time.monotonic() + _END_SECONDS
        while time.monotonic() < end and any(p.process is not None and p.process.poll() is None for p in self.parts):
            time.sleep(_LOOK_SECONDS)
        self.stop()

    def _close(self, part: Part) -> None:
        if part.process is not None and part.process.stdin is not None:
            part.process.stdin.close()


def parts(nodes: Sequence[Node], config: Path, folder: Path, per_process: int, more: Sequence[str]) -> list[Part]:
    """One process for the cloud and for every fog; devices of one parent share some.

    :param config: the file that all of them read
    :param per_process: devices; 0: all of a parent
    :param more: further arguments of all
    """
    out = []
    for one in nodes:
        if one.tier != "device":
            named = [] if one.tier == "cloud" else ["--name", one.name]
            arguments = [one.tier, str(config), *named, *more]
            out.append(Part(nodes=(one.name,), arguments=arguments, log=folder / f"{one.name}.log"))
    siblings: dict[str, list[str]] = {}
    for one in nodes:
        if one.tier == "device":
            siblings.setdefault(one.parent, []).append(one.name)
    for parent, names in siblings.items():
        size = per_process or len(names)
        for number, start in enumerate(range(0, len(names), size)):
            some = tuple(names[start : start + size])
            named = [a for name in some for a in ("--name", name)]
            log = folder / f"devices-of-{parent}-{number}.log"
            out.append(Part(nodes=some, arguments=["device", str(config), *named, *more], log=log))
    return out


@contextmanager
def view(console: Console, crew: Crew, quiet: bool) -> Iterator[Any]:
    """Called again and again: a table that is renewed on a terminal, else the lines of the cloud as they come."""
    said = 0

    def lines() -> None:
        nonlocal said
        for line in crew.progress[said:]:
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        said = len(crew.progress)

    if quiet:
        yield lambda: None
    elif console.is_terminal:
        with Live(_table(crew), console=console, refresh_per_second=4) as live:
            yield lambda: live.update(_table(crew))
        lines()
    else:
        yield lines
        lines()


def _table(crew: Crew) -> Group:
    table = Table(show_edge=False)
    for column in ("process", "pid", "state"):
        table.add_column(column, no_wrap=column == "state", overflow="ellipsis")
    for part in crew.parts:
        code = None if part.process is None else part.process.poll()
        state = part.last if code is None else f"ended ({code})"
        pid = "" if part.process is None else str(part.process.pid)
        table.add_row(Text(part.name), pid, Text(state))
    return Group(table, Text(crew.progress[-1] if crew.progress else "waiting for the nodes"))


def run(crew: Crew, console: Console, quiet: bool = False) -> None:
    """All processes, from their begin to the end of the run.

    :raises InputError: one of them cannot go on; all others were stopped
    """
    try:
        for part in crew.parts:
            crew.begin(part)
        with view(console, crew, quiet) as show:
            while crew.watch():
                show()
                time.sleep(_LOOK_SECONDS)
            show()
        crew.wait()
    finally:
        crew.stop()


def environment(stops: str) -> dict[str, str]:
    """Of the processes. :param stops: the variable that ends them with their standard input"""
    return {**os.environ, stops: "1", "PYTHONUNBUFFERED": "1"}
