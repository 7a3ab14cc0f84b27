"""What a device remembers between messages: its private state before and after its last visit, and what it owes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from flwr.app import ConfigRecord, Context

from tierfed.errors import InputError
from tierfed.flower.records import framed, tree_of
from tierfed.store import DiskStore
from tierfed.tree import Tree

At = tuple[int, int]  # round, tick
_TREES = ("before", "own", "pending", "owed")


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A visit that was made. `before` and `pending` let a server that has lost it ask for it again."""

    at: At
    before: Tree = field(default_factory=dict)
    own: Tree = field(default_factory=dict)
    pending: Tree = field(default_factory=dict)
    """What the device owed before it."""
    owed: Tree = field(default_factory=dict)
    """Increments that the server may not have heard."""

    def next(self, at: At, heard: At) -> tuple[Tree, Tree]:
        """(private state, what is owed) that a visit begins with.

        :param heard: the last visit of this device that the server has heard
        :raises InputError: the device has gone on since
        """
        if at < self.at:
            raise InputError(f"asked for round {at[0] + 1}, but the device has made round {self.at[0] + 1} already")
        if at == self.at:
            return self.before, self.pending
        return self.own, {} if heard == self.at else self.owed

    @property
    def trees(self) -> dict[str, Tree]:
        """What is kept of it beside `at`."""
        return {name: getattr(self, name) for name in _TREES}


class Memory(Protocol):
    """Where the last visit is kept."""

    def load(self, run: str) -> Visit | None:
        """The last visit of a run; None: there was none, or it is forgotten."""

    def save(self, run: str, visit: Visit) -> None:
        """Keeps a visit in the place of the former one, before its reply leaves."""


class InContext:
    """In Flower's context: lives as long as the supernode's process.

    :param device: where tensors should live
    """

    def __init__(self, context: Context, device: Any = "cpu") -> None:
        self.state, self.device = context.state, device

    def load(self, run: str) -> Visit | None:
        about = self.state.config_records.get("tierfed", {})
        if about.get("run") != run:
            return None
        trees = tree_of(self.state, "tierfed-visit", self.device)
        return Visit(at=(int(about["round"]), int(about["tick"])), **{k: trees.get(k, {}) for k in _TREES})

    def save(self, run: str, visit: Visit) -> None:
        self.state["tierfed"] = ConfigRecord({"run": run, "round": visit.at[0], "tick": visit.at[1]})
        self.state["tierfed-visit"] = framed({k: t for k, t in visit.trees.items() if t})


class InFolder:
    """In a folder of the device's own, one transaction a visit: survives the supernode, and its machine."""

    def __init__(self, folder: Path | str, name: str, device: Any = "cpu") -> None:
        self.path, self.device = Path(folder) / quote(name, safe=""), device

    def load(self, run: str) -> Visit | None:
        store = DiskStore(self.path, self.device)
        try:
            if store.meta.get("run") != run:
                return None
            at = int(store.meta["round"]), int(store.meta["tick"])
            return Visit(at=at, **{k: store.get(k, 0) or {} for k in _TREES})
        finally:
            store.close()

    def save(self, run: str, visit: Visit) -> None:
        store = DiskStore(self.path, self.device)
        try:
            for name, tree in visit.trees.items():
                store.put(name, 0, tree or None)
            store.commit({"run": run, "round": visit.at[0], "tick": visit.at[1]}, [])
        finally:
            store.close()
