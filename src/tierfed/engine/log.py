"""What an engine writes down of a round."""

from dataclasses import dataclass, field

from tierfed.cost import Burst, Visit
from tierfed.peers import Chain


@dataclass
class RoundLog:
    """What happened in one round."""

    bursts: list[Burst] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    chains: list[Chain] = field(default_factory=list)
    lost: dict[int, int] = field(default_factory=dict)  # replies that did not arrive, per link level
    silent: dict[int, int] = field(default_factory=dict)  # polled nodes that were away, per link level
    moved: list[tuple[int, int, int]] = field(default_factory=list)  # (device, from team, to team)
    reparented: list[tuple[int, int, int, int]] = field(default_factory=list)  # (level, inner node, from, to parent)

    def link_bytes(self) -> dict[tuple[int, str], int]:
        """Bytes per (link level, "down" | "up"); the links between devices are the level below the last one."""
        out: dict[tuple[int, str], int] = {}
        for b in self.bursts:
            for way, size in (("down", b.down_bytes), ("up", b.up_bytes)):
                out[b.depth, way] = out.get((b.depth, way), 0) + int(size.sum())
        for v in (v.offloaded for v in self.visits if v.offloaded is not None):
            depth = max(b.depth for b in self.bursts)  # the devices' own links
            for way, size in (("down", v.down_bytes), ("up", v.up_bytes)):
                out[depth, way] += int(size.sum())
        for c in self.chains:
            for way, total in zip(("down", "up"), c.peer_bytes, strict=True):
                out[c.depth + 1, way] = out.get((c.depth + 1, way), 0) + total
        return out
