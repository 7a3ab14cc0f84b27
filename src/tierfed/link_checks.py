"""Whether what happens on links goes with an algorithm and a tree: asked before the first round."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from tierfed.algorithm import Algorithm
from tierfed.algorithms import make
from tierfed.config import Config, personalization
from tierfed.engine import Engine
from tierfed.errors import InputError
from tierfed.links import Case, Links, build_links, flipped, parted
from tierfed.placement import dry_visit
from tierfed.plan import Plan
from tierfed.topology import UNITS, Topology


def linked(
    config: Config, topology: Topology, plan: Plan, classes: Sequence[str], statistics: Iterable[str]
) -> tuple[Links, Plan]:
    """The links of a run, and its plan with what attackers train on.

    :param statistics: names of entries of the model that are not trained
    :raises InputError: a link or a tier that the tree does not have, an attack that the data do not allow
    """
    links = build_links(
        config.links,
        config.attack,
        topology.levels,
        topology.shape,
        config.run.seed,
        expected=topology.expected,
        weight=int(max(topology.samples.sum(), topology.devices)),
    )
    x, y, train = flipped(links.attack, plan.x, plan.y, plan.train, len(classes))
    return replace(links, whole=frozenset(statistics)), replace(plan, x=x, y=y, train=train)


def check_links(config: Config, algorithm: Algorithm, engine_of: Callable[[Algorithm], Engine]) -> None:
    """Of a run, and of the stage after its training.

    :raises InputError: something on a link does not go with the algorithm or the tree, and why
    """
    _check(config, engine_of(algorithm))
    later = personalization(config)
    if later is None:
        return
    name = str(later.pop("name"))
    later.pop("label", None)
    try:
        _check(replace(config, algorithm={"name": name}), engine_of(make(name, later, "personalize.options")))
    except InputError as err:
        raise InputError(f"personalize.mechanism = {name!r}: {err}") from None


def _check(config: Config, engine: Engine) -> None:
    """:raises InputError: see `check_links`"""
    links, name, topology = engine.links, str(config.algorithm.get("name")), engine.topology
    busy = [d for d in range(engine.depth) if links.at(d).steps or links.at(d).rule is not None]
    attacked = [] if links.attack is None else [links.attack.level - 1]
    if not busy and not attacked:
        return
    sent, reply, _ = dry_visit(engine)
    change, rest = parted(sent, reply, links.whole)
    for depth in sorted({*busy, *attacked}):
        link = links.at(depth)
        where = f"[links.{topology.links[depth]}]" if depth in busy else f"attack.tier = {config.attack.tier!r}"
        # whoever is heard through others: nothing of these happens on links in between, nor a rule at them
        above = next((d for d in range(depth + 1) if engine.reach(d) > depth + 1), None)
        if above is None and link.rule is not None:
            above = next((d for d in range(depth) if engine.reach(d) > depth), None)
        if above is not None and depth in busy:
            raise InputError(
                f"{where}: with {name} a {topology.levels[above]} hears every {topology.levels[-1]} by itself, and who "
                f"is between them hands on what it gets; name the link {topology.links[-1]} alone, without a rule"
            )
        case = Case(
            algorithm=name,
            link=link,
            depth=depth,
            tier=engine.tiers[depth],
            levels=topology.levels,
            children=fewest_polled(topology, depth),
            sent=sent,
            reply=reply,
            change=change,
            rest=rest,
            unit=UNITS[engine.units[depth]],
            relays=tuple(t.relay for t in engine.tiers),
            inside=bool(topology.colocated) and topology.colocated[depth],
            split=config.offload.mode == "split",
            attack=links.attack if depth in attacked else None,
        )
        if reason := case.refused():
            raise InputError(f"{where}: {reason}")


def fewest_polled(topology: Topology, depth: int) -> int:
    """The children that a node of a depth polls at least, of those that have any."""
    sizes = np.bincount(topology.parents[depth], minlength=topology.nodes[depth])
    least, sample = int(sizes[sizes > 0].min()), topology.policies[depth].sample
    return min(least, sample) if isinstance(sample, int) else max(1, round(sample * least))
