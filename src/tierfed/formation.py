"""Teams by clustered federated learning: a few rounds of IFCA or CFL before round 1; a device joins its cluster's team.

The rounds are those of the real algorithm on a flat tree, for there are no teams yet: every device talks to the cloud
over a link of its own, "cloud-device", and that is counted. What was trained is thrown away; the teams stay.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tierfed.algorithm import Algorithm, Info, Tier
from tierfed.algorithms.cfl import CFL
from tierfed.algorithms.ifca import IFCA, Clusters
from tierfed.cost import RoundCost, link_distances
from tierfed.engine import Engine
from tierfed.faults import at
from tierfed.links import NONE
from tierfed.record import node_name
from tierfed.rng import Purpose, bits
from tierfed.setup import World
from tierfed.store import MemoryStore
from tierfed.task import Task
from tierfed.topology import FORMED, build_topology
from tierfed.tree import Params, Tree, scalar

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Choices(Clusters):
    """IFCA's cloud; a device's row: the cluster that it chose last, -1 before it was heard."""

    watches = True

    def child(self, params: Params, ident: int) -> Tree:
        return {"cluster": scalar(-1.0, params)}

    def watch(self, state: Tree, row: Tree, up: Tree, info: Info) -> Tree:
        return {"cluster": torch.argmax(up["chosen"]).to(row["cluster"].dtype)}


@dataclass(frozen=True, kw_only=True)
class Choosing(IFCA):
    """IFCA on a flat tree whose cloud remembers who chose what."""

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        return (Choices(**vars(super().tiers(task, shape)[0])),)


@dataclass(frozen=True, kw_only=True, eq=False)
class Formation:
    """What a formation has found."""

    teams: Ids  # [N]
    unreached: int  # devices that were never heard
    cost: RoundCost  # of all its rounds


def pending(world: World) -> bool:
    """Whether the teams of a world have to be formed before its first round."""
    return world.config.topology.teams in FORMED


def forming(world: World) -> World:
    """The world in which the teams are formed: IFCA or CFL with a cluster for each team, flat, with randomness of its
    own; devices, data, model, engine and local training are those of the run, faults those of its lowest link.
    """
    config, local = world.config, {f.name: getattr(world.algorithm, f.name) for f in fields(Algorithm)}
    seed = int(bits(config.run.seed, Purpose.FORMATION)[0] >> np.uint64(1))
    lowest, clusters = world.topology.depth - 1, _teams(world)
    faults = replace(config.faults, dropout=at(config.faults.dropout, lowest), loss=at(config.faults.loss, lowest))
    algorithm: Algorithm = (
        Choosing(**local, clusters=clusters, seed=seed)
        if config.topology.teams == "ifca"
        else CFL(**local, max_clusters=clusters, start=1)
    )
    distances = link_distances(world.topology.seed, 0, world.topology.devices)
    return replace(
        world,
        config=replace(config, faults=faults),
        algorithm=algorithm,
        links=NONE,
        plan=replace(world.plan, seed=seed),
        topology=world.topology.flattened(seed),
        clock=replace(world.clock, distances=(distances,)),
        edge=None if config.offload.mode == "edge" else world.edge,  # nobody has raw data before teams are there
    )


def form(world: World) -> Formation:
    """Runs the formation of a world; the world itself stays as it is."""
    there = forming(world)
    engine = there.engine(MemoryStore())
    costs = []
    for _ in range(world.config.topology.formation_rounds):
        log = engine.step()
        costs.append(there.clock.price(there.topology, [1], log.bursts, log.visits))
    found = clusters_of(engine)
    return Formation(teams=settle(found, _teams(world)), unreached=int((found < 0).sum()), cost=summed(costs))


def with_teams(world: World, teams: npt.ArrayLike) -> World:
    """The world with the teams that its formation has found [N]."""
    topology = build_topology(
        world.config.topology,
        world.plan.samples,
        world.config.run.seed,
        world.federation.natural,
        formed=np.asarray(teams, np.int64),
    )
    return replace(world, topology=replace(topology, colocated=world.topology.colocated))


def clusters_of(engine: Engine) -> Ids:
    """The cluster of each device [N]; -1: it never chose one."""
    return np.array([int(r["cluster"]) for r in engine.rows(0, np.arange(engine.topology.devices))], np.int64)


def settle(clusters: Ids, teams: int) -> Ids:
    """Teams [N] from clusters [N]. Who has none (-1) joins the smallest team that has devices, the first among
    equals; where nobody has one, the smallest of all.
    """
    out = clusters.copy()
    size = np.bincount(out[out >= 0], minlength=teams)
    there = np.flatnonzero(size) if size.any() else np.arange(teams)
    for i in np.flatnonzero(out < 0):
        out[i] = there[np.argmin(size[there])]
        size[out[i]] += 1
    return out


def summed(costs: list[RoundCost]) -> RoundCost:
    """The cost of some rounds together."""

    def total(name: str) -> Any:
        values = [getattr(c, name) for c in costs]
        return tuple(map(sum, zip(*values, strict=True))) if isinstance(values[0], tuple) else sum(values)

    return RoundCost(**{f.name: total(f.name) for f in fields(RoundCost)})


def event(world: World, formation: Formation) -> dict[str, Any]:
    """The formation in the log of a run: how large every team is, and what it took; bytes, seconds, joules."""
    names = [node_name(world, _level(world), k) for k in range(_teams(world))]
    cost, settings = formation.cost, world.config.topology
    return {
        "round": 0,
        "event": "formation",
        "method": settings.teams,
        "rounds": settings.formation_rounds,
        "teams": dict(zip(names, np.bincount(formation.teams, minlength=len(names)).tolist(), strict=True)),
        "unreached": formation.unreached,
        "bytes": sum(cost.down_bytes) + sum(cost.up_bytes),
        "seconds": cost.round_seconds,
        "joules": sum(cost.link_joules) + cost.compute_joules,
    }


def _level(world: World) -> int:
    """The level of the teams: the lowest above the devices, clusters inside fogs excepted."""
    return world.topology.depth - (2 if world.config.topology.clusters else 1)


def _teams(world: World) -> int:
    """Number M of teams."""
    return world.topology.nodes[_level(world)]
