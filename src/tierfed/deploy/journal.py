"""What a fog or a device keeps, by versions: a visit can be taken back until the cloud has committed its round.

A visit is a function of the node's state and the message. So a version is the hash of the version before and the
message, and whoever has sent the messages can name the version that it counts on. Asked the same of the same version
again, a node repeats its reply; asked from an older version, it goes back to that. Visits of the present round are
kept one by one beside the state before it; the first message of a later round says that the cloud has committed, and
makes them part of the state. State, reply and log of a visit are one transaction.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from tierfed.errors import InputError
from tierfed.store import DiskStore, MemoryStore
from tierfed.tree import Tree

TABLE = "visit"
FIRST = ""  # the version of a node that was never visited
_DIGEST_BYTES = 16
_LONGEST_TRAIL = 256

Key = tuple[str, int]


def digest(*parts: bytes | str) -> str:
    """What tells one message from another, in hex."""
    h = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.hexdigest()


def after(version: str, ask: str) -> str:
    """The version that a visit leads to."""
    return digest(version, ask)


class AnewError(InputError):
    """A node has lost the tree, and must be told it before it is asked."""


class Lineage(NamedTuple):
    """Which version of a child its parent counts on.

    :param known: the last one that it was told of; none: it does not know
    :param open: what it has asked since, without an answer
    :param heard: whether the reply that led to `known` was counted
    """

    known: str | None = FIRST
    open: tuple[str, ...] = ()
    heard: bool = True


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One entry of the journal. :param gone: records that the visit has deleted"""

    number: int
    round: int
    before: str
    ask: str
    gone: list[tuple[str, int]]

    @property
    def after(self) -> str:
        return after(self.before, self.ask)


