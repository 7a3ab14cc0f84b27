"""[links.NAME]: what happens to replies on one level of links, and what the nodes above them make of them."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from tierfed.links.private import PrivacySettings
from tierfed.links.secure import SecureSettings
from tierfed.settings import Count, Positive

Ratio = Annotated[float, Gt(0), Le(1)]
Half = Annotated[float, Ge(0), Lt(0.5)]


@dataclass(frozen=True, kw_only=True)
class CompressSettings:
    """What of a change travels."""

    kind: Literal["none", "dense", "topk", "randomk", "lowrank", "layers"] = "none"
    """topk: the largest entries; randomk: entries that both ends draw alike, so that their places do not travel;
    lowrank: every matrix as the product of two narrow ones; layers: those that change most, the others are retained;
    dense: all of it, with fewer `bits`; none: all of it as it is."""
    ratio: Ratio = 0.01
    """Share of the entries that travels, topk and randomk."""
    rank: Count = 2
    """Of the products, lowrank."""
    count: Count = 1
    """Number of layers that travel, layers."""
    bits: Literal[0, 4, 8] = 0
    """Of every number that travels, rounded at random to equal steps of the largest one; 0: as it is computed with."""
    feedback: bool = True
    """What did not travel is kept by the child and added to its next change (error feedback)."""


@dataclass(frozen=True, kw_only=True)
class ReduceSettings:
    """What a node makes of the replies of its children."""

    rule: Literal["mean", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_bound"] = "mean"
    """mean: weighted as topology.weighting says; norm_bound: the same of changes no longer than `bound`; all others
    count every child alike."""
    attackers: Half = 0.2
    """Share of the children that may be attackers: cut off at either end of a trimmed mean, left out by multi_krum."""
    bound: Positive = 1.0
    """Longest change, norm_bound."""
    steps: Count = 32
    """Most steps of Weiszfeld's algorithm, geometric_median."""


@dataclass(frozen=True, kw_only=True)
class LinkSettings:
    """One level of links, by its name ("fog-device", "cloud-fog", "cloud-device"), or "all" of them."""

    compress: CompressSettings = field(default_factory=CompressSettings)
    reduce: ReduceSettings = field(default_factory=ReduceSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    secure: SecureSettings = field(default_factory=SecureSettings)
