"""A parent and its children: who is connected, what they were asked, who has answered by when."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from tierfed.deploy.frame import Frame, Header, pack, peek, unpack
from tierfed.deploy.logs import event
from tierfed.deploy.transport import Peer, Stream
from tierfed.deployment import DeploySettings
from tierfed.errors import InputError

_LOG = logging.getLogger(__name__)
_HELLO_SECONDS = 10.0
_WINDOW_SECONDS = 10.0
_REMIND_SECONDS = 10.0
_STRANGERS = 256  # connections that have not said who they are


class Superseded(Exception):  # noqa: N818  no error: there is something newer to do
    """The parent of this node asks for something else by now."""


class Refusal(NamedTuple):
    """Why a child may not join. :param parent: where it should go instead, name and address"""

    reason: str
    parent: tuple[str, str] | None = None
    final: bool = True


class Admission(Protocol):
    """Who may join."""

    def __call__(self, peer: Peer, hello: Header) -> int | Refusal: ...


class Vouching(Protocol):
    """What a parent proves to its children beside what the transport does."""

    def welcome(self, hello: Header) -> Header: ...

    def news(self) -> Header: ...


class Gathered(NamedTuple):
    """What came of a question. Everybody who was asked is in one of the two."""

    replies: dict[int, Frame]
    missing: dict[int, str]


class Counters:
    """Numbers for metrics; they only grow."""

    def __init__(self) -> None:
        self.frames_in = self.frames_out = self.bytes_in = self.bytes_out = 0
        self.joined = self.refused = self.late = self.rejected = 0


class _Guest:
    """A connection, before and after it has said who it is."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.since, self.child = stream, time.monotonic(), -1
        self.hello: Header = {}
        self.number: int | None = None  # of the revocation list that it has
        self.recent: deque[float] = deque()

    def too_many(self, now: float, rate: float) -> bool:
        """Whether another frame is more than the rate allows."""
        self.recent.append(now)
        while self.recent and now - self.recent[0] > _WINDOW_SECONDS:
            self.recent.popleft()
        return len(self.recent) > rate * _WINDOW_SECONDS


