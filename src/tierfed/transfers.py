"""What crosses the links once, before round 1 or at the end: public samples, raw data, seeds of a generator, models."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from tierfed.algorithm import Algorithm, Batch
from tierfed.cost import Burst
from tierfed.data import Federation
from tierfed.topology import Topology

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer:
    """One thing that devices get or give.

    :param what: its name in the log
    :param down_bytes: [N] what each device gets
    :param up_bytes: [N] what each device gives
    :param common: all get the same, so that a fog gets one copy for all its devices
    :param end: from and to whom: the cloud, through all fogs in between, or the parent of each device
    :param outside: over the devices' own links even where rounds leave these inside one machine
    """

    what: str
    down_bytes: Ints
    up_bytes: Ints
    common: bool = False
    end: Literal["cloud", "parent"] = "cloud"
    outside: bool = False


def roads(transfer: Transfer, topology: Topology) -> Topology:
    """The tree whose links a transfer takes."""
    if not (transfer.outside and topology.colocated):
        return topology
    return replace(topology, colocated=(*topology.colocated[:-1], False))


def bursts(transfer: Transfer, topology: Topology) -> list[Burst]:
    """The transfer on the links of a tree; nothing on links inside one machine, nor where nothing is to be moved."""
    out = []
    devices = np.arange(topology.devices)
    last = topology.depth - 1
    for depth in range(0 if transfer.end == "cloud" else last, last + 1):
        if topology.colocated and topology.colocated[depth]:
            continue
        nodes, place = np.unique(topology.ancestor(topology.depth, devices, depth + 1), return_inverse=True)
        up = np.bincount(place, transfer.up_bytes, len(nodes)).astype(np.int64)
        down = np.zeros(len(nodes), np.int64)
        (np.maximum if transfer.common else np.add).at(down, place, transfer.down_bytes)
        used = np.flatnonzero(up + down)
        parents = topology.parents[depth][nodes]
        out.append(
            Burst(
                depth=depth, tick=0, parents=parents[used], kids=nodes[used], down_bytes=down[used], up_bytes=up[used]
            )
        )
    return [b for b in out if len(b.kids)]


def awaited(found: list[Burst], topology: Topology) -> list[Burst]:
    """The same traffic with idle links up to the cloud, so that a clock sees who waits for it."""
    out = list(found)
    for depth in reversed(range(topology.depth - 1)):
        busy = np.unique(np.concatenate([np.empty(0, np.int64), *(b.parents for b in out if b.depth == depth + 1)]))
        known = np.concatenate([np.empty(0, np.int64), *(b.kids for b in out if b.depth == depth)])
        idle = np.setdiff1d(busy, known)
        none, parents = np.zeros(len(idle), np.int64), topology.parents[depth][idle]
        if len(idle):
            out.append(Burst(depth=depth, tick=0, parents=parents, kids=idle, down_bytes=none, up_bytes=none))
    return out


def public_transfers(algorithm: Algorithm, public: Batch | None, federation: Federation) -> tuple[Transfer, ...]:
    """The public samples on their way to all devices, where the algorithm has them there."""
    if public is None or not algorithm.public_goes:
        return ()
    n, labels = len(public.x), algorithm.public_goes == "labels"
    each = -(-n * federation.bits_per_sample // 8) + n * labels  # a byte per label
    down = np.full(len(federation), each, np.int64)
    return (Transfer(what="public samples", down_bytes=down, up_bytes=0 * down, common=True),)
