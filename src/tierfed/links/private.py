"""Differential privacy on links: a child clips its change; noise is added by the child, by its parent, or above.

The unit that is protected is the child: the device, or on a higher link a whole team. With noise at a parent a release
is the noised mean of one burst,

    mean_i w_i clip(x_i, C)  ->  sum_i clip(x_i, C) / n + N(0, (z C / n)^2),

n: the children that were heard; under Poisson sampling the number that is expected, so that n says nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Lt

from tierfed.errors import InputError
from tierfed.links.case import Case
from tierfed.links.link import At, Heard, Ids, Weights, parted, rejoined
from tierfed.links.secure import SecureMean
from tierfed.privacy.accounting import Accountant
from tierfed.privacy.clipping import ROUNDING, Adaptive, clip, clip_by_layer, even_bounds, norm
from tierfed.privacy.noise import Delta, Source, counted, noised, secure
from tierfed.rng import Purpose
from tierfed.settings import NonNegative, Positive
from tierfed.tree import Tree, scale, tmap

BOUND = "bound"


@dataclass(frozen=True, kw_only=True)
class AdaptiveSettings:
    """The bound of clipping follows a quantile of the norms (Andrew et al. 2021)."""

    quantile: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of the children whose changes shall be shorter than the bound; none: the bound is `clip` in all rounds."""
    rate: Positive = 0.2
    """How fast the bound follows."""
    noise: Positive = 10.0
    """Standard deviation of the noise on the number of children with shorter changes."""


@dataclass(frozen=True, kw_only=True)
class PrivacySettings:
    """Differential privacy of the children of a link: of devices, or of whole teams."""

    clip: Positive | None = None
    """C: longest change that a child sends, as an L2 norm over the whole model; none: no differential privacy here."""
    layers: Literal["flat", "even"] = "flat"
    """flat: the norm of the whole change is bounded; even: that of each of its L tensors, by C / sqrt(L)."""
    noise_multiplier: NonNegative = 1.0
    """z: the standard deviation of the noise on a sum is z C; 0: changes are clipped, and nothing is promised."""
    noise_at: str = "parent"
    """Who adds the noise: "child", "parent", or the name of a level above which fogs only relay, such as "cloud"."""
    delta: Delta = 1e-5
    """Probability with which the promise may fail; below 1 / (number of children)."""
    epsilon: Positive | None = None
    """The budget: the run stops before it is exceeded; none: it is only counted."""
    accountant: Accountant = "auto"
    """rdp: Renyi divergences; pld: privacy loss distributions; auto: pld where it knows the sampling."""
    adaptive: AdaptiveSettings = field(default_factory=AdaptiveSettings)

    @property
    def rule(self) -> Adaptive | None:
        """How the bound follows the norms; none: it does not."""
        a = self.adaptive
        return None if a.quantile is None else Adaptive(quantile=a.quantile, rate=a.rate, noise=a.noise)

    @property
    def deviation(self) -> float:
        """Of the noise on the sum of the changes, in units of the bound."""
        rule, z = self.rule, self.noise_multiplier
        return z if rule is None or not z else rule.multiplier(z)


def _source(real: bool, *key: int) -> Source:
    return secure() if real else counted(*key)


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """A child clips its change, and adds noise to it where `own` says so.

    :param real: the noise is unknown to everybody else
    """

    settings: PrivacySettings
    own: bool = False
    real: bool = False
    name = "privacy"
    joint = False

    @property
    def shows(self) -> str:
        return "clipped and noised" if self.own and self.settings.noise_multiplier else "clipped"

    def refuses(self, case: Case) -> str:
        if case.open:
            return (
                f"{case.algorithm} sends {case.open} beside the change of the model, which nothing clips or noises: "
                "no guarantee holds; take an algorithm that sends changes alone, such as fedavg"
            )
        if self.own and self.settings.rule is not None:
            return "adaptive.quantile needs noise at the parent, who counts whose change was short; leave one out"
        others = [s.name for s in case.link.steps if s.name not in (self.name, "secure")]
        if others and not self.own:
            return (
                f"{others[0]} changes what was clipped, so a child could move the mean by more than clip / (their "
                "number): no guarantee holds; set noise_at = 'child', or leave one out"
            )
        return ""

    def send(self, change: Tree, memory: Tree, at: At) -> tuple[Tree, Tree]:
        s = self.settings
        bound = float(at.told[BOUND]) if BOUND in at.told else float(s.clip or math.inf)
        short = clip(change, bound) if s.layers == "flat" else clip_by_layer(change, even_bounds(change, bound))
        if self.own and s.noise_multiplier:
            short = noised(short, s.noise_multiplier * bound, _source(self.real, *at.key(Purpose.NOISE)))
        return short, {}

    def receive(self, wire: Tree, at: At) -> Tree:
        return wire


