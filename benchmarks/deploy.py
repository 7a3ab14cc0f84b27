"""What deployment costs: python benchmarks/deploy.py [--parts link,idle,live] [--json]

link    Round trips of 1 kB, 1 MB and 40 MB on loopback between two processes, in turns: a plain gRPC echo (Python's
        grpc, one bidirectional stream of bytes), the streams of tierfed, and messages of tierfed over the same streams
        (a tensor is packed with a checksum, echoed, and unpacked). All three without and with mutual TLS, by the same
        certificates. Medians; MB/s counts both ways; the ratio is the time over that of plain gRPC of the same kind.
idle    A real `tierfed fog` with mutual TLS before and after --idle devices have joined it, which run in one
        `tierfed device` process; nobody begins a round. Memory is the resident set (VmRSS).
live    `tierfed up` with --live devices at four fogs, --per-process devices in a process, mutual TLS, --rounds rounds
        of a small perceptron (epflu_mlp, 64 inputs), one epoch of 20 samples. Every round is evaluated on all devices.
        Rounds per second from the lines of the cloud, without the first one, which waits for the processes.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sides.echo import FOG, HOST, WAIT_SECONDS, Link, issue_two, link, serving

from tierfed.config import Config, from_table, to_toml
from tierfed.deploy.authority import create, issue
from tierfed.deploy.names import Node, tree_nodes
from tierfed.deploy.process import world_of

PARTS = ("link", "idle", "live")
SIZES = {"1 kB": 1_000, "1 MB": 1_000_000, "40 MB": 40_000_000}


def live_config(folder: Path, devices: int, fogs: int, rounds: int, port: int, per_process: int = 25) -> Config:
    """Devices with 20 samples of noise each."""
    rng, path = np.random.default_rng(0), folder / "noise.npz"
    n = 25 * devices
    team = np.arange(devices) % fogs
    np.savez(
        path,
        x=rng.standard_normal((n, 64), np.float32),
        y=rng.integers(0, 10, n),
        device=np.arange(n) % devices,
        team=team[np.arange(n) % devices],
    )
    return from_table(
        {
            "run": {"rounds": rounds, "out": str(folder / "run"), "threads": 1},
            "data": {"source": "npz", "path": str(path), "split": {"by": "time", "test": 0.2, "val": 0.0}},
            "model": {"name": "epflu_mlp"},
            "algorithm": {"name": "fedavg", "epochs": 1, "lr": 0.05},
            "topology": {"teams": "natural"},
            "eval": {"every": 1, "post": False},
            "deploy": {"port": port, "devices_per_process": per_process, "retry_seconds": 1.0},
        }
    )


def certified(config: Config, folder: Path) -> tuple[Node, ...]:
    """Certificates for all nodes of a config, in folder/keys/nodes."""
    world = world_of(config)
    nodes = tree_nodes(world.topology, world.federation.devices)
    issue(create(folder / "keys"), nodes)
    (folder / "run.toml").write_text(to_toml(config))
    return nodes


def tierfed(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A process of a run. What it logs goes to a file."""
    with (folder / "log").open("a") as log:
        command = [sys.executable, "-m", "tierfed", arguments[0], str(folder / "run.toml"), *arguments[1:]]
        return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)


def resident_mb(pid: int) -> float:
    """The resident set of a process, MB."""
    text = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024 / 1e6  # type: ignore[index]


def children(folder: Path, name: str) -> int:
    """How many children a node says that it has; -1: it has said nothing yet."""
    try:
        return int(json.loads((folder / "run.nodes" / name / "status.json").read_text("utf-8"))["children"][0])
    except (OSError, ValueError):
        return -1


def until(ready: Callable[[], bool], process: "subprocess.Popen[str]", folder: Path) -> None:
    """Waits.

    :raises SystemExit: the process has ended
    """
    end = time.monotonic() + WAIT_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"a process has stopped or hangs: {(folder / 'log').read_text('utf-8')[-2000:]}")
        time.sleep(0.5)


