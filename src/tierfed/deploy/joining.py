"""Who a node is, where it is, and whom it lets in."""

import ipaddress
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tierfed.config import Config, GridSettings
from tierfed.deploy.engine import Deployed
from tierfed.deploy.frame import PROTOCOL, Header
from tierfed.deploy.household import Refusal
from tierfed.deploy.journal import digest
from tierfed.deploy.names import ROAMING, Node, folder_name, tree_nodes
from tierfed.deploy.transport import Peer
from tierfed.errors import InputError, nearest
from tierfed.folders import default_folder
from tierfed.session import fingerprint
from tierfed.setup import World

if TYPE_CHECKING:
    from tierfed.deploy.admission import Gate


def deployable(config: Config) -> Config:
    """The config as processes run it: every round is committed, whoever is below counts on that. Of a grid, [algorithm]
    is trained with run.seed.

    :raises InputError: something in it is for simulation alone
    """
    for table, why in (
        ("augment.kind", config.augment.kind != "none"),
        ("offload.mode", config.offload.mode != "none"),
        ("start.run", config.start.run is not None),
        ("personalize.mechanism", config.personalize.mechanism != "none"),
    ):
        if why:
            raise InputError(f"{table} is set, which works in simulation alone (`tierfed run`); leave it out to deploy")
    if config.topology.teams in ("ifca", "cfl"):
        raise InputError(
            f"topology.teams = {config.topology.teams!r} trains to form teams, which works in simulation alone; take "
            "another value, such as 'natural' or 'random'"
        )
    run = replace(config.run, checkpoint_every=1, device="cpu" if config.run.device == "auto" else config.run.device)
    config = replace(config, grid=GridSettings())
    return replace(config, run=run, engine=replace(config.engine, name="serial", address="", gpus=0.0))


def check_world(world: World) -> None:
    """:raises InputError: the algorithm does something that processes cannot"""
    name = world.config.algorithm.get("name")
    if any(tier.reduce == "chain" for tier in world.algorithm.tiers(world.task, world.topology.shape)):
        raise InputError(
            f"{name} passes sums from device to device, and deployed devices have no links to each other; take another "
            "algorithm, or `tierfed run`"
        )
    secured = [n for n, s in world.config.links.items() if s.secure.on]
    if secured:
        raise InputError(
            f"[links.{secured[0]}.secure]: processes make no secure sums yet, so a parent would see every reply; leave "
            "it out, or `tierfed run`"
        )


def check_roaming(world: World) -> None:
    """:raises InputError: nodes change their parent in the run, and may not"""
    rounds = range(world.config.run.rounds)
    if world.config.deploy.roaming or world.topology.depth == 1 or not any(map(world.algorithm.regroup_scope, rounds)):
        return
    raise InputError(
        f"{world.config.algorithm.get('name')} moves devices between fogs; set deploy.roaming = true and issue them "
        "with `tierfed keys issue --roaming`, or let them stay (algorithm.recluster_every = 0)"
    )


def run_folder(config: Config) -> Path:
    """Where the cloud keeps the run."""
    return Path(config.run.out or default_folder(config))


def state_folder(config: Config, name: str) -> Path:
    """Where a fog or a device keeps its state."""
    run = run_folder(config)
    return Path(config.deploy.folder or run.with_name(run.name + ".nodes")) / folder_name(name)


def find(world: World, name: str, tier: str) -> Node:
    """The node of a name.

    :raises InputError: there is none in this tier
    """
    nodes = [n for n in tree_nodes(world.topology, world.federation.devices) if n.tier == tier]
    for one in nodes:
        if one.name == name:
            return one
    raise InputError(f"no {tier} is called {name!r}; {nearest(name, [n.name for n in nodes])}")


def address(world: World, name: str) -> str:
    """Where a cloud or a fog listens: as deploy.addresses says, or its place after deploy.port."""
    settings = world.config.deploy
    if name in settings.addresses:
        return settings.addresses[name]
    inner = [n.name for n in tree_nodes(world.topology, world.federation.devices) if n.tier != "device"]
    return f"{settings.host}:{settings.port + inner.index(name)}"


