"""The one thing that the round protocol asks of a network: ordered streams of frames, which children open.

A transport calls back from a thread of its own, one call at a time for a stream: `opened`, any number of `received`,
`closed`. Callbacks are short; what takes long is for other threads. Sending never waits for the other side.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tierfed.deploy.identity import Identity


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who is at the other end, as far as the transport knows.

    :param address: for logs
    :param identity: what its certificate says; none: nobody vouches for it
    """

    address: str
    identity: "Identity | None" = None


class Stream(Protocol):
    """One end of a connection."""

    @property
    def peer(self) -> Peer: ...

    def send(self, frame: bytes) -> None:
        """Hands over a frame; one that cannot be sent any more is dropped, and `closed` follows."""

    def close(self) -> None:
        """Ends the connection after what was handed over."""


class Owner(Protocol):
    """Who uses the streams."""

    def opened(self, stream: Stream) -> None: ...

    def received(self, stream: Stream, frame: bytes) -> None: ...

    def closed(self, stream: Stream | None, why: str) -> None:
        """:param stream: none: it was never opened"""


class Closing(Protocol):
    """Something that can be ended."""

    def close(self) -> None: ...


class Transport(Protocol):
    """A kind of network."""

    def listen(self, address: str, owner: Owner) -> Closing:
        """Takes connections from now on.

        :raises InputError: nobody can listen there
        """

    def dial(self, address: str, owner: Owner) -> None:
        """Tries once; the owner hears of it."""

    def close(self) -> None:
        """Ends all that was begun."""
