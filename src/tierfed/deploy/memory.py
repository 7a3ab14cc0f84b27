"""A network inside one process, for tests and for looking at the protocol without sockets."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tierfed.deploy.transport import Closing, Owner, Peer
from tierfed.errors import InputError


class _End:
    """One end of a connection in memory (the protocol `Stream`)."""

    def __init__(self, network: "Memory", owner: Owner, peer: Peer) -> None:
        self.network, self.owner, self.peer = network, owner, peer
        self.other: _End | None = None

    def send(self, frame: bytes) -> None:
        if self.other is not None:
            self.network.call(self.other.receive, frame)

    def receive(self, frame: bytes) -> None:
        if self.other is not None:
            self.owner.received(self, frame)

    def close(self) -> None:
        self.network.call(self.hang_up)

    def hang_up(self) -> None:
        """Both ends hear of it."""
        ends, self.other = (self, self.other), None
        for end in ends if ends[1] is not None else ():
            if end is not None:
                end.other = None
                end.owner.closed(end, "closed")


class _Listener:
    def __init__(self, network: "Memory", address: str) -> None:
        self.network, self.address = network, address

    def close(self) -> None:
        self.network.stop(self.address)


class Memory:
    """All nodes share it (the protocol `Transport`); its calls come one after the other, from one thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "memory")
        self._lock = threading.Lock()
        self._owners: dict[str, Owner] = {}
        self._ends: dict[str, list[_End]] = {}

    def call(self, fn: Callable[..., None], *arguments: object) -> None:
        """Soon, from the thread of the network."""
        with self._lock:
            if self._thread is not None:
                self._thread.submit(fn, *arguments)

    def listen(self, address: str, owner: Owner) -> Closing:
        if address in self._owners:
            raise InputError(f"another node listens at {address}; give each an address of its own")
        self._owners[address] = owner
        return _Listener(self, address)

    def dial(self, address: str, owner: Owner) -> None:
        self.call(self._connect, address, owner)

    def _connect(self, address: str, owner: Owner) -> None:
        server = self._owners.get(address)
        if server is None:
            owner.closed(None, f"nobody listens at {address}")
            return
        child, parent = _End(self, owner, Peer(address=address)), _End(self, server, Peer(address="memory"))
        child.other, parent.other = parent, child
        self._ends.setdefault(address, []).append(parent)
        server.opened(parent)
        owner.opened(child)

    def stop(self, address: str) -> None:
        """Nobody listens there any more, and who was connected is not."""
        self._owners.pop(address, None)
        self.cut(address)

    def cut(self, address: str) -> None:
        """All connections to an address break."""
        for end in self._ends.pop(address, []):
            self.call(end.hang_up)

    def close(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None  # type: ignore[assignment]
        if thread is not None:
            thread.shutdown()
