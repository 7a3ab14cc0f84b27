"""The links of a run from its config."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tierfed.errors import InputError, nearest
from tierfed.links.attacks import AttackSettings, attack_of
from tierfed.links.compress import Compress
from tierfed.links.link import Link, Links, Rule, Step
from tierfed.links.private import Clipped, Noised, noise_depth
from tierfed.links.rules import Robust
from tierfed.links.secure import MaskedChange, SecureMean
from tierfed.links.settings import LinkSettings

ALL = "all"
Expected = Callable[[int, int], npt.NDArray[np.float64] | None]


def build_links(
    settings: Mapping[str, LinkSettings],
    attack: AttackSettings,
    levels: Sequence[str],
    shape: Sequence[int],
    seed: int,
    expected: Expected = lambda depth, below: None,
    weight: int = 1,
) -> Links:
    """What happens to replies on every level of links.

    :param settings: by the names of links, see `link_names`; one that is named is not as `all` says
    :param levels: of the tree, cloud first; :param shape: nodes per level
    :param expected: (depth, levels of relays below) -> [nodes] children that count in the mean, where their number is
        drawn
    :param weight: the most that all children of a node can weigh together
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
    below = [_link(s, noise_depth(s.privacy, d, levels) > d, weight) for d, s in enumerate(found)]
    for depth, s in enumerate(found):
        if s.privacy.clip is not None and (at := noise_depth(s.privacy, depth, levels)) <= depth:
            below[at] = _noising(below[at], s, names[at : depth + 1], expected(at, depth - at))
    plain = all(not link.steps and link.rule is None for link in below)
    return Links(below=() if plain else tuple(below), attack=attack_of(attack, tuple(levels), tuple(shape), seed))


def real(links: Links) -> Links:
    """The same with noise that nobody can foresee."""

    def one(part: Any) -> Any:
        return replace(part, real=True) if hasattr(part, "real") else part

    below = [replace(link, steps=tuple(map(one, link.steps)), rule=one(link.rule)) for link in links.below]
    return replace(links, below=tuple(below))


def link_names(levels: Sequence[str]) -> list[str]:
    """Names of the levels of links, from the cloud down."""
    return [f"{above}-{below}" for above, below in itertools.pairwise(levels)]


def _link(settings: LinkSettings, own: bool, weight: int) -> Link:
    """:param own: children add noise themselves"""
    steps: list[Step] = []
    rule: Rule | None = None if settings.reduce.rule == "mean" else Robust(settings=settings.reduce)
    if settings.privacy.clip is not None:
        steps.append(Clipped(settings=settings.privacy, own=own))
    if settings.compress.kind != "none":
        steps.append(Compress(settings=settings.compress))
    if settings.secure.on:
        if rule is not None:
            raise InputError(
                f"reduce.rule = {settings.reduce.rule!r} compares the replies of children, which a secure sum hides; "
                "set reduce.rule = 'mean' or secure.on = false"
            )
        steps.append(MaskedChange(settings=settings.secure, weight=weight))
        rule = SecureMean(step=MaskedChange(settings=settings.secure, weight=weight))
    return Link(steps=tuple(steps), rule=rule)


def _noising(
    link: Link, settings: LinkSettings, names: Sequence[str], expected: npt.NDArray[np.float64] | None
) -> Link:
    """The link whose parents add the noise of the last of the links `names`, of which it is the first."""
    if link.rule is not None and not isinstance(link.rule, SecureMean):
        raise InputError(
            f"[links.{names[-1]}.privacy] adds noise to a mean, of which a child is a known share; another rule of the "
            "same nodes makes no mean: set reduce.rule = 'mean', or noise_at = 'child'"
        )
    if len(names) > 1 and link.steps:
        raise InputError(
            f"[links.{names[-1]}.privacy] lets noise be added above [links.{names[0]}], which changes what travels by "
            "itself: no guarantee holds; set noise_at = 'parent', or leave that link as it is"
        )
    inner = link.rule if isinstance(link.rule, SecureMean) else None
    noise = Noised(settings=settings.privacy, below=len(names) - 1, expected=expected, inner=inner)
    return replace(link, rule=noise)
