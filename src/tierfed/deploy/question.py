"""Questions of a parent and replies of children, as frames: who is meant, what they get, what they have said.

A question names the level and the nodes that it is for. Whoever is above that level hands it on, so a server that
needs every message reaches devices through relays, and what is common to many crosses each link once.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tierfed.deploy.frame import Frame, Header, pack
from tierfed.deploy.journal import Lineage
from tierfed.engine.node import Reply
from tierfed.errors import InputError
from tierfed.tree import Tree

ALL = "all"  # the name of a message that is for everybody
_BOOT = os.urandom(6).hex()
_NUMBERS = itertools.count()


def ident() -> str:
    """What a question is called; no other one, of this process or another, has the same name."""
    return f"{_BOOT}-{next(_NUMBERS)}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """:param kind: "ask": a visit; "score": an evaluation; "rows", "tree", "end": see `tierfed.deploy.nodes`
    :param level: of those who answer
    :param to: node of the level -> what the parent counts on
    :param asks: node -> digest of its message, for a visit
    :param messages: node -> message, or `ALL` -> the one message of all
    :param more: further entries of the header
    :param extra: further trees, for everybody
    """

    kind: str
    run: str
    round: int
    tick: int = 0
    level: int = 0
    to: dict[int, Lineage] = field(default_factory=dict)
    asks: dict[int, str] = field(default_factory=dict)
    messages: dict[str, Tree] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Tree] = field(default_factory=dict)

    def of(self, node: int) -> Tree:
        """The message for a node."""
        found: Tree = self.messages[ALL if ALL in self.messages else str(node)]
        return found

    def part(self, nodes: Iterable[int]) -> "Question":
        """The same for some of the nodes."""
        some = set(nodes)
        known = {k: m for k, m in self.messages.items() if k == ALL or int(k) in some}
        return Question(
            kind=self.kind,
            run=self.run,
            round=self.round,
            tick=self.tick,
            level=self.level,
            to={i: v for i, v in self.to.items() if i in some},
            asks={i: a for i, a in self.asks.items() if i in some},
            messages=known,
            more=self.more,
            extra=self.extra,
        )

    def split(self, over: Callable[[int], int]) -> dict[int, "Question"]:
        """The part of each child. :param over: the child that a node is, or is below"""
        groups: dict[int, list[int]] = {}
        for node in self.to:
            groups.setdefault(over(node), []).append(node)
        return {child: self.part(nodes) for child, nodes in groups.items()}

    def frame(self, name: str) -> bytes:
        """:param name: see `ident`"""
        header: Header = {
            "kind": self.kind,
            "id": name,
            "run": self.run,
            "round": self.round,
            "tick": self.tick,
            "level": self.level,
            "to": [[i, v.known, list(v.open), v.heard, self.asks.get(i, "")] for i, v in self.to.items()],
            "more": self.more,
        }
        return pack(header, {"messages": self.messages, "extra": self.extra})


def question(frame: Frame) -> Question:
    """The inverse of `Question.frame`.

    :raises InputError: it is none
    """
    h = frame.header
    try:
        to = {int(i): Lineage(known, tuple(open_), bool(heard)) for i, known, open_, heard, _ in h["to"]}
        asks = {int(i): str(ask) for i, _, _, _, ask in h["to"]}
        tree = frame.tree
        return Question(
            kind=frame.kind,
            run=str(h["run"]),
            round=int(h["round"]),
            tick=int(h["tick"]),
            level=int(h["level"]),
            to=to,
            asks=asks,
            messages=tree["messages"],
            more=dict(h["more"]),
            extra=tree["extra"],
        )
    except (KeyError, TypeError, ValueError) as err:
        raise InputError(f"the frame {frame.kind!r} is no question: {type(err).__name__} {err}") from None


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Of one or several nodes.

    :param replies: node -> its reply; none: nobody below it was heard
    :param versions: node -> the version that its visit led to
    :param trees: other trees by name
    :param notes: what else there is to tell, for the header; see `merge`
    :param missing: node -> why it has not answered
    """

    replies: dict[int, Reply | None] = field(default_factory=dict)
    versions: dict[int, str] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)
    notes: dict[str, list[Any]] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)

    def header(self) -> Header:
        """All but the tensors."""
        said = [
            [i, self.versions.get(i, ""), None if r is None else r.counts.tolist()] for i, r in self.replies.items()
        ]
        return {"from": said, "notes": self.notes, "missing": [[i, why] for i, why in self.missing.items()]}

    def tree(self) -> Tree:
        """The tensors."""
        ups = {str(i): r.message for i, r in self.replies.items() if r is not None}
        return {"ups": ups, "trees": self.trees}


def reply_frame(about: Frame, answer: tuple[Header, Tree]) -> bytes:
    """The frame of an answer (`Answers.header`, `Answers.tree`) to a question."""
    header, tree = answer
    return pack({"kind": "reply", "id": about.header["id"], "round": about.header["round"], **header}, tree)


def answers(frame: Frame) -> Answers:
    """What a reply says.

    :raises InputError: it is none
    """
    h, tree = frame.header, frame.tree
    try:
        replies, versions = dict[int, Reply | None](), dict[int, str]()
        for node, version, counts in h["from"]:
            i, numbers = int(node), None if counts is None else np.array(counts, np.float64)
            if numbers is not None and (numbers.shape != (3,) or not np.isfinite(numbers).all() or (numbers < 0).any()):
                raise ValueError(f"counts {counts}")
            replies[i] = None if numbers is None else Reply(tree["ups"][str(i)], numbers)
            versions[i] = str(version)
        missing = {int(i): str(why) for i, why in h["missing"]}
        notes = {str(k): list(v) for k, v in h["notes"].items()}
        return Answers(replies=replies, versions=versions, trees=tree["trees"], notes=notes, missing=missing)
    except (KeyError, TypeError, ValueError) as err:
        raise InputError(f"the frame is no reply: {type(err).__name__} {err}") from None


def merge(parts: Iterable[Answers], missing: Mapping[int, str]) -> Answers:
    """Answers of different nodes as one. :param missing: further ones"""
    out = Answers(missing=dict(missing))
    for part in parts:
        out.replies.update(part.replies)
        out.versions.update(part.versions)
        out.trees.update(part.trees)
        out.missing.update(part.missing)
        for name, entries in part.notes.items():
            out.notes.setdefault(name, []).extend(entries)
    return out
