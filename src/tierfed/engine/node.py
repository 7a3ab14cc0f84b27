"""One inner node's visit to its children: the recursion that simulation and deployment share."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tierfed.algorithm import Info, Tier
from tierfed.tree import Tree, row, scale, stack, sub, tmap

Ids = npt.NDArray[np.int64]
Counts = npt.NDArray[np.float64]  # [3] samples, devices, children


class Reply(NamedTuple):
    """What a parent hears from a child: its message, and for how much it speaks."""

    message: Tree
    counts: Counts


class Walk(NamedTuple):
    """The path of a chain, and what its first device knows."""

    places: Ids  # [L] of those that are not away among the kids, in order
    weight: float
    key: int


class Poll(NamedTuple):
    """Whom a node asks in one burst."""

    kids: Ids  # [H]
    roster: Ids  # [R] the children whose rows the tier sees
    slots: Ids  # [H] places of the kids in the roster
    walk: Walk | None = None  # of a chain


class Children(Protocol):
    """The children of a node, as the node meets them: in memory, in other processes, or on other machines."""

    def poll(self, burst: int) -> Poll: ...

    def rows(self, ids: Ids) -> list[Tree]: ...

    def put_row(self, child: int, record: Tree) -> None: ...

    def exchange(self, burst: int, poll: Poll, messages: list[Tree]) -> list[Reply | None]:
        """Sends each kid its message; its reply, or None: it was not heard."""
        ...

    def reduce(
        self, burst: int, poll: Poll, heard: list[int], sent: list[Tree], got: list[Reply], weights: Counts
    ) -> Tree:
        """What the node absorbs: the weighted mean of the replies, or what it makes of them in its place.

        :param heard: places of the replies among the kids; :param sent: the messages that they answer
        """
        ...


class Weighing(NamedTuple):
    """How replies are weighed at this node."""

    unit: int  # place in Counts
    total: float  # everybody below, in the unit
    over_all: bool  # the silent ones count as unchanged
    round: int


def weighted_mean(trees: list[Tree], weights: Counts) -> Tree:
    """sum_i w_i tree_i with weights that sum to one, in the order given."""

    def mean(*leaves: Tensor) -> Tensor:
        total = float(weights[0]) * leaves[0]
        for w, leaf in zip(weights[1:], leaves[1:], strict=True):
            total = total + float(w) * leaf
        return total

    out: Tree = tmap(mean, *trees)
    return out


def mean_of_chain(tier: Tier, walk: Walk, replies: dict[int, tuple[Tree, float]]) -> Tree:
    """The weighted mean at the end of a chain; whoever is on the path but has no reply adds nothing.

    :param replies: by place among the kids: reply and weight; at least one
    """
    on_path = [replies[j] for j in walk.places.tolist() if j in replies]
    begun = tier.mask(on_path[0][0], walk.weight, walk.key)
    carry = begun
    for up, weight in on_path:
        carry = tier.hop(carry, up, weight)
    out: Tree = scale(sub(carry, begun), 1.0 / sum(weight for _, weight in on_path))
    return out


def visit(
    tier: Tier, state: Tree, bursts: int, children: Children, weighing: Weighing, like: Tensor
) -> tuple[Tree, Counts | None]:
    """All bursts of one node; (its state, for how much it speaks, or None: nobody below was heard).

    :param like: a number [] in the model's precision and on its device
    """
    counts: Counts | None = None
    for burst in range(bursts):
        poll = children.poll(burst)
        if not len(poll.kids):
            continue
        if tier.sees:
            state = {**state, "rows": stack(children.rows(poll.roster)), "ids": torch.as_tensor(poll.roster)}
        messages = [tier.send(state, torch.tensor(int(s))) for s in poll.slots]
        replies = children.exchange(burst, poll, messages)
        heard = [j for j, r in enumerate(replies) if r is not None]
        if heard:
            got = [r for r in replies if r is not None]
            each = np.stack([r.counts for r in got])
            state = _absorb(tier, state, burst, poll, heard, messages, got, each, children, weighing, like)
            counts = each.sum(0) if tier.relay else np.append(each.sum(0)[:2], 1.0)
        if tier.sees:
            for r, i in enumerate(poll.roster):
                children.put_row(int(i), row(state["rows"], r))
            state = {k: v for k, v in state.items() if k not in ("rows", "ids")}
    return state, counts


def _absorb(
    tier: Tier,
    state: Tree,
    burst: int,
    poll: Poll,
    heard: list[int],
    messages: list[Tree],
    replies: list[Reply],
    each: npt.NDArray[np.float64],
    children: Children,
    weighing: Weighing,
    like: Tensor,
) -> Tree:
    weights = each[:, weighing.unit]
    share = weights.sum() / weighing.total if weighing.over_all else 1.0
    numbers = (weights.sum(), weighing.total, share, weighing.round)
    info = Info(*(like.new_tensor(float(v)) for v in numbers))
    info = info._replace(slots=torch.as_tensor(poll.slots[heard]))
    if tier.watches:
        for i, old, reply in zip(poll.kids[heard], children.rows(poll.kids[heard]), replies, strict=True):
            children.put_row(int(i), tier.watch(state, old, reply.message, info))
    if tier.reduce == "stack":
        return tier.absorb(state, stack([r.message for r in replies]), info)
    if poll.walk is not None:
        said = {j: (r.message, float(w)) for j, r, w in zip(heard, replies, weights, strict=True)}
        return tier.absorb(state, mean_of_chain(tier, poll.walk, said), info)
    sent = [messages[j] for j in heard]
    return tier.absorb(state, children.reduce(burst, poll, heard, sent, replies, weights), info)
