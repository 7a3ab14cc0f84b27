"""The supernodes behind Flower's grid, by the device that each of them is."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from tierfed.errors import InputError, nearest
from tierfed.flower.common import Settled, card, differs
from tierfed.flower.records import packed, said_by
from tierfed.setup import World

log = logging.getLogger("flwr")
_PAUSE_SECONDS = 0.25  # between two looks for replies
_MOST_NAMED = 8
_MOST_ASKED = 3  # times that a supernode is asked who it is without an answer


@dataclass(kw_only=True, eq=False)
class Fleet:
    """Who is there, and what they answer.

    :param wait_seconds: how long supernodes have to appear, and to say who they are
    :param reply_seconds: how long they have to answer
    """

    grid: Grid
    world: World
    settled: Settled
    wait_seconds: float
    reply_seconds: float
    nodes: dict[int, int] = field(default_factory=dict)  # device -> supernode
    asked: Counter[int] = field(default_factory=Counter)  # how often each supernode was asked who it is
    why: dict[int, str] = field(default_factory=dict)  # device -> why it was not heard the last time

    def gather(self) -> None:
        """Waits for the supernodes of all devices.

        :raises InputError: in time there is none at all
        """
        end = time.monotonic() + self.wait_seconds
        while True:
            self.meet()
            missing = [i for i in range(len(self.world.federation)) if i not in self.nodes]
            if not missing or time.monotonic() >= end:
                break
            time.sleep(4 * _PAUSE_SECONDS)
        if not self.nodes:
            raise InputError(
                f"no supernode of the {len(missing)} devices ({self.named(missing)}) is there after "
                f"{self.wait_seconds:g} seconds; start them, flower-supernode --node-config 'device=\"NAME\"', or see "
                "above why they were refused"
            )
        if missing:
            log.warning("tierfed begins without %s", self.named(missing))

    def meet(self) -> None:
        """Asks supernodes that are new who they are; one that comes back takes its device's place again.

        :raises InputError: two say that they are the same device
        """
        new = [int(n) for n in self.grid.get_node_ids() if self.asked[int(n)] < _MOST_ASKED]
        found = dict[int, int]()
        asked = {n: packed({}, {}) for n in new}
        self.asked.update(new)
        for node, reply in self._exchange(MessageType.QUERY, asked, "who", self.wait_seconds).items():
            self.asked[node] = _MOST_ASKED  # it has said what it is
            try:
                device = self._whose(reply)
            except InputError as err:
                log.warning("tierfed refuses supernode %s: %s", node, err)
                continue
            if device in found:
                raise InputError(
                    f"two supernodes, {found[device]} and {node}, are device {self.named([device])}; give "
                    "each a device of its own in its node config"
                )
            found[device] = node
        self.nodes |= found

    def _whose(self, reply: Message) -> int:
        """The device of a supernode that says who it is.

        :raises InputError: there is none, or it runs something else than this server
        """
        if reply.has_error():
            raise InputError(reply.error.reason or f"error {reply.error.code}")
        theirs, names = said_by(reply.content), self.world.federation.devices
        name = str(theirs.get("device"))
        if name not in names:
            raise InputError(f"it says that it is {name!r}, which is no device of this run; {nearest(name, names)}")
        device = names.index(name)
        wrong = differs(card(self.world, self.settled, device), theirs)
        if wrong:
            raise InputError(f"device {name!r}: {wrong}")
        return device

    def ask(self, kind: str, orders: Mapping[int, RecordDict], round_: int) -> dict[int, RecordDict]:
        """What devices answer; whoever is not there, fails or takes too long is left out.

        :param orders: by device
        """
        self.meet()
        there = {self.nodes[i]: i for i in orders if i in self.nodes}
        self.why = {i: "no supernode" if i not in self.nodes else "no answer" for i in orders}
        contents = {n: orders[i] for n, i in there.items()}
        replies = self._exchange(kind, contents, str(round_ + 1), self.reply_seconds)
        out = {}
        for node, reply in replies.items():
            if reply.has_error():
                self.why[there[node]] = reply.error.reason or f"error {reply.error.code}"
            else:
                out[there[node]] = reply.content
                del self.why[there[node]]
        if self.why:
            log.warning("tierfed, round %d: not heard: %s", round_ + 1, self.named(self.why))
        return out

    def nobody(self, round_: int) -> InputError:
        """What to say when nobody has answered."""
        return InputError(
            f"round {round_ + 1}: nobody has answered within {self.reply_seconds:g} seconds: {self.named(self.why)}; "
            "see the logs of their supernodes, then go on: `flwr run` with the same run.out"
        )

    def named(self, devices: Iterable[int]) -> str:
        """Devices for a message, with what is known of why they are silent."""
        names = self.world.federation.devices
        known = [f"{names[i]!r}" + (f" ({self.why[i]})" if self.why.get(i) else "") for i in devices]
        return ", ".join(known[:_MOST_NAMED]) + (
            f" and {len(known) - _MOST_NAMED} more" if len(known) > _MOST_NAMED else ""
        )

    def _exchange(
        self, kind: str, contents: Mapping[int, RecordDict], group: str, seconds: float
    ) -> dict[int, Message]:
        """Replies by supernode, of those that come in time. As `Grid.send_and_receive`, which looks every 3 seconds."""
        if not contents:
            return {}
        messages = [Message(c, dst_node_id=n, message_type=kind, group_id=group) for n, c in contents.items()]
        ids = list(self.grid.push_messages(messages))
        if len(ids) != len(messages):
            raise InputError(f"Flower has taken {len(ids)} of {len(messages)} messages; the log above says why")
        waiting: dict[Any, int] = {i: n for i, n in zip(ids, contents, strict=True) if i}
        out: dict[int, Message] = {}
        end = time.monotonic() + seconds
        while waiting:
            for reply in self.grid.pull_messages(list(waiting)):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    out[node] = reply
            if not waiting or time.monotonic() >= end:
                break
            time.sleep(_PAUSE_SECONDS)
        return out
