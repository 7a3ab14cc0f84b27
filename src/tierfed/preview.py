"""What a run would be, before it runs: tree, data, bytes per round, memory."""

from dataclasses import replace
from typing import Any

from tierfed.config import EngineSettings
from tierfed.engine import Engine
from tierfed.formation import forming, pending
from tierfed.offload import BEST, SplitTask
from tierfed.placement import Placement, bench, dry_visit, exchanged_bytes, placements, size
from tierfed.record import task_summary
from tierfed.report.words import amount, duration
from tierfed.setup import World, offloaded
from tierfed.store import MemoryStore
from tierfed.tree import Tree, nbytes


def preview(world: World) -> dict[str, Any]:
    """Facts about a run; one device is visited on its first batch to see its message."""
    engine = world.engine(MemoryStore())
    topology, config = world.topology, world.config
    devices, samples = world.federation.devices, world.plan.samples
    sizes, state = _visit(engine)
    polled, private, exchanged = _polled(engine), nbytes(state), _exchanged(world)
    return {
        "algorithm": str(config.algorithm.get("name")),
        "data": f"{world.federation.name}, {len(devices)} devices, {int(samples.sum())} training samples",
        "samples_per_device": {"fewest": int(samples.min()), "most": int(samples.max())},
        "tree": " - ".join(f"{n} {name}" for n, name in zip(topology.shape, topology.levels, strict=True)),
        **({"team_formation": _formation(world)} if pending(world) else {}),
        "model": task_summary(world.task),
        "engine": f"{world.engine_name} on {world.device}, {config.run.dtype}",
        **({} if world.placement is None else {"offload": world.placement}),
        "rounds": config.run.rounds,
        "device_visits_per_round": round(polled),
        "bytes_per_visit": sizes,
        **({"exchanged_bytes_per_visit": exchanged} if world.config.offload.mode == "split" else {}),
        "device_link_bytes_per_round": round(polled * (sum(sizes.values()) + sum(exchanged.values()))),
        "private_bytes_per_device": private,
        "private_bytes_of_all_devices": private * len(devices),
    }


def _formation(world: World) -> dict[str, Any]:
    """How the teams will be formed before round 1."""
    there = forming(world)
    engine = there.engine(MemoryStore())
    sizes, _ = _visit(engine)
    rounds = world.config.topology.formation_rounds
    total = round(rounds * _polled(engine) * (sizes["down"] + sizes["up"]))
    return {"by": world.config.topology.teams, "rounds": rounds, "bytes": total}


def _visit(engine: Engine) -> tuple[dict[str, int], Tree]:
    """Bytes down and up on a device's own link, and the private state, of a visit of the first device on its first
    batch, without what training exchanges.
    """
    message, reply, state = dry_visit(engine)
    task, inside = engine.task(0), engine.topology.colocated[-1:] == (True,)
    down, up = (0 if inside else size(task.crossing(m)) for m in (message, reply))
    return {"down": down, "up": up}, state


def _exchanged(world: World) -> dict[str, int]:
    """Bytes down and up that the mean device exchanges with its edge while it trains."""
    if not isinstance(world.task, SplitTask):
        return {"down": 0, "up": 0}
    down, up = exchanged_bytes(world.task, world.plan, world.algorithm)
    return {"down": round(float(down.mean())), "up": round(float(up.mean()))}


def placement_rows(world: World) -> list[Placement]:
    """What no offloading, every cut and a trusted edge need; see `tierfed.placement.placements`.

    :raises InputError: the model cannot be cut, or the algorithm goes with no offloading
    """
    config = world.config
    asked = replace(config, engine=EngineSettings(), offload=replace(config.offload, mode="split", cut=BEST))
    whole = replace(world, config=asked, edge=None)
    offloaded(whole)  # whatever does not go with a cut is said now
    return placements(bench(whole.engine(MemoryStore()), world.clock, config.run.rounds), config.offload)


def readable(rows: list[Placement]) -> list[dict[str, str]]:
    """The same for a table."""
    return [
        {
            "placement": row.placement + (" (recommended cut)" if row.recommended else ""),
            "floats at the cut": f"{row.floats:,}" if row.cut else "",
            "up": amount(row.up_bytes, "B"),
            "down": amount(row.down_bytes, "B"),
            "time": duration(row.seconds),
            "energy": amount(row.joules, "J"),
            "on the device": f"{row.device_share:.1%}",
        }
        for row in rows
    ]


def _polled(engine: Engine) -> float:
    """Visits of devices per round."""
    topology, polled = engine.topology, 1.0
    for d, policy in enumerate(topology.policies):
        n = topology.shape[d + 1] / topology.shape[d]
        polled *= (min(policy.sample, n) if isinstance(policy.sample, int) else policy.sample * n) * engine.bursts(d)
    return polled
