"""What every engine shares: the world it runs in, where states live, what links carry, who is heard."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tierfed.algorithm import Algorithm, Tier
from tierfed.cost import Burst, Edge, Offloaded, Visit
from tierfed.engine.beginning import Beginning, put_parents, with_parents
from tierfed.engine.log import RoundLog
from tierfed.engine.node import Walk
from tierfed.engine.teams import regrouped
from tierfed.errors import InputError
from tierfed.faults import Faults
from tierfed.links import NONE, Links
from tierfed.peers import Chain, peer_distances
from tierfed.plan import Plan
from tierfed.rng import Purpose, bits, generator
from tierfed.store import Records, with_default
from tierfed.task import Task
from tierfed.topology import UNITS, Topology
from tierfed.tree import Tree, leaves, take, tmap

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
PARENTS = "parents"  # the table of the tree: a record for each level that is not as it was at the beginning
_MOST_ON_A_PATH = 4000


class Engine(ABC):
    """One algorithm over one tree. Subclasses add how a round is walked, and nothing that an algorithm could notice.

    :param tasks: one per architecture; `kinds[i]` says which one device i runs
    :param clock: for the straggler deadline, see `tierfed.clock.Clock.visit_seconds`
    :param edge: what devices leave to their parents; none: nothing
    :param links: what happens to replies on their way
    """

    def __init__(
        self,
        algorithm: Algorithm,
        tasks: Sequence[Task],
        topology: Topology,
        plan: Plan,
        store: Records,
        *,
        faults: Faults | None = None,
        kinds: Ids | None = None,
        clock: Any = None,
        edge: Edge | None = None,
        links: Links = NONE,
    ) -> None:
        self.algorithm, self.tasks, self.plan, self.store = algorithm, tasks, plan, store
        self.faults, self.kinds, self.clock, self.edge = faults or Faults(), kinds, clock, edge
        self.links = links
        self.elsewhere = ""  # why the private states of devices are not in the store; empty: they are
        self.exchanged: dict[int, tuple[int, int]] = {}  # bytes down and up of visits that are not booked yet
        self.seed, self.round, self.log = topology.seed, 0, RoundLog()
        self.beginning = Beginning(store, [t.init() for t in tasks], kinds)
        self._begun: dict[int, Tree] = {}
        self._shared = tuple(algorithm.shared(tasks[0]))
        self.tiers: tuple[Tier, ...] = algorithm.tiers(tasks[0], topology.shape)
        if len(self.tiers) != topology.depth:
            raise InputError(
                f"{type(algorithm).__name__} made {len(self.tiers)} tiers for a tree with {topology.depth} inner levels"
            )
        for depth, tier in enumerate(self.tiers):
            apart = depth < topology.depth - 1
            if tier.reduce == "chain" and (apart or tier.relay or tier.sees or tier.watches):
                raise InputError(
                    f"{type(tier).__name__} is a chain "
                    + (f"on level {depth} of {topology.depth}" if apart else "that relays, sees or watches")
                    + "; a sum travels from device to device: make it the last tier, and one that sends all the same"
                )
        self._arrange(topology)

    def set_topology(self, topology: Topology) -> None:
        """A tree with the same nodes; after devices changed team. Levels that changed are written to the store."""
        changed = [not np.array_equal(*p) for p in zip(self.topology.parents, topology.parents, strict=True)]
        put_parents(topology, self.store, PARENTS, changed)
        self._arrange(topology)

    def _arrange(self, topology: Topology) -> None:
        self.topology, self.depth = topology, topology.depth
        self.totals = topology.totals([t.relay for t in self.tiers])
        self.units: list[int] = []
        for d, tier in enumerate(self.tiers):
            own = UNITS.index(topology.policies[d].weight or tier.weight)
            self.units.append(self.units[-1] if tier.relay and d else own)

    @abstractmethod
    def step(self) -> RoundLog:
        """One round from the cloud down and back. States change in the store's working copy; nothing is committed."""

    def open(self) -> None:  # noqa: B027  most engines need nothing
        """Begins what visits need elsewhere, so that what is wrong with it is found before anything is trained."""

    @abstractmethod
    def close(self) -> None:
        """Ends what the engine has begun beside this process; it can be used on."""

    @abstractmethod
    def visit_devices(self, devices: Ids, messages: Tree, round_: int, tick: int) -> tuple[Tree, Tree]:
        """Replies and new private states, stacked [H, ...], of devices that get stacked messages [H, ...]; nothing
        is kept.
        """

    def kind(self, device: int) -> int:
        """Which of the architectures a device runs."""
        return 0 if self.kinds is None else int(self.kinds[device])

    def task(self, device: int) -> Task:
        return self.tasks[self.kind(device)]

    def begun(self, device: int) -> Tree:
        """The private state of a device before its first visit, which an algorithm may train: once for all devices of
        an architecture that begin alike.
        """
        kind = self.kind(device)
        if self.beginning.own(device) is not None:
            return self.algorithm.init(self.tasks[kind], self.beginning.of(device))
        if kind not in self._begun:
            self._begun[kind] = self.algorithm.init(self.tasks[kind], self.beginning.of(device))
        return self._begun[kind]

    def kept(self, depth: int, node: int) -> Tree:
        """What an inner node keeps between visits."""
        tier = self.tiers[depth]

        def init() -> Tree:
            devices = self.topology.below(depth, node, self.depth) if tier.means else np.array([], np.int64)
            return tier.init(self.beginning.mean(devices, self._shared))

        return with_default(self.store, f"kept{depth}", node, init)

    def keep(self, depth: int, node: int, state: Tree) -> None:
        """After a visit: exactly the keys of `Tier.init` are kept."""
        self.store.put(f"kept{depth}", node, take(state, self.kept(depth, node)))

    def own(self, device: int) -> Tree:
        """The private state of a device.

        :raises InputError: it never leaves the device, and this process is not there
        """
        if self.elsewhere and any(True for _ in leaves(self.begun(device))):
            raise InputError(self.elsewhere)
        return with_default(self.store, "own", device, lambda: self.begun(device))

    def put_own(self, device: int, state: Tree) -> None:
        if any(True for _ in leaves(state)):  # what holds nothing is what it was at the beginning
            self.store.put("own", device, state)

    def rows(self, depth: int, children: Ids) -> list[Tree]:
        """What the nodes of a level remember about children [R]; by stable id, whoever the parent is."""
        make, of_devices = self.tiers[depth].child, self.reach(depth) == self.depth

        def first(i: int) -> Tree:
            return make(take(self.beginning.of(i) if of_devices else self.beginning.common, self._shared), i)

        return [with_default(self.store, f"rows{depth}", int(i), partial(first, int(i))) for i in children]

    def put_row(self, depth: int, child: int, record: Tree) -> None:
        self.store.put(f"rows{depth}", child, record)

    def reach(self, depth: int) -> int:
        """The level that a node of this depth talks to: relays are looked through when every child counts by itself."""
        to, tier = depth + 1, self.tiers[depth]
        while (tier.sees or tier.watches or tier.reduce == "stack") and to < self.depth and self.tiers[to].relay:
            to += 1
        return to

    def bursts(self, depth: int) -> int:
        return 1 if self.tiers[depth].relay else self.topology.policies[depth].bursts

    def roster(self, depth: int, node: int, polled: Ids) -> tuple[Ids, Ids]:
        """(ids of the children whose rows the tier sees [R], places of the polled ones among them [H])"""
        if self.tiers[depth].sees != "all":
            return polled, np.arange(len(polled))
        ids = self.topology.below(depth, node, self.reach(depth))
        return ids, np.searchsorted(ids, polled)

    def awake(self, depth: int, to: int, kids: Ids, tick: int) -> Flags:
        """Whom of `kids` on level `to` a message from `depth` reaches: neither they nor a relay in between are away."""
        out = np.ones(len(kids), bool)
        for level in range(depth + 1, to + 1):
            out &= ~self.faults.silent(self.seed, level, self.topology.ancestor(to, kids, level), self.round, tick)
        return out

    def walk(self, depth: int, node: int, kids: Ids, tick: int) -> Walk | None:
        """The path of a chain through `kids`, going around those that are away; None: the tier is no chain."""
        tier = self.tiers[depth]
        if tier.reduce != "chain":
            return None
        there = np.flatnonzero(self.awake(depth, self.depth, kids, tick))
        if not len(there):
            return Walk(there, 0.0, 0)
        if len(there) > _MOST_ON_A_PATH:
            raise InputError(
                f"a path through {len(there)} devices, of which all distances are needed; at most {_MOST_ON_A_PATH} "
                "can be ordered: take more teams (topology.fogs) or fewer participants (topology.participation)"
            )
        ids = kids[there]
        rng = generator(self.seed, Purpose.PATH, depth, node, self.round, tick)
        order = tier.path(ids, peer_distances(self.seed, ids[:, None], ids), rng)
        if sorted(order.tolist()) != list(range(len(ids))):
            raise InputError(
                f"{type(tier).__name__}.path gave {order.tolist()} for {len(ids)} devices; "
                f"it has to name each of the places 0 to {len(ids) - 1} once"
            )
        places = there[order]
        first = int(kids[places[0]])
        weight = float((self.plan.samples[first], 1, 1)[self.units[depth]])
        return Walk(places, weight, int(bits(self.seed, Purpose.MASK, first, self.round, tick)[0] >> np.uint64(1)))

    def _hand_on(self, depth: int, kids: Ids, down: Ids, up: Ids, walks: Sequence[Walk], tick: int) -> tuple[Ids, Ids]:
        """Books what devices of chains hand on to each other; what is left for their links to the node, down and up."""
        links = np.zeros_like(down), np.zeros_like(up)
        free = bool(self.topology.colocated) and self.topology.colocated[depth]
        for ids, places in ((kids[w.places], w.places) for w in walks if len(w.places)):
            model, total = (0, 0) if free else (int(down[places[0]]), int(up[places].max()))
            following = ids[1:] if not self.tiers[depth].returns or len(ids) == 1 else np.roll(ids, -1)
            chain = Chain(
                depth=depth,
                tick=tick,
                node=int(self.topology.parents[depth][ids[0]]),
                devices=ids,
                distances=peer_distances(self.seed, ids[: len(following)], following),
                down_bytes=model,
                up_bytes=total,
            )
            self.log.chains.append(chain)
            for link, end, size in zip(links, chain.ends, (model, total), strict=True):
                link[places[ids == end]] = size
        return links

    def settle(
        self,
        depth: int,
        to: int,
        kids: Ids,
        down: Ids,
        up: Ids,
        answered: Flags,
        late: Flags,
        tick: int,
        walks: Sequence[Walk] = (),
        near: tuple[Ids, Ids] | None = None,
    ) -> Flags:
        """Books what every link between `depth` and `to` carried, and says who is heard at the top [H].

        :param kids: those polled on level `to`; `down` bytes were sent to each, `up` bytes come from those that
        `answered`
        :param late: those that answered after the deadline
        :param walks: the paths of chains, places among `kids`
        :param near: what the devices' own links carry of it, down and up; by default all
        """
        if walks:
            down, up = self._hand_on(depth, kids, down, up, walks, tick)
        heard, common = answered & ~late, not self.tiers[depth].sees
        if late.any():
            self.log.lost[to - 1] = self.log.lost.get(to - 1, 0) + int(late.sum())
        sent = answered
        for d in reversed(range(depth, to)):
            ids = self.topology.ancestor(to, kids, d + 1)
            reached = np.ones(len(kids), bool)
            for level in range(depth + 1, d + 1):
                reached &= ~self.faults.silent(
                    self.seed, level, self.topology.ancestor(to, kids, level), self.round, tick
                )
            moved = near if near is not None and d == self.depth - 1 else (down, up)
            self._book(d, ids, np.where(reached, moved[0], 0), np.where(sent, moved[1], 0), common, tick)
            unique = np.unique(ids[sent])
            lost = unique[self.faults.lost(self.seed, d + 1, unique, self.round, tick)]
            if len(lost):
                self.log.lost[d] = self.log.lost.get(d, 0) + len(lost)
            heard = heard & ~np.isin(ids, lost)
            sent = heard
            away = np.unique(ids[reached])
            away = away[self.faults.silent(self.seed, d + 1, away, self.round, tick)]
            if len(away):
                self.log.silent[d] = self.log.silent.get(d, 0) + len(away)
        return heard

    def _book(self, depth: int, ids: Ids, down: Ids, up: Ids, common: bool, tick: int) -> None:
        nodes, place = np.unique(ids, return_inverse=True)
        total_up = np.bincount(place, up, len(nodes)).astype(np.int64)
        if common:  # one copy per node, however many descendants wait for it
            total_down = np.zeros(len(nodes), np.int64)
            np.maximum.at(total_down, place, down)
        else:
            total_down = np.bincount(place, down, len(nodes)).astype(np.int64)
        if self.topology.colocated and self.topology.colocated[depth]:
            total_down, total_up = 0 * total_down, 0 * total_up
        parents = self.topology.parents[depth][nodes]
        self.log.bursts.append(
            Burst(depth=depth, tick=tick, parents=parents, kids=nodes, down_bytes=total_down, up_bytes=total_up)
        )

    def late(self, level: int, devices: Ids, down: Ids, up: Ids, tick: int) -> Flags:
        """Books the computing of device visits; whose reply comes after the deadline [H].

        A device of a chain has a deadline for its computing alone: the model and the sum come from its neighbors.
        """
        if level != self.depth:
            return np.zeros(len(devices), bool)
        if self.tiers[level - 1].reduce == "chain":
            down, up = 0 * down, 0 * up
        samples, slow = self.plan.work(devices, self.algorithm), self.faults.slow(self.seed, devices, self.round)
        there = self._offloaded(devices)
        self.log.visits.append(Visit(tick=tick, devices=devices, samples=samples, slowdown=slow, offloaded=there))
        if self.faults.deadline_seconds is None or self.clock is None:
            return np.zeros(len(devices), bool)
        visit = (self.topology, devices, down, up, samples, slow, *([] if there is None else [there]))
        seconds: npt.NDArray[np.float64] = self.clock.visit_seconds(*visit)
        return seconds > self.faults.deadline_seconds

    def _offloaded(self, devices: Ids) -> Offloaded | None:
        """What edges did in visits that have just ended."""
        if self.edge is None:
            return None
        kinds = np.zeros(len(devices), np.int64) if self.kinds is None else self.kinds[devices]
        each = [self.exchanged.pop(int(i), (0, 0)) for i in devices]
        down, up = np.array(each, np.int64).reshape(-1, 2).T
        share = np.array(self.edge.shares)[kinds]
        return Offloaded(share=share, speed=self.edge.speed, down_bytes=down, up_bytes=up)

    def with_owed(self, level: int, child: int, up: Tree, weight: float) -> Tree:
        """A reply with the increments that this child still owes; kept in units of weight, since the weight may have
        changed.
        """
        owed = self.store.get(f"owed{level}", child)
        if "owed" not in up or owed is None:
            return up
        return {**up, "owed": tmap(lambda a, b: a + b / weight, up["owed"], owed)}

    def book_owed(self, level: int, child: int, up: Tree, weight: float, heard: bool) -> None:
        """After the parent was heard or not: what has arrived is owed no more."""
        if "owed" not in up:
            return
        if not heard:
            self.store.put(f"owed{level}", child, tmap(lambda a: a * weight, up["owed"]))
        elif self.store.get(f"owed{level}", child) is not None:
            self.store.put(f"owed{level}", child, None)

    def share(
        self, depth: int, heard: npt.NDArray[np.float64], total: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Info.share under the policy of a level."""
        over_all = self.topology.policies[depth].over == "all"
        return heard / np.maximum(total, 1e-12) if over_all else np.ones_like(heard)

    def regroup(self) -> None:
        """After a round: devices change team, and with the scope "tree" inner nodes their parent, where the algorithm
        says so; rows and states follow by id. What is wired to one machine (a colocated link) stays there.
        """
        parents = regrouped(self)
        for d, (old, new) in enumerate(zip(self.topology.parents, parents, strict=True)):
            for i in np.flatnonzero(new != old):
                place = (int(i), int(old[i]), int(new[i]))
                if d == self.depth - 1:
                    self.log.moved.append(place)
                else:
                    self.log.reparented.append((d + 1, *place))
        if self.log.moved or self.log.reparented:
            self.set_topology(self.topology.rebuilt(parents))

    def keeps(self, depth: int) -> bool:
        """Whether the rows of a level are in this process."""
        return True

    def known(self, depth: int) -> dict[int, Tree]:
        """The rows that the nodes of a level have written of their children, by child, ascending."""
        ids = self.store.ids(f"rows{depth}")
        return dict(zip(ids, self.rows(depth, np.array(ids, np.int64)), strict=True))

    def traced(self, level: int, node: int) -> dict[str, float]:
        """The scalars that the algorithm wants to be seen of a node, as they are now."""
        names = self.algorithm.traces if level == self.depth else self.tiers[level].traces
        state = (self.own(node) if level == self.depth else self.kept(level, node)) if names else {}
        return {t: float(state[t]) for t in names if t in state}

    def stopped(self) -> str:
        """Why the cloud wants to end the run; empty: it goes on."""
        return self.tiers[0].stop(self.kept(0, 0))

    def meta(self) -> dict[str, Any]:
        """What a checkpoint needs beside the store's records."""
        return {"round": self.round, **({"elsewhere": self.elsewhere} if self.elsewhere else {})}

    def restore(self, meta: dict[str, Any]) -> None:
        """The inverse of `meta`, on an engine over a store that was committed with it."""
        self.round, self.elsewhere = int(meta["round"]), str(meta.get("elsewhere", ""))
        if "parents" in meta:  # of a run that was begun before they were records
            self.set_topology(self.topology.rebuilt(meta["parents"]))
        self._arrange(with_parents(self.topology, self.store, PARENTS))