def idle(devices: int) -> dict[str, float]:
    """Memory of a fog and of a process of devices."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as ends:
        folder = Path(place)
        nodes = certified(live_config(folder, devices, 1, 1, free_port(2)), folder)
        names = [node.name for node in nodes if node.tier == "device"]
        fog = ends.enter_context(tierfed(folder, "fog", "--name", FOG.name))
        ends.callback(fog.kill)
        until(lambda: children(folder, FOG.name) >= 0, fog, folder)
        before = resident_mb(fog.pid)
        found = {"devices": devices, "fog_mb": before}
        joined = 0
        for some in (names[:1], names[1:]):
            more = [a for name in some for a in ("--name", name)]
            keys = folder / "keys" / "nodes" / (some[0] if len(some) == 1 else "")
            process = ends.enter_context(tierfed(folder, "device", *more, "--keys", str(keys)))
            ends.callback(process.kill)
            joined += len(some)
            until(lambda joined=joined: children(folder, FOG.name) == joined, process, folder)
            time.sleep(5)
            found["one_device_mb" if len(some) == 1 else "other_devices_mb"] = resident_mb(process.pid)
        found["fog_with_children_mb"] = resident_mb(fog.pid)
        found["fog_mb_per_child"] = (found["fog_with_children_mb"] - before) / devices
        more_devices = found["other_devices_mb"] - found["one_device_mb"]
        found["device_mb_per_device"] = more_devices / max(1, devices - 2)
        return found


def live(devices: int, per_process: int, rounds: int) -> dict[str, float]:
    """Rounds per second."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as ends:
        folder, fogs = Path(place), min(4, devices)
        config = live_config(folder, devices, fogs, rounds, free_port(fogs + 1), per_process)
        certified(config, folder)
        begun = time.monotonic()
        up = ends.enter_context(tierfed(folder, "up", "--keys", str(folder / "keys" / "nodes")))
        ends.callback(up.terminate)
        seen = [time.monotonic() for _ in rounds_of(up.stdout or ())]
        if up.wait(WAIT_SECONDS) != 0:
            raise SystemExit(f"the run has failed: {(folder / 'log').read_text('utf-8')[-2000:]}")
        return {
            "devices": devices,
            "processes": 1 + fogs + fogs * -(-(devices // fogs) // per_process),
            "rounds": len(seen),
            "first_round_seconds": seen[0] - begun,
            "rounds_per_second": rate(seen),
        }


def rounds_of(lines: Iterable[str]) -> Iterator[int]:
    """The numbers of the rounds, as lines of the cloud come."""
    for line in lines:
        if (found := re.search(r": round ([1-9]\d*)/", line)) is not None:
            yield int(found[1])


def rate(seen: Sequence[float]) -> float:
    """Rounds per second by when each of them ended, without the first one."""
    return (len(seen) - 1) / (seen[-1] - seen[0])


def free_port(count: int) -> int:
    """The first of so many ports in a row that nobody uses now."""
    for base in range(21_000 + os.getpid() % 1000 * 20, 60_000, count):
        try:
            for port in range(base, base + count):
                with socket.socket() as one:
                    one.bind((HOST, port))
            return base
        except OSError:
            continue
    raise SystemExit("no free ports")


def links(turns: int, sizes: dict[str, int], least: float) -> list[Link]:
    """The part "link", with the echoes in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        keys, port = issue_two(Path(folder) / "keys"), free_port(4)
        ports = list(range(port, port + 4))
        command = [sys.executable, __file__, "--serve", str(keys), *map(str, ports)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            try:
                if server.stdout is None or server.stdout.readline() != b"ready\n":
                    raise SystemExit("the echoes cannot be begun")
                return link(keys, ports, sizes, turns, least)
            finally:
                server.communicate()  # its standard input ends, and so does it


def show(found: dict[str, Any]) -> None:
    """All tables."""
    console = Console()
    if "link" in found:
        table = Table(title="Round trips")
        for column in ("size", "TLS", "way", "ms", "MB/s", "ratio"):
            table.add_column(column, justify="right")
        for one in found["link"]:
            numbers = (f"{one['milliseconds']:,.2f}", f"{one['mb_per_second']:,.1f}", f"{one['ratio']:.2f}")
            table.add_row(one["size"], "mutual" if one["tls"] else "none", one["kind"], *numbers)
        console.print(table)
    for part in (p for p in ("idle", "live") if p in found):
        table = Table(title=part)
        for name, value in found[part].items():
            table.add_row(name.replace("_", " "), f"{value:,.2f}")
        console.print(table)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--idle", type=int, default=200, help="devices")
    parser.add_argument("--live", type=int, default=100, help="devices")
    parser.add_argument("--per-process", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    if wrong := set(found.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(wrong))}: wanted some of {', '.join(PARTS)}")
    if found.rounds < 4 or found.idle < 3:
        parser.error("wanted --rounds 4 or more and --idle 3 or more")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parsed(arguments)
    if asked.serve:
        with serving(Path(asked.serve[0]), [int(p) for p in asked.serve[1:]]):
            print("ready", flush=True)
            sys.stdin.read()
        return
    found: dict[str, Any] = {}
    for part in asked.parts.split(","):
        if part == "link":
            found[part] = [asdict(one) for one in links(asked.turns, SIZES, 0.3)]
        elif part == "idle":
            found[part] = idle(asked.idle)
        else:
            found[part] = live(asked.live, asked.per_process, asked.rounds)
        print(f"{part}: done", file=sys.stderr, flush=True)
    if asked.json:
        print(json.dumps({"settings": {k: v for k, v in vars(asked).items() if k != "serve"}, **found}, indent=1))
    else:
        show(found)


if __name__ == "__main__":
    main()
