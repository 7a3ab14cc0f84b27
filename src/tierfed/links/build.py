"""The links of a run from its config."""

import itertools
from collections.abc import Mapping, Sequence

from tierfed.errors import InputError, nearest
from tierfed.links.attacks import AttackSettings, attack_of
from tierfed.links.compress import Compress
from tierfed.links.link import Link, Links, Step
from tierfed.links.rules import Robust
from tierfed.links.settings import LinkSettings

ALL = "all"


def build_links(
    settings: Mapping[str, LinkSettings],
    attack: AttackSettings,
    levels: Sequence[str],
    shape: Sequence[int],
    seed: int,
) -> Links:
    """What happens to replies on every level of links.

    :param settings: by the names of links, see `link_names`; one that is named is not as `all` says
    :param levels: of the tree, cloud first; :param shape: nodes per level
    :raises InputError: a link or a tier that the tree does not have
    """
    names = link_names(levels)
    for name in settings:
        if name not in (*names, ALL):
            raise InputError(
                f"[links.{name}]: the tree has the links {', '.join(names)} ({ALL!r}: all of them); "
                f"{nearest(name, [*names, ALL])}"
            )
    found = [settings.get(name, settings.get(ALL, LinkSettings())) for name in names]
    below = tuple(_link(s) for s in found)
    plain = all(not link.steps and link.rule is None for link in below)
    return Links(below=() if plain else below, attack=attack_of(attack, tuple(levels), tuple(shape), seed))


def link_names(levels: Sequence[str]) -> list[str]:
    """Names of the levels of links, from the cloud down."""
    return [f"{above}-{below}" for above, below in itertools.pairwise(levels)]


def _link(settings: LinkSettings) -> Link:
    steps: list[Step] = [] if settings.compress.kind == "none" else [Compress(settings=settings.compress)]
    rule = None if settings.reduce.rule == "mean" else Robust(settings=settings.reduce)
    return Link(steps=tuple(steps), rule=rule)
