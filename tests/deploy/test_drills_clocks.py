"""Real processes whose wall clocks are an hour apart, or jump; what they log is JSON, and nothing listens unasked."""

import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest

from deploy.drills import SECONDS, Absent, simulated, small
from deploy.harness import distance
from deploy.processes import Run, free_ports, running
from deploy.test_drills_keys import NODES
from deploy.test_drills_messages import FLOAT64
from deploy.test_drills_processes import TIERS
from deploy.test_logs import entries
from deploy.test_metrics import fetched
from tierfed.deploy.authority import create, issue

ROUNDS = 3
HOUR = timedelta(hours=1)
LISTENING = "0A"


def shifted(hours: str) -> str:
    """Code that sets the wall clock of a process. :param hours: in Python; `looks`: how often it was looked at"""
    return f"""
import datetime
import time
from tierfed.deploy import certificates

real, looks = time.time, 0


def shifted():
    global looks
    looks += 1
    return real() + 3600.0 * ({hours})


class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(shifted(), tz)


time.time, time.time_ns, certificates.datetime = shifted, lambda: int(1e9 * shifted()), Shifted
"""


@pytest.fixture
def permfl(tmp_path: Path) -> Iterator[Run]:
    """PerMFL on 1 cloud, 2 fogs and 4 devices over mutual TLS, everybody with a deadline."""
    made = partial(small, tmp_path, "permfl", topology={"team_rounds": 2})
    deploy = {"log": "json", "deadline_seconds": SECONDS, "quorum": 1.0}
    with running(tmp_path, made, TIERS, inner=3, run={"rounds": ROUNDS}, deploy=deploy) as run:
        issue(create(tmp_path / "keys"), NODES)
        run.access = []  # of each its folder below keys/nodes
        yield run


def listening(pid: int) -> set[tuple[str, int]]:
    """Where a process takes connections."""
    mine = set()
    for handle in os.listdir(f"/proc/{pid}/fd"):
        try:
            mine.add(os.readlink(f"/proc/{pid}/fd/{handle}"))
        except FileNotFoundError:  # it was closed meanwhile
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = row.split()[:10]
            if state == LISTENING and f"socket:[{inode}]" in mine:
                host, port = local.split(":")
                four = bytes.fromhex(host)[::-1] if len(host) == 8 else bytes.fromhex(host[-8:])[::-1]
                found.add((socket.inet_ntoa(four), int(port, 16)))
    return found


def _fetched(address: str) -> dict[tuple[str, str], float]:
    """The numbers of a process that begins to tell them."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            return fetched(address)
        except URLError:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_clocks_an_hour_apart(permfl: Run) -> None:
    """Of everybody below fog-1 as well, whose own clock goes back and forth; the model is that of the simulation."""
    port, first = free_ports(4) + 3, permfl.config.deploy.port
    permfl.start("cloud", code=shifted("1"))
    permfl.start("fog-0", code=shifted("-1"), more=["--set", f"deploy.metrics='{port}'"])
    permfl.start("fog-1", code=shifted("(-1) ** looks"))
    permfl.start("0", code=shifted("1"))
    permfl.start("1", "3", code=shifted("-1"))
    permfl.of("fog-0").until("0 has joined from ")
    permfl.of("cloud").until("fog-0 has joined from ")
    seen = _fetched(f"127.0.0.1:{port}")
    assert (seen["tierfed_children", "fog-0"], seen["tierfed_children_expected", "fog-0"]) == (1, 2)
    if Path("/proc/net/tcp").exists():
        where = {name: listening(permfl.of(name).child.pid) for name in ("cloud", "fog-0", "0")}
        here = "127.0.0.1"
        assert where == {"cloud": {(here, first)}, "fog-0": {(here, first + 1), (here, port)}, "0": set()}
    permfl.start("2")
    permfl.finish()
    assert distance(permfl.kept(), simulated(permfl.config, Absent())) < FLOAT64

    told = {
        names: entries("\n".join(text for text in process.lines if text != "folder: run"))
        for names, process in permfl.processes.items()
    }
    lines = [entry for some in told.values() for entry in some]
    assert not any(entry["event"] in ("incomplete", "late", "refused", "failed") for entry in lines)
    assert [e["round"] for e in told["cloud",] if e["event"] == "round"] == list(range(ROUNDS + 1))
    assert {e["node"] for e in told["1", "3"] if e["event"] == "joined"} == {"1", "3"}
    assert {e["node"] for e in told["fog-0",]} == {"fog-0"}
    last = {names[0]: datetime.fromisoformat(some[-1]["time"]) for names, some in told.items()}
    for name, hours in (("cloud", 1), ("fog-0", -1), ("1", -1)):
        assert abs(last[name] - last["2"] - hours * HOUR) < timedelta(seconds=SECONDS)