@dataclass(frozen=True, kw_only=True)
class Noised:
    """A parent adds noise to the mean of the changes of its children.

    :param below: levels of relays between the parent and the children that clip
    :param inner: how the mean is made; none: of the replies
    :param expected: [nodes] children that count, of Poisson sampling; none: those that were heard
    """

    settings: PrivacySettings
    below: int = 0
    expected: Weights | None = None
    real: bool = False
    inner: SecureMean | None = None

    @property
    def shows(self) -> str:
        return "noised mean" if self.settings.noise_multiplier else "mean of clipped changes"

    def refuses(self, case: Case) -> str:
        tier, link = case.tier, case.depth + self.below
        if tier.watches or tier.sees:
            return (
                f"with {case.algorithm} a {case.parent} remembers every child's own reply and acts on it, beside the "
                "mean that is noised: no guarantee holds; set noise_at = 'child', or take another algorithm"
            )
        if not all(case.relays[case.depth + 1 : link + 1]):
            return (
                f"with {case.algorithm} the nodes between a {case.parent} and the {case.levels[link + 1]}s average by "
                "themselves, so what one reply does to the noised mean has no bound; set noise_at = 'parent'"
            )
        devices = link + 2 == len(case.levels)
        wanted = ("devices", "children") if devices else ("children",)
        if case.unit not in wanted:
            return (
                f"a {case.parent} weighs what it hears by {case.unit}, so one of those below can move the mean by more "
                f"than clip / (their number); set topology.weighting = '{wanted[0]}'"
            )
        if not devices and case.relays[link + 1]:
            return (
                f"with {case.algorithm} a {case.levels[link + 1]} only hands on what it hears, so there is nothing of "
                f"its own to protect; protect the {case.levels[-1]}s: [links.{case.levels[-2]}-{case.levels[-1]}]"
            )
        if (self.below or self.inner is not None) and self.settings.rule is not None:
            return (
                f"adaptive clipping counts whose change was shorter than the bound, and a {case.parent} does not hear "
                "the children by themselves; leave adaptive.quantile out, or set noise_at = 'parent' without secure "
                "sums"
            )
        return ""

    def tell(self, memory: Tree, polled: Ids, at: At) -> Tree:
        told = {} if self.inner is None else self.inner.tell(memory, polled, at)
        return told if self.settings.rule is None else {**told, BOUND: self._bound(memory)}

    def _bound(self, memory: Tree) -> torch.Tensor:
        first = torch.tensor(float(self.settings.clip or math.inf), dtype=torch.float64)
        return memory.get(BOUND, first)  # type: ignore[no-any-return]

    def reduce(self, heard: Heard, memory: Tree, at: At) -> tuple[Tree, Tree]:
        s, source, bound = self.settings, _source(self.real, *at.key(Purpose.NOISE)), float(self._bound(memory))
        if self.inner is None:
            parts = [parted(m, r) for m, r in zip(heard.sent, heard.replies, strict=True)]
            change, rest = _mean([c for c, _ in parts], heard.weights / heard.weights.sum()), parts[0][1]
        else:
            parts = []
            change, rest = parted(heard.sent[0], self.inner.reduce(heard, memory, at)[0])
        count = float(heard.weights.sum()) if self.below else float(len(heard.kids))
        among = count if self.expected is None else float(self.expected[at.node])
        change = noised(scale(change, count / among), s.deviation * bound / among, source)
        kept: Tree = {}
        if s.rule is not None:
            shorter = sum(float(norm(c)) < bound * ROUNDING**4 for c, _ in parts) - count / 2
            drawn = s.rule.noise * float(source(1)[0]) if s.noise_multiplier else 0.0
            kept = {BOUND: torch.tensor(s.rule.bound(bound, 0.5 + (shorter + drawn) / among), dtype=torch.float64)}
        return rejoined(heard.sent[0], change, rest), kept


def _mean(changes: Sequence[Tree], shares: Weights) -> Tree:
    def mean(*ts: torch.Tensor) -> torch.Tensor:
        total = float(shares[0]) * ts[0]
        for share, t in zip(shares[1:], ts[1:], strict=True):
            total = total + float(share) * t
        return total

    return tmap(mean, *changes)  # type: ignore[no-any-return]


def noise_depth(settings: PrivacySettings, depth: int, levels: Sequence[str]) -> int:
    """The level of the nodes that add the noise of a link: `depth` + 1 are its children, `depth` its parents.

    :param levels: names of the levels, cloud first
    :raises InputError: no level at or above the children has this name
    """
    at = settings.noise_at
    if at in ("child", "parent"):
        return depth + (at == "child")
    if at not in levels[: depth + 2]:
        raise InputError(
            f"noise_at = {at!r} on the link {levels[depth]}-{levels[depth + 1]}: wanted 'child', 'parent' or one of "
            f"{', '.join(levels[: depth + 2])}"
        )
    return levels.index(at)
