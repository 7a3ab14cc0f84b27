"""What happens to a reply between a child and its parent, and what the parent makes of all of them.

A reply is parted into its *change* (what can be told from the message it answers, and increments that are owed) and the
*rest* (losses, counts, choices), which always travels as it is. The steps of a link are what a child does to the change
before it sends it; the rule is what the parent does in the place of the weighted mean. Both are pure: what a child
keeps between its visits (a residual) and what a parent keeps (a bound) is handed in and out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from tierfed.links.attacks import Attack
from tierfed.rng import Purpose
from tierfed.tree import SEPARATOR, Tree, flatten, unflatten

if TYPE_CHECKING:
    from tierfed.links.case import Case

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
CHANGE, REST, OWED, TOLD = "change", "rest", "owed", "told"


class At(NamedTuple):
    """Where and when: whose random numbers are drawn, and what is known on both ends of a link.

    :param level: of the child, 1 below the cloud; for a rule of the children
    :param node: the child; for a rule the parent
    :param weight: what the reply counts for, in the unit of its parent
    :param room: entries that a change can have at most; 0: any number
    :param told: what the parent has told all its children with the message, see `Rule.tell`
    """

    seed: int
    level: int
    node: int
    round: int
    tick: int
    weight: float = 1.0
    told: Tree = {}
    room: int = 0

    def key(self, purpose: Purpose, *more: int) -> tuple[int, ...]:
        """A key for `tierfed.rng`."""
        return (self.seed, purpose, self.level, self.node, self.round, self.tick, *more)


class Step(Protocol):
    """One thing that a child does to a change before it leaves. Pure.

    `send` and `receive` may see an empty change, and must not fail then.
    """

    @property
    def name(self) -> str:
        """Under which the child keeps its memory."""

    @property
    def joint(self) -> bool:
        """Whether nobody can make anything of one reply alone: the rule gets what has travelled."""

    @property
    def shows(self) -> str:
        """In which form the parent sees a change, for the table of who sees what: "top 1 %", "noised", "masked"."""

    def refuses(self, case: "Case") -> str:
        """Why it does not go with a run; empty: it does."""

    def send(self, change: Tree, memory: Tree, at: At) -> tuple[Tree, Tree]:
        """(what travels, what the child keeps until its next visit; empty: nothing)

        :param memory: what it has kept; empty at first
        """

    def receive(self, wire: Tree, at: At) -> Tree:
        """What the parent makes of it.

        :raises InputError: it is nothing that this step has sent
        """


class Joint(Step, Protocol):
    """A step of whose replies only a sum is known."""

    def overhead(self, polled: int) -> tuple[int, int]:
        """Bytes, down and up, that a sum of so many children takes of each of them beside messages and replies."""

    def needed(self, polled: int) -> int:
        """Of how many of them replies must be heard; of fewer there is no sum."""


class Heard(NamedTuple):
    """The replies of one burst, in the order of the children.

    :param replies: as they arrived; of a joint link as they travelled
    :param sent: the messages that they answer
    :param weights: [H] what every reply counts for
    :param kids: [H] those who were heard; :param polled: all who were asked
    :param whole: see `Links`
    """

    replies: list[Tree]
    sent: list[Tree]
    weights: Weights
    kids: Ids
    polled: Ids
    whole: frozenset[str] = frozenset()


class Rule(Protocol):
    """What a parent makes of replies in the place of their weighted mean. Pure."""

    @property
    def shows(self) -> str:
        """What goes up in the place of a mean, for the table of who sees what; empty: a mean."""

    def refuses(self, case: "Case") -> str:
        """Why it does not go with a run; empty: it does."""

    def tell(self, memory: Tree, polled: Ids, at: At) -> Tree:
        """What all polled children are told with the message, counted as part of it; empty: nothing."""

    def reduce(self, heard: Heard, memory: Tree, at: At) -> tuple[Tree, Tree]:
        """(what the tier absorbs, shaped like a reply; what the parent keeps until the next burst)

        :param memory: what it has kept; empty at first
        """


@dataclass(frozen=True, kw_only=True)
class Link:
    """One level of links. :param steps: of the child, in their order; :param rule: of the parent; none: the mean"""

    steps: tuple[Step, ...] = ()
    rule: Rule | None = None

    @property
    def joint(self) -> bool:
        return any(step.joint for step in self.steps)

    def overhead(self, polled: int) -> tuple[int, int]:
        """What joint steps take of a child's link, down and up, beside messages and replies."""
        each = [cast("Joint", step).overhead(polled) for step in self.steps if step.joint]
        return sum(down for down, _ in each), sum(up for _, up in each)

    def needed(self, polled: int) -> int:
        """Replies that it takes to make anything of them."""
        return max((cast("Joint", step).needed(polled) for step in self.steps if step.joint), default=0)


