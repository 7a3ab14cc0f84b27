"""What crosses between a level and the one above it in one burst, without a copy of what is common."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tierfed.engine.visits import given
from tierfed.tree import Tree, row, tmap
from tierfed.wire import payload_bytes

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
_LARGE = 1 << 13  # numbers of an entry from which on its sum costs more than the call


class Down(NamedTuple):
    """Messages to H nodes, of which several may be the same one."""

    messages: Tree  # [m, ...]
    owner: Ids  # [H] whose message a node gets

    def of(self, places: Ids) -> "Down":
        """To some of the nodes."""
        return Down(self.messages, self.owner[places])

    def rows(self) -> Tree:
        """One message a node [H, ...]."""
        return given(self.messages, self.owner)

    def bytes(self) -> Ids:
        """Payload of every message [H]."""
        m = int(self.owner.max()) + 1
        return payload_bytes(tmap(lambda t: t[:m], self.messages), m)[self.owner]


class Up:
    """Replies of H nodes, in the pieces that they were computed in; who is in none has said nothing.

    :param pieces: (places [c] among the H, messages [c, ...])
    """

    def __init__(self, size: int, pieces: Sequence[tuple[Ids, Tree]] = ()) -> None:
        self.size, self.pieces = size, tuple(pieces)

    def __contains__(self, key: str) -> bool:
        return any(key in tree for _, tree in self.pieces)

    def at(self, places: Ids, size: int) -> "Up":
        """The same replies as of nodes at `places` among `size`."""
        return self if len(places) == size else Up(size, [(places[at], tree) for at, tree in self.pieces])

    def bytes(self) -> Ids:
        """Payload of every reply [H]."""
        out = np.zeros(self.size, np.int64)
        for at, tree in self.pieces:
            out[at] = payload_bytes(tree, len(at))
        return out

    def whole(self) -> Tree:
        """A copy as one stacked tree [H, ...], zeros where nothing was said; an empty one when nobody said anything."""
        if not self.pieces:
            return {}
        places = torch.as_tensor(np.concatenate([at for at, _ in self.pieces]))

        def joined(*parts: Tensor) -> Tensor:
            out = parts[0].new_zeros(self.size, *parts[0].shape[1:])
            return out.index_copy_(0, places.to(out.device), torch.cat(parts))

        out: Tree = tmap(joined, *(tree for _, tree in self.pieces))
        return out

    def singles(self) -> Iterator[tuple[int, Tree]]:
        """(place, reply) one by one, as copies."""
        for at, tree in self.pieces:
            for j, r in enumerate(at.tolist()):
                yield r, tmap(torch.clone, row(tree, j))

    def mean(self, nodes: int, owner: Ids, weight: Weights) -> Tree:
        """Weighted means by parent [nodes, ...]: added up reply by reply, so that the pieces do not matter.

        :param owner: the parent of every node [H]
        :param weight: of every reply [H]; what has none may be anything
        """
        share = weight / np.maximum(np.bincount(owner, weight, nodes), 1e-12)[owner]
        sums: list[Tree] = []
        for at, tree in self.pieces:
            counts = np.flatnonzero(share[at] > 0)
            some = tree if len(counts) == len(at) else row(tree, torch.as_tensor(counts))
            if not sums:
                sums.append(tmap(lambda t: t.new_zeros(nodes, *t.shape[1:]), some))
            to, part = owner[at[counts]], share[at[counts]]
            tmap(lambda s, t, to=to, part=part: _add(s, t, to, part), sums[0], some)
        return sums[0] if sums else {}


def _add(sums: Tensor, replies: Tensor, to: Ids, share: Weights) -> None:
    """sums[to[j]] += share[j] replies[j], one after the other; large ones without a copy."""
    if replies.device.type == "cpu" and replies.numel() >= _LARGE * max(1, len(replies)):
        for j, (i, part) in enumerate(zip(to.tolist(), share.tolist(), strict=True)):
            sums[i].add_(replies[j], alpha=part)
        return
    part = torch.as_tensor(share).to(replies.device, replies.dtype).view(-1, *[1] * (replies.dim() - 1))
    sums.index_add_(0, torch.as_tensor(to).to(replies.device), replies * part)