def check_local(address: str, what: str = "`tierfed up` works") -> None:
    """:raises InputError: others than this machine could reach an address, or be reached by it"""
    host = address.rpartition(":")[0].strip("[]")
    try:
        inside = ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = host == "localhost"
    if not inside:
        raise InputError(
            f"{what} between processes of one machine, but {address} may be another one; set deploy.host and "
            "deploy.addresses to 127.0.0.1, or begin the nodes one by one with certificates (`tierfed keys`)"
        )


def agreed(config: Config) -> str:
    """What parent and child must have in common: everything that a result depends on."""
    settings = config.deploy
    if not settings.devices:
        return digest(fingerprint(config))
    elsewhere = replace(config, data=replace(config.data, path=None))  # every device has a file of its own
    return digest(fingerprint(elsewhere), repr((settings.devices, settings.shape, settings.classes)))


def greeting(world: World, me: Node, fresh: bool = False) -> Header:
    """What a child says of itself. :param fresh: it has lost what it knew"""
    samples = {}
    if me.tier == "device":
        samples = {"samples": int(world.plan.samples[me.index])}
    return {
        "kind": "hello",
        "protocol": PROTOCOL,
        "name": me.name,
        "tier": me.tier,
        "fresh": fresh,
        "config": agreed(world.config),
        "torch": torch.__version__,
        "python": platform.python_version(),
        **samples,
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Door:
    """Lets in who is a child of a node (the protocol `tierfed.deploy.household.Admission`).

    :param gate: what is asked of certificates; none: nobody shows one
    """

    engine: Deployed
    depth: int
    ident: int
    gate: "Gate | None" = None

    def __call__(self, peer: Peer, hello: Header) -> int | Refusal:
        engine, name, tier = self.engine, str(hello.get("name")), str(hello.get("tier"))
        why = self._another_version(hello) or self._stranger(peer, name, tier)
        if why:
            return Refusal(why)
        level, here = engine.below(self.depth), engine.name(self.depth, self.ident)
        child = self._number(name, level)
        if child is None:
            return Refusal(f"{here} knows no {tier} {name!r}; check --name and the config of both")
        counted = int(engine.plan.samples[child]) if level == engine.depth else None
        if engine.counted and hello.get("samples") != counted:
            told = f"{name} has {hello.get('samples')} training samples, {here} counts on {counted}"
            same = "it the data that it had when the run began" if engine.settings.devices else "both the same data"
            return Refusal(f"{told}; give {same} and the same [data]")
        parent = int(engine.topology.ancestor(level, np.array([child]), self.depth)[0])
        if parent == self.ident:
            return child
        there = engine.name(self.depth, parent)
        return Refusal(f"{name} belongs to {there} now", (there, address(engine.world, there)), final=False)

    def _another_version(self, hello: Header) -> str:
        """Why parent and child do not fit together; empty: they do."""
        if hello.get("protocol") != PROTOCOL:
            return f"it speaks protocol {hello.get('protocol')!r}, this node {PROTOCOL}; install one version"
        if hello.get("config") != agreed(self.engine.world.config):
            return f"{hello.get('name')} has another config; give all nodes the same file ([deploy] may differ)"
        return ""

    def _stranger(self, peer: Peer, name: str, tier: str) -> str:
        """Why a peer is not who it says that it is, or may not be here; empty: it may."""
        known = peer.identity
        if self.gate is None:
            return ""
        if known is None:
            return "it has shown no certificate"
        if known.tier != tier:
            return f"wrong tier: it says that it is a {tier}, its certificate is that of {known}"
        if known.parent == ROAMING and not self.engine.settings.roaming:
            return f"{known} may join any parent, but deploy.roaming is off here; issue it for its parent, or set that"
        return self.gate.admit(known, claimed=name)

    def _number(self, name: str, level: int) -> int | None:
        engine = self.engine
        if level == engine.depth:
            return engine.names.index(name) if name in engine.names else None
        _, _, number = name.rpartition("-")
        found = int(number) if number.isascii() and number.isdigit() else -1
        known = 0 <= found < engine.topology.nodes[level] and engine.name(level, found) == name
        return found if known else None
