"""What a process says of itself: a small file in its folder, renewed every few seconds, and metrics over HTTP."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tierfed.deploy.household import Household
from tierfed.errors import InputError, closest
from tierfed.metrics import write_atomic

FILE = "status.json"
EVERY_SECONDS = 2.0
_STALE_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Status:
    """One node as it is now.

    :param pid: of its process
    :param at: when this was written, seconds since 1970
    :param round: the last one that it has heard of, from 1; 0: none
    :param joined: is it connected to its parent? The cloud has none and is
    :param children: how many are connected, and how many there are
    :param busy_seconds: since when it is at work on a question; 0: it waits for one
    """

    node: str
    pid: int
    at: float
    round: int
    joined: bool
    children: tuple[int, int]
    busy_seconds: float
    over: bool = False


def write(folder: Path, status: Status) -> None:
    """Renews the file of a node; a full disk is no reason to end."""
    with suppress(OSError):
        write_atomic(folder / FILE, json.dumps(asdict(status)))


def read(folder: Path, node: str) -> Status:
    """:raises InputError: the node has never been at work there, or the file is damaged"""
    path = folder / FILE
    try:
        found = json.loads(path.read_text("utf-8"))
        return Status(**{**found, "children": tuple(found["children"])})
    except OSError:
        others = [p.parent.name for p in folder.parent.glob(f"*/{FILE}")]
        hint = f"; did you mean {close!r}?" if (close := closest(node, others)) else ""
        remedy = hint or "; start it, or give the config that it was started with"
        raise InputError(f"{node} has left no {path}{remedy}") from None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is damaged; delete it, the process writes it anew") from None


def trouble(status: Status, now: float | None = None) -> str:
    """Why a node is not well; empty: it is."""
    age = (time.time() if now is None else now) - status.at
    if status.over:
        return ""
    if not _alive(status.pid) or age > _STALE_SECONDS:
        return f"it is not at work: process {status.pid} wrote its state {age:.0f} s ago"
    if not status.joined:
        return "it is not connected to its parent"
    return ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Beat:
    """Renews the status of the nodes of a process until it is closed. :param beat: is called every two seconds"""

    def __init__(self, beat: Callable[[], None]) -> None:
        self.beat, self._stop = beat, threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            self.beat()

    def close(self) -> None:
        """The last state is written."""
        self._stop.set()
        self._thread.join()
        self.beat()


def metrics(nodes: Callable[[], list[tuple[Status, Household | None]]]) -> Any:
    """A registry of Prometheus over the nodes of this process.

    :returns: prometheus_client.CollectorRegistry
    """
    from prometheus_client import CollectorRegistry  # noqa: PLC0415  (an extra)
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415
    from prometheus_client.registry import Collector  # noqa: PLC0415

    class Nodes(Collector):
        def collect(self) -> Iterator[Any]:
            seen = nodes()
            for name, about, value in (
                ("tierfed_round", "Last round that the node has heard of.", lambda s: s.round),
                ("tierfed_joined", "Whether the node is connected to its parent.", lambda s: float(s.joined)),
                ("tierfed_children", "Children that are connected.", lambda s: s.children[0]),
                ("tierfed_children_expected", "Children that the node has.", lambda s: s.children[1]),
                ("tierfed_busy_seconds", "Since when the node is at work on a question.", lambda s: s.busy_seconds),
            ):
                gauge = GaugeMetricFamily(name, about, labels=["node"])
                for status, _ in seen:
                    gauge.add_metric([status.node], value(status))
                yield gauge
            for name, about in (
                ("frames_in", "Frames from children."),
                ("frames_out", "Frames to children."),
                ("bytes_in", "Bytes from children."),
                ("bytes_out", "Bytes to children."),
                ("joined", "Times that a child has joined."),
                ("refused", "Connections that were refused."),
                ("late", "Replies that nobody waited for."),
                ("rejected", "Frames and replies that were none that can be used."),
            ):
                counter = CounterMetricFamily(f"tierfed_{name}", about, labels=["node"])
                for status, house in seen:
                    if house is not None:
                        counter.add_metric([status.node], getattr(house.counters, name))
                yield counter

    registry = CollectorRegistry()
    registry.register(Nodes())
    return registry


def serve_metrics(address: str, registry: Any) -> Callable[[], None]:
    """Metrics over HTTP from now on; what ends that.

    :param address: "host:port", or a port on this machine alone
    :raises InputError: nobody can listen there, or prometheus-client is missing
    """
    try:
        from prometheus_client import start_http_server  # noqa: PLC0415  (an extra)
    except ImportError:
        raise InputError("deploy.metrics needs prometheus-client: pip install 'tierfed[deploy]'") from None
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise InputError(f"deploy.metrics = {address!r}: wanted host:port, for example '127.0.0.1:9400'")
    try:
        server, thread = start_http_server(int(port), host or "127.0.0.1", registry)
    except OSError as err:
        raise InputError(f"cannot listen at {address}: {err}; take another address (deploy.metrics)") from None

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
