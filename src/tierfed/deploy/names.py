"""What the nodes of a tree are called where they are processes, and how a certificate says so.

The cloud is `cloud`, the inner nodes are `fog-0`, `fog-1`, … (in deeper trees `region-0`, … and `tier1-0`, …: the name
of the level and the number in it), a device has its name in the data. A level that lives on the machines of the level
above it (clusters inside a fog) has no processes and no names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from tierfed.errors import InputError
from tierfed.topology import FORMED, Topology

TIERS = ("cloud", "fog", "device")
CLOUD = "cloud"
ROAMING = "*"
MOST_BYTES = 150  # of a name, in UTF-8: it is the name of a folder too, percent-encoded
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Node:
    """One process of a deployed tree.

    :param parent: the node that it joins: "" for the cloud, `ROAMING` for any
    :param level: 0 the cloud; as in `Topology.levels`
    :param index: the number in its level; of a device the id
    """

    name: str
    tier: str
    parent: str = ""
    level: int = 0
    index: int = 0


def node_name(topology: Topology, level: int, index: int, devices: Sequence[str]) -> str:
    """The name of a node; that of an inner node never changes with the data.

    :param devices: the names of the devices, by id
    """
    if level == 0:
        return CLOUD
    return devices[index] if level == topology.depth else f"{topology.levels[level]}-{index}"


def process_levels(topology: Topology) -> tuple[int, ...]:
    """The levels whose nodes are processes of their own, cloud first, devices last."""
    inside = topology.colocated or (False,) * topology.depth
    return (0, *(level for level in range(1, topology.depth) if not inside[level - 1]), topology.depth)


def tree_nodes(topology: Topology, devices: Sequence[str]) -> tuple[Node, ...]:
    """All processes of a tree, cloud first, level by level.

    :param devices: the names of the devices, by id
    :raises InputError: a name cannot be one, or two nodes have the same
    """
    out = [Node(name=CLOUD, tier="cloud")]
    levels = process_levels(topology)
    for above, level in pairwise(levels):
        for i in range(topology.shape[level]):
            up = i
            for d in reversed(range(above, level)):
                up = int(topology.parents[d][up])
            tier = "device" if level == topology.depth else "fog"
            name = node_name(topology, level, i, devices)
            check_name(name, tier)
            parent = node_name(topology, above, up, devices)
            out.append(Node(name=name, tier=tier, parent=parent, level=level, index=i))
    seen: dict[str, Node] = {}
    for node in out:
        if (other := seen.setdefault(node.name, node)) is not node:
            raise InputError(
                f"{node.name!r} is the name of a {other.tier} and of a {node.tier}: a name is that of one node; give "
                "the device another name in the data"
            )
    return tuple(out)


def moving(teams: str) -> bool:
    """Whether a device's fog is found in the run: a certificate cannot name it before. :param teams: topology.teams"""
    return teams in FORMED


def check_name(name: str, tier: str) -> None:
    """:raises InputError: no node of this tier can have such a name"""
    if tier not in TIERS:
        raise InputError(f"there is no tier {tier!r}; take one of {', '.join(TIERS)}")
    if (tier == "cloud") != (name == CLOUD):
        raise InputError(f"{name!r} cannot be the name of a {tier}: the cloud is called {CLOUD!r}, and nobody else")
    if tier != "device":
        if not _LABEL.fullmatch(name):
            raise InputError(
                f"{name!r} cannot be the name of a {tier}: wanted at most 63 of a-z, 0-9 and -, as in 'fog-0'"
            )
    elif not name.isprintable() or name != name.strip() or name in ("", ROAMING) or len(name.encode()) > MOST_BYTES:
        raise InputError(
            f"{name!r} cannot be the name of a device: wanted 1 to {MOST_BYTES} bytes of printable text without spaces "
            "at its ends, other than '*'; rename the device in the data"
        )


def folder_name(name: str) -> str:
    """The folder of a node: its name where that can be one, else percent-encoded."""
    text = quote(name, safe=" ")
    return text.replace(".", "%2E", 1) if text.startswith(".") else text


def uri(tier: str, name: str, parent: str) -> str:
    """A node as its certificate names it: tierfed://device/alice?parent=fog-0."""
    return f"tierfed://{tier}/{quote(name, safe='')}" + (f"?parent={quote(parent, safe='*')}" if parent else "")


def from_uri(text: str) -> tuple[str, str, str]:
    """Tier, name and parent.

    :raises InputError: this is not what `uri` writes
    """
    parts = urlsplit(text)
    tier, name = parts.netloc, unquote(parts.path.removeprefix("/"))
    parent = dict(parse_qsl(parts.query)).get("parent", "")
    if tier not in TIERS or not name or uri(tier, name, parent) != text:
        raise InputError(f"{text!r} names no node; wanted tierfed://TIER/NAME?parent=NAME")
    return tier, name, parent


def server_name(tier: str, name: str = "") -> str:
    """The DNS name that the certificate of a listening node has beside its addresses, so that a child knows its parent
    wherever it runs. Without a name: that of all nodes of the tier, for a child that roams.
    """
    return f"{name}.{tier}.tierfed" if name else f"{tier}.tierfed"
