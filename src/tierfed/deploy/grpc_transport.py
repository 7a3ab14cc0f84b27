"""Frames over gRPC: one bidirectional stream of plain bytes per child, all on one event loop of this process.

No thread waits for an idle child, so hundreds of them cost little. A dead peer is found by keepalive pings.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from tierfed.deploy.handshakes import failed
from tierfed.deploy.identity import Identity
from tierfed.deploy.logs import event
from tierfed.deploy.transport import Closing, Owner, Peer
from tierfed.deployment import DeploySettings
from tierfed.errors import InputError

_LOG = logging.getLogger(__name__)
_SERVICE, _METHOD = "tierfed.v1", "frames"
_WAITING = 64  # frames for one peer that are not on their way yet
_DIAL_SECONDS = 10.0
_CLOSE_SECONDS = 2.0

Who = Callable[[Mapping[str, Sequence[bytes]]], Identity]


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What a node proves its identity with. :param who: the peer that an authentication context names

    :param server: grpc.ServerCredentials; :param channel: grpc.ChannelCredentials; :param options: of its channels
    """

    server: Any
    channel: Any
    options: Sequence[tuple[str, Any]]
    who: Who
    warning: str = ""


class _Loop:
    """The event loop of this process, in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="network", daemon=True).start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine, for another thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()


_LOCK = threading.Lock()
_LOOPS: list[_Loop] = []


def _loop() -> _Loop:
    with _LOCK:
        if not _LOOPS:
            _LOOPS.append(_Loop())
        return _LOOPS[0]


class _End:
    """One end of a stream (the protocol `Stream`)."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.loop = _loop().loop
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def send(self, frame: bytes) -> None:
        self.loop.call_soon_threadsafe(self._put, frame)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self._put, None)

    def _put(self, frame: bytes | None) -> None:
        if self.queue.qsize() >= _WAITING:  # the peer does not read
            frame = None
        self.queue.put_nowait(frame)

    async def carry(self, call: Any, owner: Owner) -> str:
        """Reads and writes until one of the two ends; why."""
        reading = asyncio.create_task(self._read(call, owner))
        writing = asyncio.create_task(self._write(call))
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            ended = reading if reading.done() else writing
            error = ended.exception()
            return _reason(error) if error is not None else "closed"
        finally:
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _read(self, call: Any, owner: Owner) -> None:
        while (frame := await call.read()) is not grpc.aio.EOF:
            owner.received(self, frame)

    async def _write(self, call: Any) -> None:
        while (frame := await self.queue.get()) is not None:
            await call.write(frame)


def _reason(error: BaseException, dialed: bool = False) -> str:
    """What ended a stream, in a few words. :param dialed: with TLS, and nobody was reached"""
    if isinstance(error, grpc.aio.AioRpcError):
        details = failed(str(error.details())) if dialed else str(error.details())
        return f"{error.code().name.lower()}: {' '.join(details.split())[:200]}"
    return str(error) or type(error).__name__


async def _tried(channel: Any) -> bool:
    """Whether a channel has got through, once it has tried."""
    while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return False
        await channel.wait_for_state_change(state)
    return True


class _Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The server's side: one call is one child."""

    def __init__(self, owner: Owner, who: Who | None) -> None:
        self.owner, self.who = owner, who
        self.open: set[asyncio.Task[Any]] = set()

    def service(self, details: Any) -> Any:
        if details.method != f"/{_SERVICE}/{_METHOD}":
            return None
        return grpc.stream_stream_rpc_method_handler(self._child)

    async def _child(self, _: Any, context: Any) -> None:
        identity = None
        if self.who is not None:
            try:
                identity = self.who(context.auth_context())
            except InputError as err:
                _LOG.warning("refused a connection from %s: %s", context.peer(), err, extra=event("refused"))
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(err))
        end = _End(Peer(address=context.peer(), identity=identity))
        task = asyncio.current_task()
        if task is not None:
            self.open.add(task)
        self.owner.opened(end)
        why = "its connection broke"
        try:
            why = await end.carry(context, self.owner)
        finally:
            if task is not None:
                self.open.discard(task)
            self.owner.closed(end, why)


class _Listener:
    def __init__(self, server: Any) -> None:
        self.server = server

    def close(self) -> None:
        _loop().wait(self.server.stop(_CLOSE_SECONDS))


class Grpc:
    """gRPC between machines (the protocol `Transport`). :param keys: none: nobody proves who it is, for loopback"""

    def __init__(self, settings: DeploySettings, keys: Keys | None = None) -> None:
        self.settings, self.keys = settings, keys
        if keys is not None and keys.warning:
            _LOG.warning("%s", keys.warning)
        self._dials: set[asyncio.Task[None]] = set()

    def _options(self) -> list[tuple[str, Any]]:
        most, pause = self.settings.max_message_bytes, int(1000 * self.settings.keepalive_seconds)
        return [
            ("grpc.max_receive_message_length", most),
            ("grpc.max_send_message_length", most),
            ("grpc.keepalive_time_ms", pause),
            ("grpc.keepalive_timeout_ms", pause),
            ("grpc.http2.ping_timeout_ms", pause),  # a minute by default, whatever the one above says
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", min(5000, pause // 2)),
            ("grpc.max_concurrent_streams", 4),
            ("grpc.use_local_subchannel_pool", 1),  # a new dial does not wait for the pauses of an older one
            ("grpc.enable_http_proxy", 0),
            ("grpc.so_reuseport", 0),
        ]

    def listen(self, address: str, owner: Owner) -> Closing:
        return _Listener(_loop().wait(self._listen(address, owner)))

    async def _listen(self, address: str, owner: Owner) -> Any:
        service = _Service(owner, None if self.keys is None else self.keys.who)
        most = self.settings.max_children + 256
        server = grpc.aio.server(handlers=[service], options=self._options(), maximum_concurrent_rpcs=most)
        try:
            if self.keys is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, self.keys.server)
            await server.start()
        except (RuntimeError, OSError) as err:
            raise InputError(
                f"cannot listen at {address}: {' '.join(str(err).split())[:200]}; another process may be there: stop "
                "it, or take another address (deploy.addresses, deploy.port)"
            ) from None
        return server

    def dial(self, address: str, owner: Owner) -> None:
        loop = _loop().loop
        loop.call_soon_threadsafe(self._begin, address, owner)

    def _begin(self, address: str, owner: Owner) -> None:
        task = asyncio.get_running_loop().create_task(self._dial(address, owner))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self, address: str, owner: Owner) -> None:
        options, end, why = self._options(), None, f"nobody answers at {address}"
        if self.keys is None:
            channel = grpc.aio.insecure_channel(address, options=options)
        else:
            channel = grpc.aio.secure_channel(address, self.keys.channel, options=[*options, *self.keys.options])
        try:
            tried = await asyncio.wait_for(_tried(channel), _DIAL_SECONDS)
            call = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")()
            if not tried:
                await call.read()  # says why
            end = _End(Peer(address=address))
            owner.opened(end)
            why = await end.carry(call, owner)
            call.cancel()
        except TimeoutError:
            pass
        except grpc.aio.AioRpcError as err:
            why = _reason(err, self.keys is not None)
        finally:
            with contextlib.suppress(Exception):
                await channel.close()
            owner.closed(end, why)

    def close(self) -> None:
        """Connections are ended by those who have them; dials under way are given up."""
        _loop().wait(self._give_up())

    async def _give_up(self) -> None:
        tasks = list(self._dials)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