class Journal:
    """The records of one node (the protocol `tierfed.store.Records`), over a store that forgets or one on disk.

    :param anew: it takes the place of one whose state was lost, and begins in the middle of a run
    """

    def __init__(self, store: DiskStore | MemoryStore, anew: bool = False) -> None:
        self.store, self.anew = store, anew or bool(store.meta.get("anew"))
        self.version = str(store.meta.get("version", FIRST))  # of what is not in the journal any more
        self.run = str(store.meta.get("run", ""))
        self.round = int(store.meta.get("round", -1))
        self._lost = bool(store.meta.get("lost", anew))  # until a committed round counts on what this node has
        self.trail = [(str(b), str(a)) for b, a in store.meta.get("trail", [])]  # (version, message) that led to it
        self._told = True  # what the parent counts on is no older than this state
        self._named = False  # and it has said so
        self.visits = [Visit(**{**v, "gone": [tuple(k) for k in v["gone"]]}) for v in store.meta.get("visits", [])]
        self._over: dict[Key, Tree | None] = {}  # of visits that hold, above the store
        self._staged: dict[Key, Tree | None] = {}
        self._at = self.version
        self._go(self.newest())
        if anew and not store.meta:  # killed before its first visit, it is still one that has begun anew
            self._commit({}, [])

    def newest(self) -> str:
        """The version after the last visit."""
        return self.visits[-1].after if self.visits else self.version

    @property
    def fresh(self) -> bool:
        """Whether it takes a lost one's place and has not been visited yet."""
        return self.anew and not self.visits and self.version == FIRST

    def untold(self, version: str) -> bool:
        """Whether a version is that of a node which has begun anew and was told nothing yet."""
        return self._lost and version == FIRST

    def find(self, lineage: Lineage, round_: int) -> str:
        """The version that a parent counts on in a round.

        Where it does not know, or what it knows was lost, that is the state before the round: what this node has done
        in it for another parent begins again.

        :raises InputError: this node does not have it
        """
        have = {self.version, *(v.after for v in self.visits)}
        first = self.version if round_ == self.round else self.newest()
        known = first if lineage.known is None else lineage.known
        self._told, self._named = known in have, lineage.known in have
        version = self._follow(known, lineage.open)
        if version not in have and self._lost:
            version = self._follow(first, lineage.open)
        if version not in have:
            raise InputError(
                f"the parent counts on state {version[:8] or 'of the beginning'}, this node has "
                f"{', '.join(sorted(v[:8] or 'that of the beginning' for v in have))}; bring back its folder, or let "
                "it begin anew: --anew"
            )
        return version

    def _follow(self, version: str, asks: Iterable[str]) -> str:
        """The version that messages have led to, whichever of them have come."""
        steps = {*self.trail, *((v.before, v.ask) for v in self.visits)}
        for ask in asks:
            version = after(version, ask) if (version, ask) in steps else version
        return version

    def look(self, version: str) -> None:
        """The state is that of a version; for questions that change nothing."""
        self._staged = {}
        self._go(version)

    def begin(self, round_: int, version: str) -> None:
        """Before a visit in a round: the state is that of a version.

        :raises InputError: the round is over
        """
        if round_ < self.round:
            raise InputError(f"asked of round {round_}, but round {self.round} has begun")
        self._staged = {}
        if round_ > self.round:
            self._settle(version)
            self.round = round_
        self._go(version)

    def said(self, ask: str) -> tuple[dict[str, Any], Tree] | None:
        """Header and tree of the reply to a message, if this version has replied to it before."""
        for visit in self.visits:
            if (visit.before, visit.ask) == (self._at, ask):
                self._go(visit.after)
                kept = self.store.get(TABLE, visit.number) or {}
                return dict(self.store.meta["replies"][str(visit.number)]), kept["reply"]
        return None

    def commit_visit(self, ask: str, header: dict[str, Any], reply: Tree) -> str:
        """One transaction: what the visit has put, its reply, the log. The version that it led to."""
        number = max((v.number for v in self.visits), default=int(self.store.meta.get("number", 0))) + 1
        gone = [key for key, record in self._staged.items() if record is None]
        visit = Visit(number=number, round=self.round, before=self._at, ask=ask, gone=gone)
        records: dict[str, dict[str, Tree]] = {}
        for (table, ident), record in self._staged.items():
            if record is not None:
                records.setdefault(table, {})[str(ident)] = record
        self.store.put(TABLE, number, {"reply": reply, "records": records})
        replies = {**self.store.meta.get("replies", {}), str(number): header}
        self.visits.append(visit)
        self._commit(replies, [{"round": self.round, "before": visit.before, "after": visit.after}])
        self._over |= self._staged
        self._staged, self._at = {}, visit.after
        return visit.after

    def adopt(self, run: str) -> None:
        """The run that this state is of, from the first message on.

        :raises InputError: it is of another one
        """
        if self.run and self.run != run:
            raise InputError(
                f"this node holds the state of run {self.run}, its parent is at work on run {run}; take another folder "
                "(deploy.folder), or delete this one"
            )
        self.run = run

    def _commit(self, replies: dict[str, Any], log: list[Any]) -> None:
        kept = {str(v.number) for v in self.visits}
        meta = {
            "version": self.version,
            "run": self.run,
            "anew": self.anew,
            "lost": self._lost,
            "round": self.round,
            "trail": self.trail,
            "number": max((v.number for v in self.visits), default=int(self.store.meta.get("number", 0))),
            "visits": [asdict(v) for v in self.visits],
            "replies": {k: h for k, h in replies.items() if k in kept},
        }
        self.store.commit(meta, log)

    def _settle(self, version: str) -> None:
        """The visits that led to a version become part of the state, all others are forgotten; durable with the next
        commit. A parent that has not heard of them counts on what was before: they are known by name.
        """
        self._lost = self._lost and not self._named
        path = [(v.before, v.ask) for v in self._path(version)]
        self.trail = ([] if self._told else self.trail[-_LONGEST_TRAIL:]) + path
        for (table, ident), record in self._along(version):
            self.store.put(table, ident, record)
        for visit in self.visits:
            self.store.put(TABLE, visit.number, None)
        self.version, self.visits, self._over, self._at = version, [], {}, version

    def _go(self, version: str) -> None:
        if version != self._at:
            self._over, self._at = dict(self._along(version)), version

    def _path(self, version: str) -> list[Visit]:
        """The visits that led to a version, oldest first."""
        by_after = {v.after: v for v in self.visits}
        out: list[Visit] = []
        while version != self.version:
            out.append(by_after[version])
            version = out[-1].before
        return out[::-1]

    def _along(self, version: str) -> Iterator[tuple[Key, Tree | None]]:
        for visit in self._path(version):
            records = (self.store.get(TABLE, visit.number) or {})["records"]
            for table, found in records.items():
                yield from (((table, int(ident)), record) for ident, record in found.items())
            yield from ((key, None) for key in visit.gone)

    def get(self, table: str, ident: int) -> Tree | None:
        for layer in (self._staged, self._over):
            if (table, ident) in layer:
                return layer[table, ident]
        return self.store.get(table, ident)

    def put(self, table: str, ident: int, record: Tree | None) -> None:
        self._staged[table, ident] = record

    def ids(self, table: str) -> list[int]:
        found = set(self.store.ids(table))
        for layer in (self._over, self._staged):
            for (t, i), record in layer.items():
                if t == table:
                    (found.discard if record is None else found.add)(i)
        return sorted(found)

    def prefetch(self, table: str, ids: Iterable[int]) -> None:
        """A node has few records."""

    def discard(self) -> None:
        """Forgets what the visit under way has put."""
        self._staged = {}


def as_tree(lineage: Lineage) -> Tree:
    """A record of what a parent counts on."""
    codes = [_bytes(text) for text in lineage.open]
    known = {} if lineage.known is None else {"known": _bytes(lineage.known)}
    return {**known, "open": {str(i): c for i, c in enumerate(codes)}, "heard": torch.tensor(lineage.heard)}


def from_tree(record: Tree | None) -> Lineage:
    """The inverse; of a child that was never asked: its first version."""
    if record is None:
        return Lineage()
    known = _text(record["known"]) if "known" in record else None
    return Lineage(known, tuple(_text(c) for c in record["open"].values()), bool(record["heard"]))


def _bytes(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


def _text(code: torch.Tensor) -> str:
    return bytes(code.tolist()).hex()