class Household:
    """The children of one process (the protocol `tierfed.deploy.transport.Owner`).

    One question is out at a time. A child that comes back while it is asked is asked again; what nobody waits for is
    dropped as it comes.
    """

    def __init__(
        self,
        settings: DeploySettings,
        admit: Admission,
        name_of: Callable[[int], str],
        vouching: Vouching | None = None,
    ) -> None:
        self.settings, self.admit, self.name_of, self.vouching = settings, admit, name_of, vouching
        self.counters = Counters()
        self.fresh: set[int] = set()  # children that have lost what they knew
        self._changed = threading.Condition()
        self._guests: dict[int, _Guest] = {}  # by id of the stream
        self._children: dict[int, _Guest] = {}
        self._asked: dict[int, tuple[str, bytes]] = {}
        self._came: dict[int, bytes] = {}

    # called by the transport

    def opened(self, stream: Stream) -> None:
        with self._changed:
            now, strangers = time.monotonic(), [g for g in self._guests.values() if g.child < 0]
            for guest in strangers:
                if now - guest.since > _HELLO_SECONDS:
                    self._refuse(guest, Refusal("it has not said who it is", final=False))
            full = len(self._guests) >= self.settings.max_children + _STRANGERS
            if full or len(strangers) >= _STRANGERS:
                self.counters.refused += 1
                address, about = stream.peer.address, event("refused")
                _LOG.warning("refused a connection from %s: there are too many", address, extra=about)
                stream.close()
                return
            self._guests[id(stream)] = _Guest(stream)

    def received(self, stream: Stream, frame: bytes) -> None:
        with self._changed:
            guest = self._guests.get(id(stream))
            if guest is None:
                return
            self.counters.frames_in += 1
            self.counters.bytes_in += len(frame)
            if guest.too_many(time.monotonic(), self.settings.messages_per_second):
                self._refuse(guest, Refusal("it sends more messages than messages_per_second allows", final=False))
                return
            try:
                if guest.child < 0:
                    self._hello(guest, unpack(frame).header)
                else:
                    self._reply(guest, peek(frame), frame)
            except InputError as err:
                self.counters.rejected += 1
                self._refuse(guest, Refusal(f"it sent no valid frame: {err}", final=False))

    def closed(self, stream: Stream | None, why: str) -> None:
        if stream is None:
            return
        with self._changed:
            guest = self._guests.pop(id(stream), None)
            if guest is not None and self._children.get(guest.child) is guest:
                del self._children[guest.child]
                _LOG.info("%s is gone: %s", self.name_of(guest.child), why, extra=event("gone"))
                self._changed.notify_all()
            elif guest is not None and guest.child < 0:
                address, about = stream.peer.address, event("gone")
                _LOG.info("a connection from %s has ended before it said who it is: %s", address, why, extra=about)

    def _hello(self, guest: _Guest, hello: Header) -> None:
        if hello.get("kind") != "hello":
            raise InputError(f"the first frame is {hello.get('kind')!r}, wanted 'hello'")
        child = self.admit(guest.stream.peer, hello)
        if isinstance(child, Refusal):
            self._refuse(guest, child)
            return
        before, self._children[child] = self._children.get(child), guest
        guest.child, guest.hello = child, hello
        tree_lost = bool(hello.get("fresh")) and hello.get("tier") != "device"
        if tree_lost:
            self.fresh.add(child)
        if before is not None:  # it has lost its connection and this end has not noticed
            self._guests.pop(id(before.stream), None)
            before.stream.close()
        self.counters.joined += 1
        _LOG.info("%s has joined from %s", self.name_of(child), guest.stream.peer.address, extra=event("joined"))
        shown = {} if self.vouching is None else self.vouching.welcome(hello)
        guest.number = shown.get("number")
        self._send(guest, pack({"kind": "welcome", **shown}))
        if child in self._asked and child not in self._came:
            if tree_lost and peek(self._asked[child][1]).get("kind") != "tree":
                self._came[child] = pack({"kind": "failed", "reason": "it has begun anew"})
            else:
                self._send(guest, self._asked[child][1])
        self._changed.notify_all()

    def _reply(self, guest: _Guest, header: Header, frame: bytes) -> None:
        child = guest.child
        asked = self._asked.get(child)
        if asked is None or header.get("id") != asked[0] or child in self._came:
            self.counters.late += 1
            twice = asked is not None and header.get("id") == asked[0]
            why = "it has answered already" if twice else "nobody waits for it any more"
            _LOG.warning("refused %s of %s for round %s: %s", header.get("kind"), self.name_of(child),
                         header.get("round"), why, extra=event("late"))  # fmt: skip
            return
        self._came[child] = frame
        self._changed.notify_all()

    def _refuse(self, guest: _Guest, why: Refusal) -> None:
        who = self.name_of(guest.child) if guest.child >= 0 else f"a connection from {guest.stream.peer.address}"
        if why.parent is None:
            self.counters.refused += 1
            _LOG.warning("refused %s: %s", who, why.reason, extra=event("refused"))
        else:
            _LOG.info("sent on: %s", why.reason, extra=event("sent_on"))
        parent = {} if why.parent is None else {"parent": why.parent[0], "address": why.parent[1]}
        self._send(guest, pack({"kind": "refused", "reason": why.reason, "final": why.final, **parent}))
        guest.stream.close()
        self._guests.pop(id(guest.stream), None)
        if self._children.get(guest.child) is guest:
            del self._children[guest.child]
            self._changed.notify_all()

    def _send(self, guest: _Guest, frame: bytes) -> None:
        self.counters.frames_out += 1
        self.counters.bytes_out += len(frame)
        guest.stream.send(frame)

    # called by the node

    def present(self) -> set[int]:
        """The children that are connected."""
        with self._changed:
            return set(self._children)

    def wake(self) -> None:
        """Something has changed for whoever waits."""
        with self._changed:
            self._changed.notify_all()

    def review(self) -> None:
        """Asks again who may stay: a certificate may have been revoked, a device may have another parent by now. Who
        stays gets the list of what was revoked.
        """
        news = {} if self.vouching is None else self.vouching.news()
        with self._changed:
            for guest in list(self._children.values()):
                answer = self.admit(guest.stream.peer, guest.hello)
                if isinstance(answer, Refusal):
                    self._refuse(guest, answer)
                elif guest.number != news.get("number"):
                    guest.number = news["number"]
                    self._send(guest, pack({"kind": "news", **news}))

    def gather(
        self,
        questions: Mapping[int, tuple[str, bytes]],
        seconds: float | None,
        going: Callable[[], bool] = lambda: True,
        check: Callable[[int, Frame], None] = lambda child, frame: None,
        enough: int | None = None,
    ) -> Gathered:
        """Asks children and waits: until all have answered, `enough` have, or the time is over.

        :param questions: child -> id of the question, frame
        :param seconds: none: as long as it takes
        :param going: whether anybody wants to know any more
        :param check: raises InputError where a reply is none that can be used
        :raises Superseded: nobody does
        """
        end = None if seconds is None else time.monotonic() + seconds
        enough, remind = len(questions) if enough is None else enough, time.monotonic() + _REMIND_SECONDS
        out = Gathered({}, {})
        with self._changed:
            self._asked, self._came = dict(questions), {}
            for child in questions:
                if child in self._children:
                    self._send(self._children[child], questions[child][1])
        try:
            while len(out.replies) + len(out.missing) < len(questions) and len(out.replies) < enough:
                with self._changed:
                    fresh = [c for c in self._came if c not in out.replies and c not in out.missing]
                    if not fresh:
                        if not going():
                            raise Superseded
                        now = time.monotonic()
                        if end is not None and now >= end:
                            break
                        if now >= remind:
                            remind = now + _REMIND_SECONDS
                            self._remind(out)
                        self._changed.wait(min(remind, remind if end is None else end) - now)
                        continue
                for child in fresh:
                    if len(out.replies) < enough:
                        self._take(child, check, out)
        finally:
            with self._changed:
                absent = {c for c in questions if c not in self._children}
                self._asked, self._came = {}, {}
        for child in questions:
            if child not in out.replies and child not in out.missing:
                out.missing[child] = "not connected" if child in absent else "no answer in time"
        return out

    def _take(self, child: int, check: Callable[[int, Frame], None], out: Gathered) -> None:
        with self._changed:
            data = self._came[child]
        try:
            frame = unpack(data)
            if frame.kind == "failed":
                out.missing[child] = str(frame.header.get("reason", "it failed"))
                if frame.header.get("fresh"):
                    self.fresh.add(child)
                return
            if frame.kind != "reply":
                raise InputError(f"got {frame.kind!r}, wanted a reply")
            check(child, frame)
        except InputError as err:
            self.counters.rejected += 1
            about = event("rejected")
            _LOG.warning("refused the reply of %s: %s", self.name_of(child), err, extra=about)
            out.missing[child] = f"its reply was refused: {err}"
            return
        out.replies[child] = frame

    def _remind(self, out: Gathered) -> None:
        waiting = [c for c in self._asked if c not in out.replies and c not in out.missing]
        names = ", ".join(self.name_of(c) + ("" if c in self._children else " (not connected)") for c in waiting[:8])
        rest = "" if len(waiting) <= 8 else f" and {len(waiting) - 8} more"
        _LOG.info("waiting for %s%s", names, rest, extra=event("waiting"))

    def close(self) -> None:
        """Ends all connections."""
        with self._changed:
            for guest in list(self._guests.values()):
                guest.stream.close()
