"""What a run would be, before it runs: tree, data, bytes per round, memory."""

from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np

from tierfed.augment import Augmentation
from tierfed.choice import visits
from tierfed.config import EngineSettings, EvalSettings, PersonalizeSettings
from tierfed.data.dataset import Part
from tierfed.engine import Engine
from tierfed.engine.crossing import leave
from tierfed.formation import forming, pending
from tierfed.ledger import foreseen
from tierfed.offload import BEST, SplitTask
from tierfed.placement import Placement, bench, dry_visit, exchanged_bytes, placements
from tierfed.record import node_name, task_summary
from tierfed.report.words import amount, duration
from tierfed.setup import World, offloaded
from tierfed.sight import who_sees_what
from tierfed.store import MemoryStore
from tierfed.tree import Tree, nbytes
from tierfed.wire import payload


def preview(world: World) -> dict[str, Any]:
    """Facts about a run; one device of every model is visited on its first batch to see its message."""
    engine = world.engine(MemoryStore())
    topology, config = world.topology, world.config
    devices, samples = world.federation.devices, world.plan.samples
    kinds = np.zeros(len(devices), np.int64) if world.kinds is None else world.kinds
    firsts = [int(np.argmax(kinds == k)) for k in range(len(world.tasks))]
    seen = [_visit(engine, i) for i in firsts]
    sizes, private = seen[0][0], [nbytes(state) for _, state in seen]
    polled, each, exchanged = visits(engine), np.array(private)[kinds], _exchanged(world)
    return {
        "algorithm": str(config.algorithm.get("name")),
        "data": f"{world.federation.name}, {len(devices)} devices, {int(samples.sum())} training samples",
        "samples_per_device": {"fewest": int(samples.min()), "most": int(samples.max())},
        **_drawn(world),
        "tree": " - ".join(f"{n} {name}" for n, name in zip(topology.shape, topology.levels, strict=True)),
        **({} if world.augmentation is None else {"augmentation": _augmentation(world, world.augmentation)}),
        **({"team_formation": _formation(world)} if pending(world) else {}),
        **_models(world),
        "engine": f"{world.engine_name} on {world.device}, {config.run.dtype}",
        **_computed(world),
        **({} if world.placement is None else {"offload": world.placement}),
        **({"privacy": spent} if (spent := foreseen(world)) else {}),
        "rounds": config.run.rounds,
        **({"evaluation": _evaluation(config.eval, len(devices))} if config.eval.devices else {}),
        **({"personalization": _personalization(config.personalize)} if config.personalize.mechanism != "none" else {}),
        "device_visits_per_round": round(polled),
        "bytes_per_visit": sizes,
        **({"exchanged_bytes_per_visit": exchanged} if world.config.offload.mode == "split" else {}),
        "device_link_bytes_per_round": round(polled * (sum(sizes.values()) + sum(exchanged.values()))),
        **({"bytes_before_round_1": _before(world)} if world.transfers else {}),
        **({"attack": _attack(world)} if world.links.attack is not None else {}),
        "private_bytes_per_device": int(each.max()),
        "private_bytes_of_all_devices": int(each.sum()),
        "who_sees_what": [asdict(row) for row in who_sees_what(world)],
    }


def _computed(world: World) -> dict[str, Any]:
    """How visits are computed, and why so."""
    choice = world.choice
    if world.engine_name == "serial":
        return {}
    by = f"{choice.workers} processes" if choice.workers > 1 else "this process"
    if world.engine_name == "ray":
        by = f"{choice.workers or 'as many'} Ray workers{'' if choice.workers else ' as the cluster has room for'}"
    return {"kernel": f"{choice.kernel} ({choice.why})", "visits": f"{choice.chunk} devices at once, by {by}"}


def _models(world: World) -> dict[str, Any]:
    """Sizes of the model, or of every model and the number of devices that have it."""
    if world.kinds is None:
        return {"model": task_summary(world.task)}
    return {
        f"model {name}": {**task_summary(task), "devices": int((world.kinds == k).sum())}
        for k, (name, task) in enumerate(zip(world.kind_names, world.tasks, strict=True))
    }


def _attack(world: World) -> dict[str, Any]:
    """Who attacks."""
    attack = world.links.attack
    assert attack is not None
    names = sorted(node_name(world, attack.level, i) for i in attack.nodes)
    return {"kind": attack.kind, "attackers": ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")}


def _before(world: World) -> dict[str, int]:
    """What crosses the devices' links once."""
    return {t.what: int(t.down_bytes.sum() + t.up_bytes.sum()) for t in world.transfers}


def _evaluation(settings: EvalSettings, devices: int) -> str:
    """Who is evaluated, where that is a sample of the devices."""
    final = ", all of them at the end" if settings.final == "all" else ""
    every = "round" if settings.every == 1 else f"{settings.every} rounds"
    return f"{settings.devices:,} of {devices:,} devices, drawn anew every {every}{final}"


def _personalization(stage: PersonalizeSettings) -> dict[str, Any]:
    """The stage after the training."""
    return {"by": stage.mechanism, "rounds": stage.rounds, "from": f"{stage.start} models"}


def _augmentation(world: World, more: Augmentation) -> dict[str, Any]:
    """What devices will train on beside their own samples, and what crosses their links for it."""
    facts = {k: round(v, 4) if isinstance(v, float) else v for k, v in more.facts.items()}
    down, up = sum(int(t.down_bytes.sum()) for t in more.transfers), sum(int(t.up_bytes.sum()) for t in more.transfers)
    return {"kind": world.config.augment.kind, **facts, "down_bytes": down, "up_bytes": up}


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
    sizes, _ = _visit(engine, 0)
    rounds = world.config.topology.formation_rounds
    total = round(rounds * visits(engine) * (sizes["down"] + sizes["up"]))
    return {"by": world.config.topology.teams, "rounds": rounds, "bytes": total}


def _visit(engine: Engine, device: int) -> tuple[dict[str, int], Tree]:
    """Bytes down and up on a device's own link, and the private state, of a visit of a device on its first batch,
    without what training exchanges.
    """
    message, reply, state = dry_visit(engine, device)
    # as it would travel: an engine over a store that is thrown away
    reply = leave(engine, engine.depth, device, message, reply, 1.0, 0)
    task, inside = engine.task(device), engine.topology.colocated[-1:] == (True,)
    down, up = (0 if inside else payload(task.crossing(m)) for m in (message, reply))
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
