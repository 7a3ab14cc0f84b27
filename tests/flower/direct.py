"""Flower's grid by direct calls: real apps and messages, which are taken apart and put together again as on a link."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


@dataclass
class Supernode:
    """A device, with what its process keeps in memory."""

    app: ClientApp
    config: dict[str, Any]
    run_config: dict[str, Any] = field(default_factory=dict)
    state: RecordDict = field(default_factory=RecordDict)

    def context(self, node: int) -> Context:
        return Context(1, node, self.config, self.state, self.run_config)


def across(message: Message) -> Message:
    """The message as its receiver sees it."""
    contents = {k: obj.deflate() for k, obj in get_all_nested_objects(message).items()}
    out = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(out, Message)
    out.metadata.__dict__["_message_id"] = message.metadata.message_id
    return out


class Direct(Grid):
    """A superlink and its supernodes.

    :param lost: of (node, message): "" it works, "away": the message gets nowhere, "lost": the reply does not
    """

    def __init__(self, nodes: dict[int, Supernode], lost: Callable[[int, Message], str] = lambda *_: "") -> None:
        self.nodes, self.lost = nodes, lost
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as in the process of a server app
        self.waiting: dict[str, Message] = {}
        self.counts: list[tuple[int, str]] = []  # node, kind of every message

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(message.metadata.__dict__.setdefault("_id", uuid4().hex))
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [r for i in message_ids if i in self.waiting and (r := self.replied(self.waiting.pop(i)))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def replied(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        fate = self.lost(node, message)
        self.counts.append((node, message.metadata.message_type))
        if fate == "away" or node not in self.nodes:
            return None
        try:
            reply = self.nodes[node].app(across(message), self.nodes[node].context(node))
        except Exception as err:
            reply = Message(Error(code=2, reason=f"{type(err)}:<'{err}'>"), reply_to=message)
        return None if fate == "lost" else across(reply)
