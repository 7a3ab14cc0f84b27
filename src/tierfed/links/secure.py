"""Sums on links whose terms nobody sees: a child sends its change as masked whole numbers, its parent gets their sum.

In a simulation the words travel without their masks, which cancel in the sum anyway, so the sum has the same bits; what
the keys, shares and masks add is counted. A deployment runs `tierfed.privacy.secagg` with real keys.
"""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt, Le

from tierfed.errors import InputError
from tierfed.links.case import Case
from tierfed.links.link import CHANGE, REST, At, Heard, Ids, rejoined
from tierfed.privacy import secagg
from tierfed.privacy.fixedpoint import Fixed, Floats, Words, agreed, from_words, summed, to_words
from tierfed.settings import Positive
from tierfed.tree import Tree, flatten, unflatten

TERMS = "terms"
_KINDS = {32: torch.int32, 64: torch.int64}


@dataclass(frozen=True, kw_only=True)
class SecureSettings:
    """Secure sums of the replies on a link: the parent learns their weighted mean and nothing about one of them."""

    on: bool = False
    """Whether replies are masked."""
    threshold: Annotated[float, Gt(0), Le(1)] = 2 / 3
    """Share of the polled children that has to answer to the end, at least 2 of them; with fewer there is no sum."""
    range: Positive = 8.0
    """Largest number of a change, in absolute value; the smaller, the finer is what is sent."""
    bits: Literal[32, 64] = 32
    """Of the whole number that travels in the place of each number."""


@dataclass(frozen=True, kw_only=True)
class MaskedChange:
    """A child sends its change, times its weight, as whole numbers.

    :param weight: the most that all children of a node can weigh together
    """

    settings: SecureSettings
    weight: int
    name = "secure"
    joint = True

    @property
    def shows(self) -> str:
        return "masked"

    def refuses(self, case: Case) -> str:
        if case.open:
            return (
                f"{case.algorithm} sends {case.open} beside the change of the model, of every child by itself: a "
                f"{case.parent} would see them; take an algorithm that sends changes alone, such as fedavg"
            )
        if case.tier.watches or case.tier.sees or case.tier.reduce != "mean":
            return f"with {case.algorithm} a {case.parent} needs every child's own reply, and a secure sum hides them"
        if case.owes:
            return (
                f"{case.algorithm} counts on what was not heard being added to a later reply, and nobody can tell "
                "whose reply is missing in a secure sum; take an algorithm without such sums"
            )
        others = [s.name for s in case.link.steps if s.name not in (self.name, "privacy")]
        if others:
            return f"{others[0]} makes of a change what cannot be added up number by number; leave one of them out"
        if case.children < 2:
            return f"a {case.parent} may poll a single child, whose reply would be the sum; let more take part"
        return ""

    def fixed(self, polled: int) -> Fixed:
        """The grid that so many children agree on."""
        return grid(self.settings, polled, self.weight)

    def overhead(self, polled: int) -> tuple[int, int]:
        """Bytes, down and up, that a child's share of a sum takes beside its words."""
        return secagg.message_bytes(polled, 0, self.fixed(polled))

    def needed(self, polled: int) -> int:
        """How many replies it takes."""
        return secagg.threshold_of(self.settings.threshold, polled)

    def send(self, change: Tree, memory: Tree, at: At) -> tuple[Tree, Tree]:
        fixed = self.fixed(int(at.told[TERMS]))
        return as_tree(to_words(numbers(change), int(at.weight), fixed), change, fixed), {}

    def receive(self, wire: Tree, at: At) -> Tree:
        return wire


@dataclass(frozen=True, kw_only=True)
class SecureMean:
    """A parent takes the mean out of the sum of what its children have masked."""

    step: MaskedChange

    @property
    def shows(self) -> str:
        return "mean of a secure sum"

    def refuses(self, case: Case) -> str:
        return ""

    def tell(self, memory: Tree, polled: Ids, at: At) -> Tree:
        return {TERMS: torch.tensor(len(polled))}

    def reduce(self, heard: Heard, memory: Tree, at: At) -> tuple[Tree, Tree]:
        fixed = self.step.fixed(len(heard.polled))
        return self.mean(summed([as_words(r[CHANGE], fixed) for r in heard.replies], fixed), heard), {}

    def mean(self, total: Words, heard: Heard) -> Tree:
        """The mean as a reply, from the sum of the words of all who were heard."""
        sent, wire = heard.sent[0], heard.replies[0]
        values = from_words(total, float(heard.weights.sum()), self.step.fixed(len(heard.polled)))
        before, change, begin = flatten(sent), Tree(), 0
        for path, t in sorted(flatten(wire[CHANGE]).items()):
            part = torch.from_numpy(values[begin : begin + t.numel()]).view(t.shape)
            change[path], begin = part.to(before[path].device, before[path].dtype), begin + t.numel()
        return rejoined(sent, unflatten(change), wire[REST])


@cache
def grid(settings: SecureSettings, polled: int, weight: int) -> Fixed:
    """The finest grid of so many children."""
    return agreed(settings.bits, settings.range, polled, weight)


def numbers(change: Tree) -> Floats:
    """All numbers of a change [n], in the order of the paths."""
    parts = [t.detach().cpu().double().reshape(-1).numpy() for _, t in sorted(flatten(change).items())]
    return np.concatenate(parts) if parts else np.zeros(0)


def as_tree(words: Words, like: Tree, fixed: Fixed) -> Tree:
    """Words [n] as tensors shaped like a change; the bits are theirs, signed."""
    out, begin = Tree(), 0
    signed = torch.from_numpy(words.view(f"<i{fixed.bits // 8}").copy())
    for path, t in sorted(flatten(like).items()):
        out[path], begin = signed[begin : begin + t.numel()].view(t.shape), begin + t.numel()
    return unflatten(out)


def as_words(tree: Tree, fixed: Fixed) -> Words:
    """The inverse of `as_tree`.

    :raises InputError: these are no words of so many bits
    """
    parts = [t for _, t in sorted(flatten(tree).items())]
    if any(t.dtype != _KINDS[fixed.bits] for t in parts):
        raise InputError(f"a masked reply has {parts[0].dtype} in it, wanted whole numbers of {fixed.bits} bits")
    joined = torch.cat([t.detach().cpu().reshape(-1) for t in parts]).numpy()
    return np.asarray(joined.view(fixed.kind))
