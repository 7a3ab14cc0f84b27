"""Who sees what in a run: for every tier what comes to it, from whom, and in which form."""

from dataclasses import dataclass

from tierfed.engine import Engine
from tierfed.links import OWED, parted
from tierfed.placement import dry_visit
from tierfed.setup import World
from tierfed.store import MemoryStore
from tierfed.tree import Tree, leaves

CLEAR = "in the clear"


@dataclass(frozen=True, kw_only=True)
class Sight:
    """One row: `who` sees `what` of each `whom`, in the form `how`."""

    who: str
    whom: str
    what: str
    how: str


def who_sees_what(world: World) -> list[Sight]:
    """What every tier of a run sees of the others, from the cloud down; one device is visited on its first batch to
    learn what its messages hold.
    """
    engine, levels = world.engine(MemoryStore()), world.topology.levels
    sent, reply, _ = dry_visit(engine)
    change, rest = parted(sent, reply, engine.links.whole)
    rows = []
    for depth in range(engine.depth):
        rows += _heard(engine, depth, change, rest)
        rows.append(Sight(who=levels[depth], whom=levels[depth + 1], what="numbers of samples and devices", how=CLEAR))
    for transfer in world.transfers:
        if transfer.up_bytes.any():
            ends = levels[-2:-1] if transfer.end == "parent" else levels[:-1]
            rows += [Sight(who=who, whom=levels[-1], what=transfer.what, how=CLEAR) for who in ends]
        if transfer.down_bytes.any():
            rows.append(Sight(who=levels[-1], whom=levels[-2], what=transfer.what, how=CLEAR))
    if holds(sent):
        what = ", ".join("model" if k == "params" else k for k in sent)
        rows.append(Sight(who=levels[-1], whom=levels[-2], what=what, how=CLEAR))
    return rows


def _heard(engine: Engine, depth: int, change: Tree, rest: Tree) -> list[Sight]:
    """What the nodes of a depth hear from those below."""
    levels, to, last = engine.topology.levels, engine.reach(depth), engine.depth
    who, tier, link = levels[depth], engine.tiers[depth], engine.links.at(depth)
    through = next((d for d in range(depth) if engine.reach(d) > depth), None)
    own = [("model's change" if k == "params" else "increments" if k == OWED else k) for k in change]
    other = ["statistics and other entries of the model" if k == "params" else k for k in rest]
    if through is not None:  # handed on as it is, so it is seen here too
        to, link = last, engine.links.above(last)
    elif to < last:
        below, rule = engine.tiers[to], engine.links.at(to).rule
        if below.reduce == "stack":
            return []  # a server below says nothing of its children
        how = (rule.shows if rule is not None else "") or "mean"
        kind = f"{how} of what its children send" if below.relay else f"its model, made with the {how}"
        own, other = [kind], []
    elif to > depth + 1:
        link = engine.links.above(to)
    if tier.reduce == "chain":
        return [Sight(who=who, whom=who, what=f"the sum of what its {levels[-1]}s send, along a path", how=CLEAR)]
    forms = [step.shows for step in link.steps]
    how = "masked, only the sum can be read" if link.joint else ", ".join([CLEAR, *forms])
    out = [Sight(who=who, whom=levels[to], what=", ".join(own), how=how)] if own else []
    return out + ([Sight(who=who, whom=levels[to], what=", ".join(other), how=CLEAR)] if other else [])


def holds(message: Tree) -> bool:
    """Whether there is anything in a message."""
    return any(True for _ in leaves(message))
