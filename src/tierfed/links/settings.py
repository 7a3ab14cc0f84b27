"""[links.NAME]: what happens to replies on one level of links, and what the nodes above them make of them."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from tierfed.links.private import PrivacySettings
from tierfed.links.secure import SecureSettings
from tierfed.settings import Count, Positive

Half = Annotated[float, Ge(0), Lt(0.5)]


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

    reduce: ReduceSettings = field(default_factory=ReduceSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    secure: SecureSettings = field(default_factory=SecureSettings)
