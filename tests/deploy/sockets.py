"""Links between processes that a test cuts, holds and half-opens, and connections that speak no more than they want."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_CHUNK = 1 << 16


class Proxy:
    """A port that passes bytes on to another one, or does not."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        self.asked, self.holding = threading.Event(), threading.Event()
        self._pairs: list[_Pair] = []
        self._open, self._closed, self._lock = True, False, threading.Lock()
        self._after: int | None = None
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            with self._lock:
                if self._closed or not self._open:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.close()
                    continue
                self._pairs.append(_Pair(self, near, far))

    def hold(self) -> None:
        """The connections that there are go on in name only: nothing passes, and nobody hears of it."""
        with self._lock:
            for pair in self._pairs:
                pair.held = True

    def hold_after(self, size: int) -> None:
        """So many bytes of the child's next long message still pass, and nothing after them; `holding` is set then."""
        self.holding.clear()
        self._after = size

    def cut(self) -> None:
        """Every connection breaks, and no new one is taken."""
        with self._lock:
            self._open = False
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.close()

    def heal(self) -> None:
        """Connections are taken again."""
        self._open, self._after = True, None

    def room(self, size: int) -> int:
        """How much of what a child sends may pass."""
        with self._lock:
            if self._after is None or (size < 200 and not self.holding.is_set()):
                return size  # no message, but a ping or an acknowledgment
            passes, self._after = min(size, self._after), max(0, self._after - size)
        if passes < size:
            self.holding.set()
        return passes

    def close(self) -> None:
        with self._lock:
            self._closed = True
        with suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self._thread.join()
        self.cut()


class _Pair:
    """One connection and the one behind it."""

    def __init__(self, proxy: Proxy, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far, self.held = near, far, False
        self._threads = [
            threading.Thread(target=self._carry, args=(near, far, proxy.room), daemon=True),
            threading.Thread(target=self._carry, args=(far, near, len_of), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket, room: Callable[[int], int]) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if self.held:
                    continue
                sink.sendall(data[: room(len(data))])
        if not self.held:
            for one in (source, sink):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for one in (self.near, self.far):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self.near.close()
        self.far.close()


def len_of(size: int) -> int:
    """All of it."""
    return size


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def _literal(name: str, value: str) -> bytes:
    """A header field that needs no table (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def begun(port: int, message: bytes = b"") -> socket.socket:
    """A connection with a call of the frames' method under way, by hand. :param message: what is sent in it"""
    out = socket.create_connection(("127.0.0.1", port))
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/tierfed.v1/frames",
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    head = b"".join(_literal(*field) for field in fields.items())
    data = _frame(0, 0, 1, message) if message else b""
    out.sendall(_PREFACE + _frame(4, 0, 0, b"") + _frame(1, 4, 1, head) + data)
    return out


def ended(one: socket.socket, seconds: float = 120.0) -> bytes:
    """All that comes until the other side closes the stream or the connection."""
    one.settimeout(seconds)
    got = b""
    with suppress(ConnectionError):
        while (data := one.recv(_CHUNK)) and not _over(got := got + data):
            pass
    return got


def _over(got: bytes) -> bool:
    """Whether stream 1 has ended: trailers, or a reset, or the whole connection does (GOAWAY)."""
    at = 0
    while at + 9 <= len(got):
        size, kind, flags = int.from_bytes(got[at : at + 3], "big"), got[at + 3], got[at + 4]
        if kind in (3, 7) or (kind in (0, 1) and flags & 1):
            return True
        at += 9 + size
    return False
