"""Settings of a run whose nodes are processes: where they are, how long they wait, what they refuse."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge, Gt, Le

from tierfed.settings import Count, Natural, NonNegative, Positive

T = TypeVar("T")
Part = Annotated[float, Gt(0), Le(1)]
Port = Annotated[int, Ge(1), Le(65_535)]


@dataclass(frozen=True, kw_only=True)
class DeploySettings:
    """The processes of `tierfed cloud`, `fog`, `device` and `up`. May differ from machine to machine, unlike the rest
    of a config. A list or one value: per link level from the cloud down, or the same for all."""

    host: str = "127.0.0.1"
    """Where inner nodes are that `addresses` does not name."""
    port: Port = 7400
    """Of the cloud; the inner nodes follow it, level by level."""
    addresses: dict[str, str] = field(default_factory=dict)
    """Of inner nodes by name: cloud = "cloud.example:7400", fog-0 = "10.0.0.5:7401"."""
    devices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Devices with files of their own, below their fogs: fog-0 = ["ann", "bob"]; cloud = [...] without fogs. Nobody
    has all data then; data.path is a file on each device's machine, {name} in it its name. Empty: those of [data]."""
    shape: tuple[Count, ...] = ()
    """Of one sample, with `devices`."""
    classes: Natural = 0
    """How many labels there are, with `devices`; 0: a regression."""
    folder: str | None = None
    """Where fogs and devices keep their states, a folder each; none: the run folder with ".nodes" behind it."""
    deadline_seconds: Positive | tuple[Positive, ...] | None = None
    """How long a parent waits for replies; who comes later was not heard. None: until all have come."""
    quorum: Count | Part | tuple[Count | Part, ...] = 1.0
    """How many of the polled children must be heard by the deadline: a share (1.0 = all) or a number."""
    over_selection: NonNegative | tuple[NonNegative, ...] = 0.0
    """So much more than topology.participation says is polled (0.2: a fifth), and the first replies are taken."""
    max_message_bytes: Count = 1 << 28
    """Of one message with its header; larger ones are refused before they are read."""
    norm_bound: Positive | None = None
    """Largest norm of what a reply changes in what was sent; a reply beyond it is refused. None: any."""
    max_children: Count = 10_000
    """Connections that a parent has at the same time."""
    messages_per_second: Positive = 100.0
    """Of one child, on average over ten seconds; who sends more is cut off."""
    roaming: bool = False
    """Whether devices may join other parents than the one that the tree begins with, as re-clustering asks for."""
    keepalive_seconds: Positive = 20.0
    """How often an idle connection is tried; a peer that does not answer for as long is gone."""
    retry_seconds: Positive = 10.0
    """Longest pause before a child dials its parent again; the first one is a quarter of a second."""
    log: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object a line."""
    metrics: str = ""
    """Address of a Prometheus endpoint: "127.0.0.1:9400", or a port on this machine alone; "": none."""
    devices_per_process: Natural = 10
    """Of `tierfed up`; 0: all devices of a fog."""

    def deadline(self, link: int) -> float | None:
        """Seconds of a link level, 0 = below the cloud."""
        return _at(self.deadline_seconds, link)

    def needed(self, link: int, polled: int) -> int:
        """How many of so many children must be heard."""
        quorum = _at(self.quorum, link)
        return min(polled, quorum) if isinstance(quorum, int) else max(1, -int(-quorum * polled // 1))

    def more(self, link: int) -> float:
        """The over-selection of a link level."""
        return _at(self.over_selection, link)


def _at(value: T | Sequence[T], link: int) -> T:
    """The value for a link level; the last one of a list holds for all deeper links."""
    return value[min(link, len(value) - 1)] if isinstance(value, tuple) else value  # type: ignore[return-value]