PLAIN = Link()


@dataclass(frozen=True, kw_only=True)
class Links:
    """All links of a tree.

    :param below: one for each depth, from the cloud down; none at all: plain ones
    :param whole: names of entries that are no part of a change: statistics of batch norms, which are no longer any
        when parts of their changes come late
    """

    below: tuple[Link, ...] = ()
    attack: Attack | None = None
    whole: frozenset[str] = frozenset()

    def at(self, depth: int) -> Link:
        """The links below the nodes of a depth."""
        return self.below[depth] if self.below else PLAIN

    def above(self, level: int) -> Link:
        """The link that a node of a level sends on."""
        return self.at(level - 1)

    def attacks(self, level: int, node: int) -> bool:
        """Whether the replies of a node are those of an attacker."""
        return self.attack is not None and self.attack.attacks(level, node)

    def changes(self, level: int) -> bool:
        """Whether replies of a level may be other than their senders made them."""
        return bool(self.above(level).steps) or (self.attack is not None and self.attack.level == level)


NONE = Links()


def parted(sent: Tree, reply: Tree, whole: frozenset[str] = frozenset()) -> tuple[Tree, Tree]:
    """(change, rest): of every floating entry that was sent in the same shape the difference, what is owed as it is.

    :param whole: see `Links`
    """
    before, change, rest = flatten(sent), Tree(), Tree()
    for path, t in flatten(reply).items():
        known = before.get(path)
        if not t.is_floating_point() or path.rpartition(SEPARATOR)[2] in whole | {""}:
            rest[path] = t
        elif path.startswith(OWED + SEPARATOR):
            change[path] = t
        elif known is not None and known.shape == t.shape:
            change[path] = t - known
        else:
            rest[path] = t
    return unflatten(change), unflatten(rest)


def rejoined(sent: Tree, change: Tree, rest: Tree) -> Tree:
    """The inverse of `parted`."""
    before = flatten(sent)
    moved = {p: t if p.startswith(OWED + SEPARATOR) else before[p] + t for p, t in flatten(change).items()}
    return unflatten({**moved, **flatten(rest)})


def leaving(links: Links, sent: Tree, reply: Tree, memory: Tree, at: At) -> tuple[Tree, Tree]:
    """(what travels in the place of a reply, what its sender keeps until the next one)"""
    link, attacker = links.above(at.level), links.attacks(at.level, at.node)
    if not link.steps and not attacker:
        return reply, {}
    change, rest = parted(sent, reply, links.whole)
    if attacker and links.attack is not None:
        change = links.attack.change(change, at.key(Purpose.ATTACK))
    if not link.steps:
        return rejoined(sent, change, rest), {}
    kept = {}
    for step in link.steps:
        change, new = step.send(change, memory.get(step.name, {}), at)
        if new:
            kept[step.name] = new
    return {CHANGE: change, REST: rest}, kept


def arriving(links: Links, sent: Tree, wire: Tree, at: At) -> Tree:
    """The reply that a parent makes of what has travelled; of a joint link it is left as it is.

    :raises InputError: it is nothing that such a link carries
    """
    link = links.above(at.level)
    if not link.steps or link.joint:
        return wire
    change = wire.get(CHANGE, {})
    for step in reversed(link.steps):
        change = step.receive(change, at)
    return rejoined(sent, change, wire.get(REST, {}))


def same_order(changes: Sequence[Tree]) -> list[Tree]:
    """Trees with their keys in the order of the first, so that vectors of them can be compared."""
    order = list(flatten(changes[0]))
    return [{p: flat[p] for p in order} for flat in map(flatten, changes)]
