"""What a run would be, before it runs: tree, data, bytes per round, memory."""

from typing import Any, cast

from tierfed.data.dataset import Part
from tierfed.engine import Engine
from tierfed.engine.evaluate import message_to
from tierfed.formation import forming, pending
from tierfed.record import task_summary
from tierfed.setup import World
from tierfed.store import MemoryStore
from tierfed.tree import Tree, nbytes, stack
from tierfed.wire import payload_bytes


def preview(world: World) -> dict[str, Any]:
    """Facts about a run; one device is visited on its first batch to see its message."""
    engine = world.engine(MemoryStore())
    topology, config = world.topology, world.config
    devices, samples = world.federation.devices, world.plan.samples
    sizes, state = _visit(world, engine)
    polled, private = _polled(engine), nbytes(state)
    return {
        "algorithm": str(config.algorithm.get("name")),
        "data": f"{world.federation.name}, {len(devices)} devices, {int(samples.sum())} training samples",
        "samples_per_device": {"fewest": int(samples.min()), "most": int(samples.max())},
        **_drawn(world),
        "tree": " - ".join(f"{n} {name}" for n, name in zip(topology.shape, topology.levels, strict=True)),
        **({"team_formation": _formation(world)} if pending(world) else {}),
        "model": task_summary(world.task),
        "engine": f"{world.engine_name} on {world.device}, {config.run.dtype}",
        "rounds": config.run.rounds,
        "device_visits_per_round": round(polled),
        "bytes_per_visit": sizes,
        "device_link_bytes_per_round": round(polled * (sizes["down"] + sizes["up"])),
        "private_bytes_per_device": private,
        "private_bytes_of_all_devices": private * len(devices),
    }


def _drawn(world: World) -> dict[str, Any]:
    """How many rows were asked for on each device, and where the data have fewer."""
    said = {}
    for part, wanted in (("train", world.config.data.draw.train), ("test", world.config.data.draw.test)):
        sizes = world.federation.sizes(cast("Part", part))
        if wanted is not None:
            fewer = int((sizes < wanted).sum())
            said[part] = f"{wanted} each" + (f", fewer on {fewer} devices (fewest: {sizes.min()})" if fewer else "")
    return {"drawn": said} if said else {}


def _formation(world: World) -> dict[str, Any]:
    """How the teams will be formed before round 1."""
    there = forming(world)
    engine = there.engine(MemoryStore())
    sizes, _ = _visit(there, engine)
    rounds = world.config.topology.formation_rounds
    total = round(rounds * _polled(engine) * (sizes["down"] + sizes["up"]))
    return {"by": world.config.topology.teams, "rounds": rounds, "bytes": total}


def _visit(world: World, engine: Engine) -> tuple[dict[str, int], Tree]:
    """Bytes down and up, and the private state, of a visit of the first device on its first batch."""
    message, data = message_to(engine, 0), world.plan.one(0, world.algorithm, 0, 0)
    first = data._replace(rows=data.rows[:, :1], live=data.live[:, :1], seed=data.seed[:, :1])
    up, state = world.algorithm.device(world.task, message, engine.own(0), first)
    return {"down": int(payload_bytes(stack([message]), 1)[0]), "up": int(payload_bytes(stack([up]), 1)[0])}, state


def _polled(engine: Engine) -> float:
    """Visits of devices per round."""
    topology, polled = engine.topology, 1.0
    for d, policy in enumerate(topology.policies):
        n = topology.shape[d + 1] / topology.shape[d]
        polled *= (min(policy.sample, n) if isinstance(policy.sample, int) else policy.sample * n) * engine.bursts(d)
    return polled
