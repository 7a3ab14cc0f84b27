"""What a step or a rule is asked about before a run: does it go with the algorithm and the tree?"""

from dataclasses import dataclass
from typing import Any

from tierfed.links.attacks import Attack
from tierfed.links.link import OWED, Link, Rule, Step
from tierfed.tree import SEPARATOR, Tree, flatten, leaves


@dataclass(frozen=True, kw_only=True)
class Case:
    """One level of links of a run.

    :param algorithm: its name
    :param depth: of the parents
    :param tier: what the parents do, a `tierfed.algorithm.Tier`
    :param levels: names of the levels of the tree, cloud first
    :param children: that a parent polls at least
    :param sent: what a device gets in the first round; :param reply: what it says, of which :param change: and
        :param rest: are the parts
    :param unit: what replies are weighed by; :param relays: by depth, who hands on what it hears
    :param inside: both ends are in one machine; :param split: edges hold a part of the devices' model
    :param attack: of the children
    """

    algorithm: str
    link: Link
    depth: int
    tier: Any
    levels: tuple[str, ...]
    children: int
    sent: Tree
    reply: Tree
    change: Tree
    rest: Tree
    unit: str = "samples"
    relays: tuple[bool, ...] = ()
    inside: bool = False
    split: bool = False
    attack: Attack | None = None

    @property
    def parent(self) -> str:
        """What a parent is called."""
        return self.levels[self.depth]

    @property
    def owes(self) -> bool:
        """Whether replies hold increments that must not be lost."""
        return OWED in self.reply

    @property
    def open(self) -> str:
        """What a reply holds beside its change, in words; empty: nothing."""
        paths = [p.replace(SEPARATOR, ".") for p in flatten(self.rest) if not p.endswith(SEPARATOR)]
        return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")

    def refused(self) -> str:
        """Why the run cannot be; empty: it can."""
        if "mask" in self.reply:
            return (
                f"what {self.algorithm} sends up is a part of what it was sent, with zeros in the place of the rest; "
                "it is no change, and only a sum of it says something"
            )
        return self._unlinked() or self._unreduced() or next(filter(None, self._own()), "")

    def _own(self) -> list[str]:
        asked: list[Step | Rule] = [*self.link.steps, *([] if self.link.rule is None else [self.link.rule])]
        return [one.refuses(self) for one in asked]

    def _unlinked(self) -> str:
        if not self.link.steps and self.attack is None:
            return ""
        if self.tier.reduce == "chain":
            return f"with {self.algorithm} a sum goes from device to device, and nobody sends its own reply to a parent"
        if any(True for _ in leaves(self.reply)) and not any(True for _ in leaves(self.change)):
            return f"{self.algorithm} sends nothing up that is a change of what was sent down"
        if self.split and self.depth == len(self.levels) - 2:
            return (
                "offload.mode = 'split' leaves parts of a device's model with its edge, so it has no change of its own"
            )
        return ""

    def _unreduced(self) -> str:
        if self.link.rule is None:
            return ""
        if self.tier.reduce == "chain":
            return (
                f"with {self.algorithm} a sum goes from device to device, so a {self.parent} hears nothing but the sum"
            )
        if self.tier.reduce != "mean":
            return (
                f"with {self.algorithm} a {self.parent} takes no mean of what it hears: it weighs every child by "
                "numbers of its own"
            )
        return ""
