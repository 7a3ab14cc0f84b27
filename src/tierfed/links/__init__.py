"""What happens on links: compression, robust rules, attacks; the seam is `tierfed.links.link`."""

from tierfed.links.attacks import Attack, AttackSettings, flipped
from tierfed.links.build import build_links, link_names, real
from tierfed.links.case import Case
from tierfed.links.compress import Compress
from tierfed.links.link import (
    NONE,
    OWED,
    PLAIN,
    TOLD,
    At,
    Heard,
    Link,
    Links,
    Rule,
    Step,
    arriving,
    leaving,
    parted,
    rejoined,
)
from tierfed.links.settings import CompressSettings, LinkSettings, ReduceSettings

__all__ = [
    "NONE",
    "OWED",
    "PLAIN",
    "TOLD",
    "At",
    "Attack",
    "AttackSettings",
    "Case",
    "Compress",
    "CompressSettings",
    "Heard",
    "Link",
    "LinkSettings",
    "Links",
    "ReduceSettings",
    "Rule",
    "Step",
    "arriving",
    "build_links",
    "flipped",
    "leaving",
    "link_names",
    "parted",
    "real",
    "rejoined",
]
