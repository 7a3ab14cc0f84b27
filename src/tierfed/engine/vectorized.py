"""The vectorized engine: all nodes of a level are one stacked tree, the visits of a chunk of devices one vmap."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import vmap

from tierfed.algorithm import Data, Info, Tier
from tierfed.engine.base import Engine, Flags, Ids
from tierfed.engine.log import RoundLog
from tierfed.engine.node import Walk, mean_of_chain
from tierfed.tree import Tree, row, stack, tmap, where, zeros
from tierfed.wire import payload_bytes

Counts = npt.NDArray[np.float64]  # [H, 3] samples, devices, children
Weights = npt.NDArray[np.float64]  # [H]


def over(fn: Callable[..., Any], n: int, *args: Any) -> Any:
    """fn mapped over the leading dimension n of its arguments, which may be empty trees."""
    return vmap(lambda _, *a: fn(*a))(torch.arange(n), *args)


@dataclass
class _Burst:
    """One burst of all nodes of a level: who was polled by whom, and what was said."""

    tick: int
    kids: Ids  # [H]
    owner: Ids  # [H] place of the parent among the nodes
    slots: Ids  # [H]
    rosters: list[Ids]
    walks: list[Walk]  # of chains: a path for each node, through places among the kids


class Vectorized(Engine):
    """Level by level. `chunk` devices are trained at once: what memory allows; results do not depend on it."""

    chunk: int = 256

    def step(self) -> RoundLog:
        self.log = RoundLog()
        state, _ = self._visit(0, np.array([0]), row(self.kept(0, 0), None), 0)
        self.keep(0, 0, row(state, 0))
        self.regroup()
        self.round += 1
        return self.log

    def _answer(self, level: int, nodes: Ids, messages: Tree, tick: int) -> tuple[Tree, Counts]:
        """(messages [H, ...], counts [H, 3]; a row of zeros: nobody below was heard)"""
        if level == self.depth:
            return self._devices(nodes, messages, tick)
        tier = self.tiers[level]
        kept = stack([self.kept(level, int(i)) for i in nodes])
        state, counts = self._visit(level, nodes, over(tier.enter, len(nodes), kept, messages), tick)
        for r, i in enumerate(nodes):
            self.keep(level, int(i), row(state, r))
        if self.topology.policies[level - 1].empty == "stale" and not tier.relay:
            counts = np.where(counts[:, :1] > 0, counts, self.totals[level][nodes] * [1, 1, 0] + [0, 0, 1])
        heard = np.flatnonzero(counts[:, 1] > 0)
        if len(heard) in (0, len(nodes)):
            return (over(tier.report, len(nodes), state) if len(heard) else {}), counts
        some = over(tier.report, len(heard), row(state, heard))  # a node that heard nobody may have nothing to report
        return tmap(lambda t: _spread(t, heard, len(nodes)), some), counts

    def _visit(self, depth: int, nodes: Ids, state: Tree, tick: int) -> tuple[Tree, Counts]:
        tier, to, n = self.tiers[depth], self.reach(depth), len(nodes)
        counts: Counts = np.zeros((n, 3))
        for k in range(self.bursts(depth)):
            burst = self._poll(depth, to, nodes, tick * self.bursts(depth) + k)
            if not len(burst.kids):
                continue
            seen: list[Tree] = []
            if tier.sees:
                seen = [stack(self.rows(depth, r)) if len(r) else {} for r in burst.rosters]
                down = self._send_by_slot(tier, state, burst, seen)
            else:
                down = row(over(lambda s: tier.send(s, torch.tensor(0)), n, state), torch.as_tensor(burst.owner))
            up, each, heard = self._exchange(depth, to, burst, down)
            info = self._infos(depth, nodes, each[:, self.units[depth]] * heard, burst.owner)
            if tier.watches:
                self._watch(tier, depth, state, burst, up, heard, info)
            if tier.reduce == "stack":
                state = self._absorb_stack(tier, depth, state, burst, up, heard, info, seen)
            elif heard.any():
                weight = each[:, self.units[depth]] * heard
                mean = _means_of_chains(tier, burst, up, weight) if burst.walks else _mean(n, burst, up, weight)
                new = over(lambda s, u, *i: tier.absorb(s, u, Info(*i)), n, state, mean, *info)
                state = {k: vmap(where)(info[0] > 0, v, state[k]) if k in state else v for k, v in new.items()}
            new = np.stack([np.bincount(burst.owner, each[:, u] * heard, n) for u in range(3)], 1)
            if not tier.relay:
                new[:, 2] = new[:, 1] > 0
            counts = np.where(new[:, 1:2] > 0, new, counts)
        return state, counts

    def _poll(self, depth: int, to: int, nodes: Ids, tick: int) -> _Burst:
        polled = [self.topology.cohort(depth, int(i), to, self.round, tick) for i in nodes]
        rosters, slots = zip(*(self.roster(depth, int(i), p) for i, p in zip(nodes, polled, strict=True)), strict=True)
        owner, begin = np.repeat(np.arange(len(nodes)), [len(p) for p in polled]), 0
        walks = []
        for i, p in zip(nodes, polled, strict=True):
            walk = self.walk(depth, int(i), p, tick)
            walks += [] if walk is None else [walk._replace(places=walk.places + begin)]
            begin += len(p)
        return _Burst(tick, np.concatenate(polled), owner, np.concatenate(slots), list(rosters), walks)

    def _send_by_slot(self, tier: Tier, state: Tree, burst: _Burst, seen: list[Tree]) -> Tree:
        downs = []
        for r, roster in enumerate(burst.rosters):
            slots = burst.slots[burst.owner == r]
            if len(slots):
                full = {**row(state, r), "rows": seen[r], "ids": torch.as_tensor(roster)}
                downs.append(vmap(tier.send, (None, 0))(full, torch.as_tensor(slots)))
        return tmap(lambda *t: torch.cat(t), *downs)  # type: ignore[no-any-return]

    def _exchange(self, depth: int, to: int, burst: _Burst, down: Tree) -> tuple[Tree, Counts, Flags]:
        """(replies [H, ...], counts [H, 3], who is heard [H]); replies of those that are not heard are zeros."""
        kids, n, unit = burst.kids, len(burst.kids), self.units[depth]
        awake = np.flatnonzero(self.awake(depth, to, kids, burst.tick))
        each: Counts = np.zeros((n, 3))
        sent = payload_bytes(down, n)
        up: Tree = {}
        if len(awake):
            up, each[awake] = self._answer(to, kids[awake], row(down, torch.as_tensor(awake)), burst.tick)
        answered = each[:, 1] > 0
        size, late = np.zeros(n, np.int64), np.zeros(n, bool)
        if answered.any():
            up = self._with_owed(to, kids[awake], up, each[awake, unit])
            size[awake] = payload_bytes(up, len(awake))
            up = tmap(lambda t: _spread(t, awake, n), up)
            late[answered] = self.late(to, kids[answered], sent[answered], size[answered], burst.tick)
        heard = self.settle(depth, to, kids, sent, size * answered, answered, late, burst.tick, burst.walks)
        if "owed" in up:
            for j in np.flatnonzero(answered):
                self.book_owed(to, int(kids[j]), {"owed": row(up["owed"], j)}, float(each[j, unit]), bool(heard[j]))
        return up, each, heard

    def _with_owed(self, level: int, kids: Ids, up: Tree, weights: npt.NDArray[np.float64]) -> Tree:
        if "owed" not in up:
            return up
        owed = [
            self.with_owed(level, int(i), {"owed": row(up["owed"], j)}, float(weights[j])) for j, i in enumerate(kids)
        ]
        return {**up, "owed": stack([o["owed"] for o in owed])}

    def _infos(self, depth: int, nodes: Ids, weight: npt.NDArray[np.float64], owner: Ids) -> list[Tensor]:
        """heard, total, share, round of every node [n]."""
        heard = np.bincount(owner, weight, len(nodes))
        total = self.totals[depth][nodes, self.units[depth]]
        values = (
            heard,
            total,
            self.share(depth, heard.astype(np.float64), total),
            np.full(len(nodes), float(self.round)),
        )
        return [torch.as_tensor(v, dtype=self.plan.dtype, device=self.plan.x.device) for v in values]

    def _watch(
        self, tier: Tier, depth: int, state: Tree, burst: _Burst, up: Tree, heard: Flags, info: list[Tensor]
    ) -> None:
        at = np.flatnonzero(heard)
        if not len(at):
            return
        parents = torch.as_tensor(burst.owner[at])
        new = over(
            lambda s, r, u, *i: tier.watch(s, r, u, Info(*i)),
            len(at),
            row(state, parents),
            stack(self.rows(depth, burst.kids[at])),
            row(up, torch.as_tensor(at)),
            *(v[parents] for v in info),
        )
        for j, i in enumerate(burst.kids[at]):
            self.put_row(depth, int(i), row(new, j))

    def _absorb_stack(
        self,
        tier: Tier,
        depth: int,
        state: Tree,
        burst: _Burst,
        up: Tree,
        heard: Flags,
        info: list[Tensor],
        seen: list[Tree],
    ) -> Tree:
        out = []
        for r, roster in enumerate(burst.rosters):
            mine, one = np.flatnonzero(heard & (burst.owner == r)), row(state, r)
            rows = seen[r] if seen else {}
            if len(mine):
                extra = {"rows": rows, "ids": torch.as_tensor(roster)} if seen else {}
                numbers = Info(*(v[r] for v in info))._replace(slots=torch.as_tensor(burst.slots[mine]))
                new = tier.absorb({**one, **extra}, row(up, torch.as_tensor(mine)), numbers)
                rows = new.get("rows", rows)
                one = {k: v for k, v in new.items() if k not in ("rows", "ids")}
            if seen:
                for j, i in enumerate(roster):
                    self.put_row(depth, int(i), row(rows, j))
            out.append(one)
        every = {k: v for o in out for k, v in o.items()}
        new_state: Tree = stack([{k: o.get(k, zeros(v)) for k, v in every.items()} for o in out])
        return new_state

    def _devices(self, ids: Ids, messages: Tree, tick: int) -> tuple[Tree, Counts]:
        up, states = self._map(ids, messages, self.round, tick)
        for i, state in zip(ids, states, strict=True):
            self.put_own(int(i), state)
        samples = self.plan.samples[ids].astype(np.float64)
        return up, np.stack([samples, np.ones(len(ids)), np.ones(len(ids))], 1)

    def visit_devices(self, devices: Ids, messages: Tree, round_: int, tick: int) -> tuple[Tree, Tree]:
        up, states = self._map(devices, messages, round_, tick)
        return up, stack(states)

    def _map(self, ids: Ids, messages: Tree, round_: int, tick: int) -> tuple[Tree, list[Tree]]:
        """Replies stacked in the order of ids, and new private states; one vmap per architecture, batch width and
        chunk.
        """
        kinds = np.zeros(len(ids), np.int64) if self.kinds is None else self.kinds[ids]
        widths = np.array([self.plan.width(int(i)) for i in ids])
        parts, places = [], []
        states: list[Tree] = [{}] * len(ids)
        for kind, width in sorted(set(zip(kinds.tolist(), widths.tolist(), strict=True))):
            same = np.flatnonzero((kinds == kind) & (widths == width))
            for at in np.split(same, range(self.chunk, len(same), self.chunk)):
                up, new = self._visit_chunk(kind, ids[at], row(messages, torch.as_tensor(at)), round_, tick)
                for j, r in enumerate(at):
                    states[r] = row(new, j)
                parts.append(up)
                places.append(at)
        back = torch.as_tensor(np.argsort(np.concatenate(places)))
        return row(tmap(lambda *t: torch.cat(t), *parts), back), states

    def _visit_chunk(self, kind: int, ids: Ids, messages: Tree, round_: int, tick: int) -> tuple[Tree, Tree]:
        task, data = self.tasks[kind], self.plan.data(ids.tolist(), self.algorithm, round_, tick)
        own = stack([self.own(int(i)) for i in ids])
        device = vmap(
            lambda m, s, *d: self.algorithm.device(task, m, s, Data(data.x, data.y, *d)._replace(ragged=data.ragged))
        )
        return device(messages, own, *data[2:-1])  # type: ignore[no-any-return]


def _mean(n: int, burst: _Burst, up: Tree, weight: Weights) -> Tree:
    """Weighted means of replies [H, ...] by their parent [n, ...]."""
    own = torch.as_tensor(burst.owner)
    part = torch.as_tensor(weight / np.maximum(np.bincount(burst.owner, weight, n), 1e-12)[burst.owner])

    def mean(t: Tensor) -> Tensor:
        shape = (-1, *[1] * (t.dim() - 1))
        t = torch.where(part.view(shape).to(t.device) > 0, t, 0)  # what was lost may be anything
        weighted = t * part.to(t.dtype).to(t.device).view(shape)
        return torch.zeros(n, *t.shape[1:], dtype=weighted.dtype, device=t.device).index_add(
            0, own.to(t.device), weighted
        )

    out: Tree = tmap(mean, up)
    return out


def _means_of_chains(tier: Tier, burst: _Burst, up: Tree, weight: Weights) -> Tree:
    """The same for chains, one after the other; zeros where nobody was heard."""
    out = []
    for walk in burst.walks:
        heard = [j for j in walk.places.tolist() if weight[j] > 0]
        replies = {j: (row(up, j), float(weight[j])) for j in heard}
        out.append(mean_of_chain(tier, walk, replies) if heard else zeros(row(up, 0)))
    means: Tree = stack(out)
    return means


def _spread(t: Tensor, places: Ids, n: int) -> Tensor:
    """Rows at their places among n, zeros elsewhere."""
    return (
        t
        if len(places) == n
        else t.new_zeros(n, *t.shape[1:]).index_copy(0, torch.as_tensor(places, device=t.device), t)
    )
