"""The tree: who is whose child, who is polled, how replies are weighed, and how devices form teams."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Le

from tierfed.errors import InputError
from tierfed.rng import Purpose, generator
from tierfed.settings import Count, Natural

Ids = npt.NDArray[np.int64]
UNITS = ("samples", "devices", "children")
FORMED = ("ifca", "cfl")  # teams that a formation finds before round 1, see `tierfed.formation`
Number = Annotated[int, Ge(1)]
Part = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class TopologySettings:
    """The tree of a run."""

    fogs: Literal["auto"] | Natural | tuple[Count, ...] = "auto"
    """Nodes per level between cloud and devices: 0 flat, 5 = five teams, [2, 6] = two regions over six teams;
    "auto": one team per natural team of the data, flat without any."""
    teams: Literal["auto", "natural", "random", "sequential", "worst", "average", "ifca", "cfl"] = "auto"
    """How devices form teams: natural (the data's), random, sequential, by label ranges that are disjoint ("worst") or
    overlap ("average"), by the clusters that IFCA or CFL finds before round 1; "auto": natural where the data have
    teams, else random."""
    formation_rounds: Count = 10
    """Rounds of IFCA or CFL that form the teams, with the local training of [algorithm]; their cost is counted."""
    clusters: Natural = 0
    """Clusters of devices inside every fog: one more level, on the fog's own machine."""
    participation: Number | Part | tuple[Number | Part, ...] = 1.0
    """Children polled per visit: a share (1.0 = all) or a number (1 = one). One value: devices only; a list: per
    link from the cloud down."""
    sampling: Literal["fixed", "poisson"] = "fixed"
    """Of a share: fixed, so many children drawn without replacement; poisson, every child by itself with this
    probability, so that their number varies: what amplifies differential privacy most."""
    team_rounds: Count | tuple[Count, ...] = 1
    """Visits K of a fog to its children per visit of its parent. One value: the lowest fogs; a list: per level below
    the cloud.
    """
    weighting: Literal["auto", "samples", "devices", "children"] = "auto"
    """Unit of a parent's mean; "auto": what the algorithm's paper says."""
    over: Literal["active", "all"] = "active"
    """The mean over those heard, or over all children, the silent ones counting as unchanged."""
    empty: Literal["skip", "stale"] = "skip"
    """A fog below which nobody answered is left out, or reports what it has."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How the nodes of one inner level treat their children."""

    sample: float | int = 1.0
    bursts: int = 1
    weight: str | None = None
    over: str = "active"
    empty: str = "skip"
    poisson: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Topology:
    """parents[d][i] = the node of level d that owns node i of level d + 1; the last level holds the devices.

    Children are slices of one sorted index (CSR), polls draw k of n without touching the other n - k, counts below a
    node are prefix sums: a round costs O(cohort); O(N) only when the tree is built or regrouped.
    """

    parents: tuple[Ids, ...]
    policies: tuple[Policy, ...]
    samples: Ids  # [N] training samples per device
    nodes: tuple[int, ...]  # nodes per inner level, cloud first; a team may be empty
    seed: int = 0
    colocated: tuple[bool, ...] = ()  # per link: both ends are one machine

    @property
    def depth(self) -> int:
        """Number of link levels: 1 = flat."""
        return len(self.parents)

    @property
    def devices(self) -> int:
        """Number N of devices."""
        return len(self.parents[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Nodes per level, cloud first, devices last."""
        return (*self.nodes, self.devices)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, cloud first."""
        inner = {1: (), 2: ("fog",), 3: ("region", "fog")}.get(
            self.depth, tuple(f"tier{d}" for d in range(1, self.depth))
        )
        return ("cloud", *(("fog", "cluster") if any(self.colocated[:-1]) and self.depth == 3 else inner), "device")

    @property
    def links(self) -> tuple[str, ...]:
        """Names of the links, from the cloud down."""
        return tuple(f"{a}-{b}" for a, b in zip(self.levels, self.levels[1:], strict=False))

    def regrouped(self, teams: Ids) -> "Topology":
        """The same tree with other teams: teams[i] = the lowest inner node of device i. Ids stay, and what is stored
        by id.
        """
        return self.rebuilt((*self.parents[:-1], teams))

    def rebuilt(self, parents: Sequence[npt.ArrayLike]) -> "Topology":
        """The same nodes with other parents, all levels from the cloud down."""
        return replace(self, parents=tuple(np.asarray(p, np.int64) for p in parents))

    def flattened(self, seed: int) -> "Topology":
        """The same devices right below the cloud, polled as their fogs would: the share of the lowest link, or its
        number times the fogs.
        """
        share = self.policies[-1].sample
        sample = min(share * self.nodes[-1], self.devices) if isinstance(share, int) else share
        return Topology(
            parents=(np.zeros(self.devices, np.int64),),
            policies=(Policy(sample=sample),),
            samples=self.samples,
            nodes=(1,),
            seed=seed,
        )

    @cached_property
    def _csr(self) -> list[tuple[Ids, Ids]]:
        return [
            (np.argsort(p, kind="stable"), np.concatenate([[0], np.cumsum(np.bincount(p, minlength=n))]))
            for p, n in zip(self.parents, self.nodes, strict=True)
        ]

    def children(self, depth: int, node: int) -> Ids:
        """Ids on level depth + 1, ascending."""
        order, start = self._csr[depth]
        return order[start[node] : start[node + 1]]

    def poll(self, depth: int, node: int, round_: int, tick: int) -> Ids:
        """The children that a node polls at this tick, ascending: so many without replacement, or each by itself."""
        kids, sample = self.children(depth, node), self.policies[depth].sample
        if self.policies[depth].poisson and sample < 1:
            return kids[generator(self.seed, Purpose.POLL, depth, node, round_, tick).random(len(kids)) < sample]
        k = self.drawn(depth, len(kids))
        if k == len(kids):
            return kids
        rng = generator(self.seed, Purpose.POLL, depth, node, round_, tick)
        return kids[np.sort(rng.choice(len(kids), k, replace=False, shuffle=False))]

    def drawn(self, depth: int, children: int) -> int:
        """How many of so many children a node of a level polls, where their number is fixed."""
        sample = self.policies[depth].sample
        return min(children, sample if isinstance(sample, int) else max(1, round(sample * children)))

    def expected(self, depth: int, below: int = 0) -> npt.NDArray[np.float64] | None:
        """[nodes] how many nodes, so many levels below the children of a depth, are polled in the mean by their
        ancestors there; none: their number is fixed.
        """
        some = self.policies[depth : depth + below + 1]
        if not any(p.poisson and p.sample < 1 for p in some):
            return None
        children = np.arange(self.shape[depth + below + 1])
        counts = np.bincount(self.ancestor(depth + below + 1, children, depth), minlength=self.nodes[depth])
        return np.asarray(counts * float(np.prod([p.sample for p in some])), np.float64)

    def cohort(self, depth: int, node: int, to: int, round_: int, tick: int) -> Ids:
        """Those polled on level `to` through relays in between: the same ids as if each relay had polled for itself."""
        ids = self.poll(depth, node, round_, tick)
        for d in range(depth + 1, to):
            ids = np.concatenate([self.poll(d, int(i), round_, tick) for i in ids] or [ids])
        return ids

    def below(self, depth: int, node: int, to: int) -> Ids:
        """All descendants on level `to`, ascending."""
        ids = self.children(depth, node)
        for d in range(depth + 1, to):
            ids = np.concatenate([self.children(d, int(i)) for i in ids] or [ids])
        return np.sort(ids)

    def ancestor(self, level: int, ids: Ids, to: int) -> Ids:
        """The ancestors on level `to` of nodes of `level`."""
        for d in reversed(range(to, level)):
            ids = self.parents[d][ids]
        return ids

    def totals(self, relay: Sequence[bool]) -> list[npt.NDArray[np.float64]]:
        """Per inner level [nodes, 3]: the samples, devices and children of everybody below a node. A node that is no
        relay counts as one child, a relay as its children; an empty team as none."""
        below = np.stack([self.samples, np.ones(self.devices), np.ones(self.devices)], 1).astype(np.float64)
        out: list[npt.NDArray[np.float64]] = []
        for d in reversed(range(self.depth)):
            sums = [np.bincount(self.parents[d], below[:, u], self.nodes[d]) for u in range(3)]
            total = np.stack(sums, 1).astype(np.float64)
            out.insert(0, total)
            below = total.copy()
            if not relay[d]:
                below[:, 2] = total[:, 1] > 0
        return out


def form_teams(
    kind: str,
    teams: int,
    devices: int,
    seed: int,
    natural: Ids | None = None,
    labels: npt.NDArray[np.int64] | None = None,
) -> Ids:
    """The team of each device [N].

    :param labels: training samples per device and label [N, C], for "worst" (label ranges are disjoint: team 1 has the
        first C / M labels) and "average" (ranges of 0.7 C labels that overlap, wrapping around), PerMFL's worst and
        average cases. A device joins the team whose range holds most of its samples; among equals the smallest.
    :raises InputError: natural teams of data that have none, label ranges without labels, or a team without devices
    """
    if kind == "natural":
        if natural is None:
            raise InputError(
                "topology.teams = 'natural', but the data name no teams; use 'random' or 'sequential', or a team column"
            )
        if teams != int(natural.max()) + 1:
            raise InputError(
                f"topology.fogs gives {teams} teams, the data have {int(natural.max()) + 1} natural ones; "
                "set topology.fogs = 'auto', or topology.teams = 'random'"
            )
        out = natural.astype(np.int64)
    elif kind == "sequential":
        out = np.arange(devices) * teams // devices
    elif kind == "random":
        out = (generator(seed, Purpose.TEAMS).permutation(devices) * teams // devices).astype(np.int64)
    else:
        out = _by_labels(kind, teams, devices, labels)
    missing = np.setdiff1d(np.arange(teams), out)
    if len(missing):
        raise InputError(
            f"team {missing[0]} of {teams} has no devices ({devices} devices, topology.teams = {kind!r}); "
            "take fewer teams (topology.fogs) or another topology.teams"
        )
    return out


def _by_labels(kind: str, teams: int, devices: int, labels: npt.NDArray[np.int64] | None) -> Ids:
    if labels is None or not labels.shape[1]:
        raise InputError(f"topology.teams = {kind!r} needs class labels; use 'random' or 'sequential' for regression")
    classes = labels.shape[1]
    width = classes / teams if kind == "worst" else 0.7 * classes
    first = np.arange(teams) * classes / teams
    inside = (np.arange(classes) - np.ceil(first)[:, None]) % classes < np.ceil(first + width)[:, None] - np.ceil(
        first
    )[:, None]
    held = labels @ inside.T.astype(np.int64)  # [N, teams] samples inside each range
    out, size = np.zeros(devices, np.int64), np.zeros(teams, np.int64)
    for i in range(devices):
        best = np.flatnonzero(held[i] == held[i].max())
        out[i] = best[np.argmin(size[best])]
        size[out[i]] += 1
    return out


def build_topology(
    settings: TopologySettings,
    samples: Ids,
    seed: int = 0,
    natural: Ids | None = None,
    labels: npt.NDArray[np.int64] | None = None,
    formed: Ids | None = None,
) -> Topology:
    """The tree of a config over N devices.

    :param samples: training samples per device [N]
    :param natural: the natural team of each device [N], if the data have teams
    :param labels: see `form_teams`
    :param formed: the team of each device [N] that a formation has found; some teams may be empty. Before the formation
        the devices are dealt out in order
    :raises InputError: the settings do not fit each other or the data
    """
    devices = len(samples)
    fogs: tuple[int, ...]
    if settings.fogs == "auto":
        fogs = () if natural is None else (int(natural.max()) + 1,)
    else:
        fogs = settings.fogs if isinstance(settings.fogs, tuple) else (settings.fogs,) if settings.fogs else ()
    for above, below in zip((1, *fogs), (*fogs, devices), strict=True):
        if above > below:
            raise InputError(
                f"topology.fogs = {list(fogs)} puts {below} nodes below {above}: a team would have no devices "
                f"({devices} in all); take fewer teams"
            )
    parents = [np.arange(n) * m // n for m, n in zip((1, *fogs), fogs, strict=False)]
    kind = settings.teams if settings.teams != "auto" else "natural" if natural is not None else "random"
    if kind in FORMED and not fogs:
        raise InputError(
            f"topology.teams = {kind!r}, but the tree is flat; set topology.fogs to the number of teams to form"
        )
    if formed is not None:
        teams = formed
    else:
        first = "sequential" if kind in FORMED else kind
        teams = form_teams(first, fogs[-1], devices, seed, natural, labels) if fogs else np.zeros(devices, np.int64)
    nodes, colocated = (1, *fogs), (False,) * (len(fogs) + 1)
    if settings.clusters:
        if not fogs:
            raise InputError("topology.clusters needs fogs: set topology.fogs to the number of teams")
        parents.append(np.repeat(np.arange(fogs[-1]), settings.clusters))
        teams = _clusters(teams, fogs[-1], settings.clusters, seed, spare=kind in FORMED)
        nodes, colocated = (*nodes, fogs[-1] * settings.clusters), (*colocated[:-1], True, False)
    tree = (*(np.asarray(p, np.int64) for p in parents), teams)
    topology = Topology(
        parents=tree,
        policies=_policies(settings, len(tree)),
        samples=samples,
        nodes=nodes,
        seed=seed,
        colocated=colocated,
    )
    _check_participation(topology, formed=kind in FORMED)
    if kind == "cfl":
        _check_cfl(topology)
    return topology


def _clusters(teams: Ids, fogs: int, clusters: int, seed: int, spare: bool = False) -> Ids:
    """A random first clustering inside every fog, as even as possible. :param spare: clusters may be empty"""
    out = np.empty_like(teams)
    for k in range(fogs):
        mine = np.flatnonzero(teams == k)
        if len(mine) < clusters and not spare:
            raise InputError(
                f"topology.clusters = {clusters}, but fog {k} has {len(mine)} devices: a cluster would have no "
                "devices; take fewer clusters"
            )
        out[mine] = k * clusters + generator(seed, Purpose.CLUSTERS, k).permutation(len(mine)) % clusters
    return out


def _policies(settings: TopologySettings, depth: int) -> tuple[Policy, ...]:
    def spread(name: str, value: object, count: int, neutral: float) -> list[float | int]:
        values = list(value) if isinstance(value, tuple) else [neutral] * (count - 1) + [value] if count else []
        if len(values) != count:
            raise InputError(
                f"topology.{name} has {len(values)} values, the tree has {count} levels for it; "
                f"give one value or {count}"
            )
        return values  # type: ignore[return-value]

    sample = spread("participation", settings.participation, depth, 1.0)
    bursts = [1, *spread("team_rounds", settings.team_rounds, depth - 1, 1)]
    if depth == 1 and settings.team_rounds not in (1, (1,), ()):
        raise InputError(f"topology.team_rounds = {settings.team_rounds}, but the tree is flat: set topology.fogs")
    weight = None if settings.weighting == "auto" else settings.weighting
    poisson = settings.sampling == "poisson"
    if poisson and any(isinstance(s, int) for s in sample):
        raise InputError(
            f"topology.participation = {settings.participation} is a number, but topology.sampling = 'poisson' draws "
            "every child with a probability; give a share, such as 0.1"
        )
    return tuple(
        Policy(sample=s, bursts=int(b), weight=weight, over=settings.over, empty=settings.empty, poisson=poisson)
        for s, b in zip(sample, bursts, strict=True)
    )


def _check_participation(topology: Topology, formed: bool) -> None:
    for d, policy in enumerate(topology.policies):
        of_anybody = formed and d == topology.depth - 1  # how many devices a team gets is not known yet
        most = topology.devices if of_anybody else int(np.bincount(topology.parents[d]).max())
        if isinstance(policy.sample, int) and policy.sample > most:
            above, below = topology.levels[d], topology.levels[d + 1]
            raise InputError(
                f"topology.participation asks for {policy.sample} participants per {above}, "
                f"but no {above} has more than {most} {below}s; take a smaller number or a share (1.0 = all)"
            )


def _check_cfl(topology: Topology) -> None:
    flat = topology.flattened(topology.seed)
    polled = len(flat.poll(0, 0, 0, 0))
    if polled < topology.devices:
        raise InputError(
            f"topology.teams = 'cfl', but {polled} of {topology.devices} devices take part in a round, and CFL parts a "
            "cluster only when it hears all of it; let all devices take part (topology.participation), or take "
            "topology.teams = 'ifca'"
        )
