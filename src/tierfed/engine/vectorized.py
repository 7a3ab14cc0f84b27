"""The vectorized engine: all nodes of a level are one stacked tree, the visits of a chunk of devices one vmap."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import vmap

from tierfed.algorithm import Info, Tier
from tierfed.engine.base import Engine, Flags, Ids
from tierfed.engine.crossing import crossed, enough, reduced, tell, untold
from tierfed.engine.log import RoundLog
from tierfed.engine.node import Walk, mean_of_chain
from tierfed.engine.processes import Processes
from tierfed.engine.said import Down, Up, Weights
from tierfed.engine.visits import Crew, Here, Job, Workplace
from tierfed.kernels import BATCHED, equipped
from tierfed.tree import Tree, row, stack, tmap, where, zeros

Counts = npt.NDArray[np.float64]  # [H, 3] samples, devices, children


def over(fn: Callable[..., Any], n: int, *args: Any) -> Any:
    """fn mapped over the leading dimension n of its arguments, which may be empty trees."""
    if n == 1:  # of a single node, as the cloud is, vmap would cost more than most of what tiers compute
        return tmap(lambda t: t.unsqueeze(0), fn(*(row(a, 0) for a in args)))
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
    """Level by level. `chunk` devices are trained at once, by each of `workers` processes, with a `kernel` of
    `tierfed.kernels`; results depend on none of it.
    """

    chunk: int = 256
    workers: int = 1
    threads: int = 1  # of the kernel "native", where this process trains
    kernel: str = "vmap"
    shares: int = 0
    bf16: bool = False
    hire: Callable[[Workplace], Crew] | None = None  # in the place of processes beside this one

    @cached_property
    def crew(self) -> Crew:
        """Who computes the visits."""
        threads = self.threads if self.workers == 1 and self.hire is None else 1
        tasks = self.tasks
        if self.kernel != "vmap":
            tasks = [equipped(t, self.kernel, bf16=self.bf16, threads=threads) for t in self.tasks]
        batched = self.kernel in BATCHED
        place = Workplace(algorithm=self.algorithm, tasks=tasks, plan=self.plan, batched=batched)
        if self.hire is not None:
            return self.hire(place)
        return Here(place) if self.workers == 1 else Processes(place, self.workers)

    def open(self) -> None:
        if self.hire is not None:
            self.crew.visit([], {}, lambda _: {})

    def close(self) -> None:
        """Ends the worker processes; what is computed from now on is computed here."""
        if "crew" in self.__dict__:
            self.crew.close()
            del self.crew
        self.workers, self.hire = 1, None

    def step(self) -> RoundLog:
        self.log = RoundLog()
        state, _ = self._visit(0, np.array([0]), row(self.kept(0, 0), None), 0)
        self.keep(0, 0, row(state, 0))
        self.regroup()
        self.round += 1
        return self.log

    def _answer(self, level: int, nodes: Ids, down: Down, tick: int) -> tuple[Up, Counts]:
        """(replies of H nodes, counts [H, 3]; a row of zeros: nobody below was heard)"""
        if level == self.depth:
            return self._devices(nodes, down, tick)
        tier = self.tiers[level]
        kept = stack([self.kept(level, int(i)) for i in nodes])
        state, counts = self._visit(level, nodes, over(tier.enter, len(nodes), kept, down.rows()), tick)
        for r, i in enumerate(nodes):
            self.keep(level, int(i), row(state, r))
        if self.topology.policies[level - 1].empty == "stale" and not tier.relay:
            counts = np.where(counts[:, :1] > 0, counts, self.totals[level][nodes] * [1, 1, 0] + [0, 0, 1])
        heard = np.flatnonzero(counts[:, 1] > 0)  # a node that heard nobody may have nothing to report
        some = state if len(heard) == len(nodes) else row(state, heard)
        said = [(heard, over(tier.report, len(heard), some))] if len(heard) else []
        return Up(len(nodes), said), counts

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
                down = Down(self._send_by_slot(tier, state, burst, seen), np.arange(len(burst.kids)))
            else:
                down = Down(over(lambda s: tier.send(s, torch.tensor(0)), n, state), burst.owner)
            down = self._telling(depth, nodes, burst, down)
            up, each, heard = self._exchange(depth, to, burst, down)
            info = self._infos(depth, nodes, each[:, self.units[depth]] * heard, burst.owner)
            if tier.watches:
                self._watch(tier, depth, state, burst, up.whole(), heard, info)
            if tier.reduce == "stack":
                state = self._absorb_stack(tier, depth, state, burst, up.whole(), heard, info, seen)
            elif heard.any():
                weight = each[:, self.units[depth]] * heard
                if burst.walks:
                    mean = _means_of_chains(tier, burst, up.whole(), weight)
                elif self.links.at(depth).rule is not None:
                    mean = reduced(self, depth, nodes, burst.owner, burst.kids, down, up.whole(), weight, burst.tick)
                else:
                    mean = up.mean(n, burst.owner, weight)
                new = over(lambda s, u, *i: tier.absorb(s, u, Info(*i)), n, state, mean, *info)
                if not info[0].all():
                    new = {k: vmap(where)(info[0] > 0, v, state[k]) if k in state else v for k, v in new.items()}
                state = new
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

    def _telling(self, depth: int, nodes: Ids, burst: _Burst, down: Down) -> Down:
        """The messages with what the rules of the nodes tell their children."""
        if self.links.at(depth).rule is None:
            return down
        told = [tell(self, depth, int(i), burst.kids[burst.owner == r], burst.tick) for r, i in enumerate(nodes)]
        if not any(told):
            return down
        said, added = row(down.messages, torch.as_tensor(down.owner)), row(stack(told), torch.as_tensor(burst.owner))
        return Down({**said, **added}, np.arange(len(burst.kids)))

    def _exchange(self, depth: int, to: int, burst: _Burst, down: Down) -> tuple[Up, Counts, Flags]:
        """(replies of those polled, counts [H, 3], who is heard [H])"""
        kids, n, unit = burst.kids, len(burst.kids), self.units[depth]
        awake = np.flatnonzero(self.awake(depth, to, kids, burst.tick))
        each: Counts = np.zeros((n, 3))
        polled = np.bincount(burst.owner)
        more = np.array([self.links.above(to).overhead(int(c)) for c in polled])[burst.owner]  # [H, 2]
        sent, up = down.bytes() + more[:, 0], Up(n)
        if len(awake):
            plain = down._replace(messages=untold(down.messages))
            up, each[awake] = self._answer(to, kids[awake], plain.of(awake), burst.tick)
            up = up.at(awake, n)
        answered = each[:, 1] > 0
        owing = answered & self._owing(to, kids) if "owed" in up else np.zeros(n, bool)
        size, late = np.zeros(n, np.int64), np.zeros(n, bool)
        if answered.any():
            if owing.any():
                up = self._with_owed(to, kids, up.whole(), answered, each[:, unit])
            up, size = crossed(self, to, kids, down, up, each[:, unit], answered, burst.tick)
            size = size + more[:, 1] * answered
            late[answered] = self.late(to, kids[answered], sent[answered], size[answered], burst.tick)
        heard = self.settle(depth, to, kids, sent, size, answered, late, burst.tick, burst.walks)
        heard = enough(self, to, burst.owner, heard)
        unsettled = owing | (answered & ~heard if "owed" in up else np.zeros(n, bool))
        booked = np.flatnonzero(unsettled)
        owed = up.whole()["owed"] if len(booked) else {}
        for j in booked:
            self.book_owed(to, int(kids[j]), {"owed": row(owed, int(j))}, float(each[j, unit]), bool(heard[j]))
        return up, each, heard

    def _owing(self, level: int, kids: Ids) -> Flags:
        """Which nodes owe increments that were not heard [H]."""
        return np.array([self.store.get(f"owed{level}", int(i)) is not None for i in kids], bool)

    def _with_owed(self, level: int, kids: Ids, up: Tree, answered: Flags, weights: Weights) -> Up:
        """Replies with what nodes still owe."""
        at = np.flatnonzero(answered)
        said = row(up, torch.as_tensor(at))
        owed = [
            self.with_owed(level, int(kids[i]), {"owed": row(said["owed"], j)}, float(weights[i]))["owed"]
            for j, i in enumerate(at)
        ]
        return Up(len(kids), [(at, {**said, "owed": stack(owed)})])

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

    def _devices(self, ids: Ids, down: Down, tick: int) -> tuple[Up, Counts]:
        up, states = self._map(ids, down, self.round, tick)
        for place, state in states.singles():
            self.put_own(int(ids[place]), state)
        samples = self.plan.samples[ids].astype(np.float64)
        return up, np.stack([samples, np.ones(len(ids)), np.ones(len(ids))], 1)

    def visit_devices(self, devices: Ids, messages: Tree, round_: int, tick: int) -> tuple[Tree, Tree]:
        up, states = self._map(devices, Down(messages, np.arange(len(devices))), round_, tick)
        return up.whole(), states.whole()

    def _map(self, ids: Ids, down: Down, round_: int, tick: int) -> tuple[Up, Up]:
        """Replies and new private states of devices."""
        places = self._chunks(ids)
        kinds = self._kinds(ids)
        jobs = [Job(int(kinds[at[0]]), ids[at], down.owner[at], round_, tick) for at in places]
        done = self.crew.visit(jobs, down.messages, lambda some: stack([self.own(int(i)) for i in some]))
        ups, states = ([(at, visited[k]) for at, visited in zip(places, done, strict=True)] for k in (0, 1))
        return Up(len(ids), ups), Up(len(ids), states)

    def _kinds(self, ids: Ids) -> Ids:
        return np.zeros(len(ids), np.int64) if self.kinds is None else self.kinds[ids]

    def _chunks(self, ids: Ids) -> list[Ids]:
        """Places of devices that are computed together: of one architecture and batch width, those with as many steps
        side by side.
        """
        kinds, widths, work = self._kinds(ids), self.plan.widths[ids], self.plan.work(ids, self.algorithm)
        out, shares = [], self.shares or self.crew.workers
        for kind, width in sorted(set(zip(kinds.tolist(), widths.tolist(), strict=True))):
            same = np.flatnonzero((kinds == kind) & (widths == width))
            same = same[np.argsort(-work[same], kind="stable")]
            rounds = -(-len(same) // (self.chunk * shares))
            out += np.array_split(same, min(len(same), rounds * shares))
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
