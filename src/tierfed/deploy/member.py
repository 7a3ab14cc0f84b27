"""A child and its parent: dials, says who it is, answers, and dials again."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tierfed.deploy.frame import Frame, Header, pack, peek, unpack
from tierfed.deploy.household import Superseded
from tierfed.deploy.journal import AnewError
from tierfed.deploy.logs import event
from tierfed.deploy.transport import Stream, Transport
from tierfed.errors import InputError

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 0.25

Going = Callable[[], bool]
Answer = Callable[[Frame, Going], bytes]
"""The reply to a question, as long as somebody wants to know it."""


class Doubting(Protocol):
    """What a child asks of its parent beside what the transport does."""

    def doubts(self, welcome: Header, nonce: str) -> str: ...

    def learn(self, news: Header) -> None: ...

    def trouble(self) -> str: ...


@dataclass
class _Question:
    ident: str
    data: bytes


class Member:
    """One node below its parent (the protocol `tierfed.deploy.transport.Owner`).

    Questions are answered one after the other by a thread of its own; a newer one takes the place of one that waits.

    :param address: of the parent, who may change
    :param hello: what it says of itself
    :param interrupt: called when a question has come
    :param longest: pause before dialing again, seconds
    :param done: the run is over, or this node cannot go on
    :param doubting: why a parent is not believed; none: whoever answers is
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        address: str,
        hello: Callable[[], Header],
        answer: Answer,
        interrupt: Callable[[], None] = lambda: None,
        longest: float = 10.0,
        done: threading.Event | None = None,
        doubting: Doubting | None = None,
    ) -> None:
        self.name, self.transport, self.address = name, transport, address
        self.hello, self.answer, self.interrupt, self.longest = hello, answer, interrupt, longest
        self.doubting, self._nonce = doubting, ""
        self.failure: BaseException | None = None
        self.done = done or threading.Event()
        self.welcome = threading.Event()
        self._changed = threading.Condition()
        self._stream: Stream | None = None
        self._next: _Question | None = None
        self._now, self._since = "", 0.0
        self._last: tuple[str, bytes] = ("", b"")
        self._closing = False
        self._pause = _FIRST_PAUSE_SECONDS
        self._timer: threading.Timer | None = None
        self._worker = threading.Thread(target=self._work, name=f"answers of {name}", daemon=True)

    def start(self) -> None:
        """Dials, and answers from now on."""
        self._worker.start()
        self.transport.dial(self.address, self)

    def close(self) -> None:
        """Ends the connection, after the answer under way."""
        with self._changed:
            self._closing = True
            if self._timer is not None:
                self._timer.cancel()
            stream = self._stream
            self._changed.notify_all()
        self.interrupt()
        if stream is not None:
            stream.close()
        if self._worker.is_alive() and threading.current_thread() is not self._worker:
            self._worker.join()

    @property
    def joined(self) -> bool:
        """Whether the parent has let it in."""
        return self._stream is not None and self.welcome.is_set()

    @property
    def busy_seconds(self) -> float:
        """Since when it is at work on a question; 0: it waits for one."""
        return time.monotonic() - self._since if self._now else 0.0

    def move(self, name: str, address: str) -> None:
        """Another parent from now on."""
        with self._changed:
            if address == self.address:
                return
            self._say(logging.INFO, "moved", f"goes to {name} at {address}")
            self.address, self._pause = address, _FIRST_PAUSE_SECONDS

    # called by the transport

    def opened(self, stream: Stream) -> None:
        with self._changed:
            self._stream, self._nonce = stream, os.urandom(16).hex()
        stream.send(pack({**self.hello(), "nonce": self._nonce}))

    def received(self, stream: Stream, frame: bytes) -> None:
        try:
            header = peek(frame)
        except InputError as err:
            self._say(logging.WARNING, "rejected", f"refused a frame of the parent: {err}")
            stream.close()
            return
        kind = header.get("kind")
        if kind == "welcome":
            why = "" if self.doubting is None else self.doubting.doubts(header, self._nonce)
            if why:
                self._leave(stream, why)
                return
            self._pause = _FIRST_PAUSE_SECONDS
            self.welcome.set()
            self._say(logging.INFO, "joined", f"joined {self.address}")
        elif kind == "refused":
            self._refused(header)
        elif not self.welcome.is_set():
            self._leave(stream, f"its first frame is {kind!r}, wanted 'welcome'")
        elif kind == "news":
            if self.doubting is not None:
                self.doubting.learn(header)
            self.review()
        else:
            self._asked(stream, _Question(str(header.get("id")), frame))

    def review(self) -> None:
        """Asks again whether the parent is to be believed: its certificate may have been revoked."""
        stream, why = self._stream, "" if self.doubting is None else self.doubting.trouble()
        if why and stream is not None and self.welcome.is_set():
            self._leave(stream, why)

    def _leave(self, stream: Stream, why: str) -> None:
        self._say(logging.WARNING, "refused", f"refused the parent at {self.address}: {why}")
        self.welcome.clear()
        stream.close()

    def _asked(self, stream: Stream, question: _Question) -> None:
        with self._changed:
            if question.ident == self._now:
                return
            if question.ident == self._last[0]:
                stream.send(self._last[1])
                return
            self._next = question
            self._changed.notify_all()
        self.interrupt()

    def _refused(self, header: Header) -> None:
        reason = str(header.get("reason", "no reason given"))
        if "address" in header:
            self.move(str(header.get("parent")), str(header["address"]))
        elif header.get("final"):
            self._fail(InputError(f"{self.name} was refused by its parent at {self.address}: {reason}"))
        else:
            self._say(logging.WARNING, "refused", f"refused by {self.address}: {reason}")

    def closed(self, stream: Stream | None, why: str) -> None:
        with self._changed:
            if stream is not None and stream is not self._stream:
                return
            self._stream = None
            self.welcome.clear()
            if self._closing or self.done.is_set():
                return
            pause = self._pause * (0.75 + os.urandom(1)[0] / 512)  # so that children do not come all at once
            self._pause = min(2 * self._pause, self.longest)
            self._say(logging.INFO, "gone", f"no connection to {self.address} ({why}); again in {pause:.1f} s")
            self._timer = threading.Timer(pause, self._again)
            self._timer.daemon = True
            self._timer.start()

    def _again(self) -> None:
        if not self._closing:
            self.transport.dial(self.address, self)

    # the thread of answers

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._next is None and not self._closing:
                    self._changed.wait()
                if self._closing or self._next is None:
                    return
                question, self._next = self._next, None
                self._now, self._since = question.ident, time.monotonic()
            self._one(question)

    def _one(self, question: _Question) -> None:
        reply = None
        try:
            frame = unpack(question.data)
            try:
                reply = self.answer(frame, lambda: self._next is None and not self._closing)
            except InputError as err:
                anew, round_ = isinstance(err, AnewError), frame.header.get("round")
                self._say(logging.INFO if anew else logging.ERROR, "failed", str(err), round_)
                about = {"id": question.ident, "round": round_, "reason": str(err), "fresh": anew}
                reply = pack({"kind": "failed", **about})
        except Superseded:
            self._say(logging.INFO, "left", "the question under way is old; left it")
        except InputError as err:
            self._say(logging.WARNING, "rejected", f"refused a frame of the parent: {err}")
        except BaseException as err:
            self._fail(err)
        with self._changed:
            self._now = ""
            if reply is not None:
                self._last = (question.ident, reply)
                if self._stream is not None:
                    self._stream.send(reply)

    def _say(self, level: int, what: str, text: str, round_: object = None) -> None:
        """A log line. :param round_: from 0, of the question that it is about"""
        more = {"round": round_ + 1} if isinstance(round_, int) else {}
        _LOG.log(level, "%s: %s", self.name, text, extra=event(what, node=self.name, **more))

    def _fail(self, why: BaseException) -> None:
        self.failure = self.failure or why
        self.done.set()
