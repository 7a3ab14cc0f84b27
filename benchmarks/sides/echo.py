"""Round trips on loopback: a plain gRPC echo, the streams of tierfed, and its messages; without and with mutual TLS."""

import os
import queue
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch

from tierfed.deploy.authority import create, issue
from tierfed.deploy.frame import pack, unpack
from tierfed.deploy.identity import channel_credentials, channel_options, load_credentials, server_credentials
from tierfed.deploy.names import CLOUD, Node
from tierfed.deploy.secure import insecure, secured
from tierfed.deploy.transport import Stream
from tierfed.deployment import DeploySettings

FOG = Node(name="fog-0", tier="fog", parent=CLOUD)
METHOD, HOST, WAIT_SECONDS = "/echo/echo", "127.0.0.1", 600.0
Ask = Callable[[bytes], bytes]


@dataclass(frozen=True, kw_only=True)
class Link:
    """Round trips of one size by one way. :param ratio: to plain gRPC with, or without, TLS"""

    size: str
    kind: str
    tls: bool
    milliseconds: float
    mb_per_second: float
    ratio: float


def issue_two(folder: Path) -> Path:
    """Certificates of a fog and of its device."""
    issue(create(folder), [FOG, Node(name="device", tier="device", parent=FOG.name)])
    return folder / "nodes"


class Echo:
    """Sends back what comes (a `tierfed.deploy.transport.Owner`)."""

    def opened(self, stream: Stream) -> None:
        """Nothing to say."""

    def received(self, stream: Stream, frame: bytes) -> None:
        stream.send(frame)

    def closed(self, stream: Stream | None, why: str) -> None:
        """Nothing to do."""


class Caller:
    """Keeps what comes for whoever has asked."""

    def __init__(self) -> None:
        self.came: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.stream: Stream | None = None

    def opened(self, stream: Stream) -> None:
        self.stream = stream
        self.came.put(b"")

    def received(self, stream: Stream, frame: bytes) -> None:
        self.came.put(frame)

    def closed(self, stream: Stream | None, why: str) -> None:
        self.came.put(ConnectionError(why))

    def ask(self, frame: bytes) -> bytes:
        """:raises ConnectionError: the other side is gone"""
        if self.stream is not None:
            self.stream.send(frame)
        reply = self.came.get(timeout=WAIT_SECONDS)
        if isinstance(reply, ConnectionError):
            raise reply
        return bytes(reply)


class Plain(grpc.GenericRpcHandler):
    """A plain gRPC echo."""

    def service(self, details: Any) -> Any:
        return (
            grpc.stream_stream_rpc_method_handler(lambda frames, _: iter(frames)) if details.method == METHOD else None
        )


@contextmanager
def serving(keys: Path, ports: Sequence[int]) -> Iterator[None]:
    """Echoes at four ports: plain gRPC and tierfed, without and with TLS."""
    with ExitStack() as ends:
        for port, tls in zip(ports[:2], (False, True), strict=True):
            server = grpc.server(ThreadPoolExecutor(2), handlers=[Plain()], options=most())
            if tls:
                server.add_secure_port(f"{HOST}:{port}", server_credentials(load_credentials(keys / FOG.name)))
            else:
                server.add_insecure_port(f"{HOST}:{port}")
            server.start()
            ends.callback(lambda server=server: server.stop(None).wait())
        for port, network in zip(ports[2:], networks(keys, FOG.name), strict=True):
            ends.callback(network.close)
            ends.callback(network.listen(f"{HOST}:{port}", Echo()).close)
        yield


def networks(keys: Path, name: str) -> tuple[Any, Any]:
    """The transport of tierfed without and with TLS."""
    settings = DeploySettings()
    return insecure(settings).transport, secured(settings, keys / name, name).transport


def most() -> list[tuple[str, int]]:
    """Options of plain gRPC: no limit of a message."""
    return [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@contextmanager
def plain(port: int, keys: Path | None) -> Iterator[Ask]:
    """Round trips over plain gRPC. :param keys: of the child; none: no TLS"""
    if keys is None:
        channel = grpc.insecure_channel(f"{HOST}:{port}", options=most())
    else:
        own = load_credentials(keys)
        channel = grpc.secure_channel(
            f"{HOST}:{port}", channel_credentials(own), options=[*most(), *channel_options(own)]
        )
    asked: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with channel:
        replies = channel.stream_stream(METHOD)(iter(asked.get, None))

        def ask(frame: bytes) -> bytes:
            asked.put(frame)
            return bytes(next(replies))

        yield ask
        asked.put(None)


@contextmanager
def calling(network: Any, port: int) -> Iterator[Ask]:
    """Round trips over a stream of tierfed."""
    caller = Caller()
    network.dial(f"{HOST}:{port}", caller)
    if isinstance(failure := caller.came.get(timeout=WAIT_SECONDS), ConnectionError):
        raise failure
    yield caller.ask
    if caller.stream is not None:
        caller.stream.close()
    while not isinstance(caller.came.get(timeout=WAIT_SECONDS), ConnectionError):
        """Until it is closed."""


def link(keys: Path, ports: Sequence[int], sizes: dict[str, int], turns: int, least: float) -> list[Link]:
    """Medians of round trips; all ways take turns. :param least: seconds of every way in a turn"""
    clear, safe = networks(keys, "device")
    ways: dict[tuple[str, bool], Ask] = {}
    found = []
    with ExitStack() as ends:
        for tls, port, (there, network) in ((False, ports[0], (ports[2], clear)), (True, ports[1], (ports[3], safe))):
            ends.callback(network.close)
            ways["grpc", tls] = ends.enter_context(plain(port, keys / "device" if tls else None))
            ways["tierfed stream", tls] = ask = ends.enter_context(calling(network, there))
            ways["tierfed message", tls] = ask
        for name, size in sizes.items():
            took: dict[tuple[str, bool], list[float]] = {way: [] for way in ways}
            for _ in range(turns):
                for way, ask in ways.items():
                    took[way] += timed(message(ask, size) if way[0] == "tierfed message" else raw(ask, size), least)
            medians = {way: statistics.median(seconds) for way, seconds in took.items()}
            found += [
                Link(
                    size=name,
                    kind=kind,
                    tls=tls,
                    milliseconds=1000 * seconds,
                    mb_per_second=2 * size / 1e6 / seconds,
                    ratio=seconds / medians["grpc", tls],
                )
                for (kind, tls), seconds in medians.items()
            ]
    return found


def raw(ask: Ask, size: int) -> Callable[[], None]:
    """One round trip of bytes."""
    frame = os.urandom(size)

    def trip() -> None:
        assert len(ask(frame)) == size

    return trip


def message(ask: Ask, size: int) -> Callable[[], None]:
    """One round trip of a tensor of so many bytes."""
    tree = {"x": torch.from_numpy(np.random.default_rng(0).random(size // 4, np.float32))}

    def trip() -> None:
        got = unpack(ask(pack({"kind": "ask", "round": 1}, tree)))
        assert torch.equal(got.tree["x"][:9], tree["x"][:9])

    return trip


def timed(trip: Callable[[], None], least: float) -> list[float]:
    """Seconds of each trip; one before them is not counted."""
    trip()
    out = []
    while not out or sum(out) < least:
        start = time.perf_counter()
        trip()
        out.append(time.perf_counter() - start)
    return out
