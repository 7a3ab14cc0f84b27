"""What another run has left, as the beginning of this one: models, the tree, and what it takes to hand them over."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tierfed.algorithm import Tier
from tierfed.data import Federation
from tierfed.data.dataset import Part
from tierfed.data.drawn import Held
from tierfed.engine import Engine
from tierfed.engine.evaluate import message_bytes, models
from tierfed.engine.node import weighted_mean
from tierfed.errors import InputError
from tierfed.result import Result
from tierfed.setup import World
from tierfed.transfers import Transfer
from tierfed.tree import Params, nbytes, take

PARTS: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """What a run begins with in the place of the initial model."""

    common: Params
    """What inner nodes begin with, and the devices too where they have none of their own."""
    own: tuple[Params, ...]
    """The model of each device [N], or nothing."""
    parents: tuple[npt.NDArray[np.int64], ...] | None
    """The tree as the other run left it, teams that were formed or have changed included; none: it had another one."""
    transfers: tuple[Transfer, ...]
    """What crosses the links before round 1."""
    round: int
    """Of the other run."""


def left_by(before: Result, world: World) -> Start:
    """What a finished run has left for a world with the same devices and the same models.

    The common model is the cloud's. Entries that the cloud does not have are the sample-weighted mean of the devices'
    models; different models have none in common. What this costs is counted: the last message that every device gets,
    and what the devices send of their models where the tiers begin with something that the cloud does not have.

    :raises InputError: the run is not finished, or at another round than asked for; other devices, another model; no
        global model where one is asked for
    """
    asked, engine = world.config.start, before.engine
    _check(before, world)
    cloud = engine.tiers[0].model(engine.kept(0, 0)) or {}
    complete = world.kinds is None and cloud.keys() >= set(world.task.keys)
    if asked.of == "global" and not complete:
        raise InputError(
            f"{before.world.config.algorithm.get('name')} has no complete global model to begin with; take the "
            "devices' own: personalize.start = 'personal' (start.of)"
        )
    n = np.arange(len(world.federation))
    own = tuple(m.personal_pre for m in models(engine, n, post=False)) if asked.of == "personal" else ()
    common = world.task.init() if world.kinds is not None else _common(cloud, own, world)
    same_tree = before.world.config.topology == world.config.topology
    return Start(
        common=_like(common, world.task.init()),
        own=tuple(_like(p, world.task_of(i).init()) for i, p in enumerate(own)),
        parents=engine.topology.parents if same_tree else None,
        transfers=_handed_over(engine, world, common, own, cloud.keys()),
        round=engine.round,
    )


def _check(before: Result, world: World) -> None:
    asked, at, planned = world.config.start, before.engine.round, before.world.config.run.rounds
    if at < planned and not any(e["event"] == "stop" for e in before.events):
        raise InputError(
            f"the run in {before.folder} is not finished: round {at} of {planned}; end it first with `tierfed resume "
            f"{before.folder}`"
        )
    if asked.round not in (None, at):
        raise InputError(
            f"start.round = {asked.round}, but the run in {before.folder} is at round {at}; take that, or leave it out"
        )
    first, second = before.world.federation, world.federation
    if first.devices != second.devices or not all(_same_rows(first, second, part) for part in PARTS):
        raise InputError(
            f"the {len(second)} devices of this run have other data than the {len(first)} of the run in "
            f"{before.folder}; give both the same [data] and run.seed (else a model would be tested on what it "
            "was trained with)"
        )
    if any(_shapes(world, i) != _shapes(before.world, i) for i in range(len(second))):
        raise InputError(f"the run in {before.folder} has another model than this one; give both the same [model]")


def _same_rows(a: Federation, b: Federation, part: Part) -> bool:
    one, other = a.part(part), b.part(part)
    if isinstance(one, Held) and isinstance(other, Held):
        return one.mark() == other.mark()
    return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


def _shapes(world: World, device: int) -> dict[str, torch.Size]:
    """The shapes of a device's model."""
    return {k: v.shape for k, v in world.task_of(device).init().items()}


def _common(cloud: Params, own: Sequence[Params], world: World) -> Params:
    """The cloud's model; what it lacks is the mean of the devices', weighted by their samples."""
    keys = world.task.keys
    if cloud.keys() >= set(keys):
        return take(cloud, keys)
    share = world.plan.samples / world.plan.samples.sum()
    return {**weighted_mean([take(p, keys) for p in own], share), **cloud}


def _like(params: Params, initial: Params) -> Params:
    """The entries of a model, in its order, kind and place."""
    return {k: params[k].to(t) for k, t in initial.items()}


def _handed_over(
    engine: Engine, world: World, common: Params, own: Sequence[Params], at_cloud: Collection[str]
) -> tuple[Transfer, ...]:
    """Down, the last messages, or the common model; up, what the tiers begin with and the cloud does not have."""
    devices = np.arange(len(world.federation))
    down = message_bytes(engine, devices) if own else np.full(len(devices), nbytes(common))
    shared = world.algorithm.shared(world.task)
    missing = [k for k in shared if k not in at_cloud]
    tiers = world.algorithm.tiers(world.task, world.topology.shape)
    if own and any(_knows_models(t, take(common, shared)) for t in tiers):
        missing = shared
    up = np.array([nbytes(take(p, missing)) for p in own] or [0] * len(devices))
    same = not (own and any(t.sees for t in engine.tiers))
    moved = (
        Transfer(what="models to begin with", down_bytes=down, up_bytes=0 * down, common=same),
        Transfer(what="models of the devices", down_bytes=0 * up, up_bytes=up),
    )
    return tuple(t for t in moved if (t.down_bytes + t.up_bytes).any())


def _knows_models(tier: Tier, shared: Params) -> bool:
    """Whether a tier begins with what every single device has: their mean, or a row that holds a model."""
    row = tier.child(shared, 0) if tier.sees or tier.watches else {}
    return tier.means or any(isinstance(v, dict) and v and v.keys() == shared.keys() for v in row.values())
