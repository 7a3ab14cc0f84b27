"""Who listens to whom: the weights by which nodes mix the models of their children, evaluation after evaluation.

They are records of the run's store, which commits them with the round that they belong to: a run that is killed and
resumed has the same ones.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from tierfed.algorithm import Tier
from tierfed.engine import Engine
from tierfed.engine.evaluate import ties
from tierfed.metrics import TIES, write_atomic
from tierfed.record import node_name
from tierfed.setup import World
from tierfed.store import Store
from tierfed.tree import Tree

MOST = 256  # children of a node; the weights are as many as the square of their number
TABLE, SKIPPED = "ties", "ties_skipped"


class Ties(NamedTuple):
    """The weights of one node after one round: of a layer [R, R], row i what `children[i]` of a `level` gets."""

    round: int
    depth: int
    node: int
    level: int
    children: npt.NDArray[np.int64]
    weights: dict[str, npt.NDArray[Any]]


class TieRecord:
    """The ties of a run; `known` are those of committed rounds, oldest first."""

    def __init__(self, store: Store) -> None:
        self.store, self.fresh = store, list[Ties]()
        self.known = [t for r in store.ids(TABLE) for t in _decoded(r, store.get(TABLE, r) or {})]
        self.changed = bool(self.known)

    def measure(self, world: World, engine: Engine, round_: int) -> list[dict[str, Any]]:
        """Puts the ties of the present state into the store's working copy; the one event of a run in which a node has
        more than `MOST` children.
        """
        found, happened = list[Ties](), list[dict[str, Any]]()
        for depth, tier in enumerate(engine.tiers):
            level = engine.reach(depth)
            watched = tier.sees and type(tier).ties is not Tier.ties and engine.keeps(depth)
            for node in range(engine.topology.nodes[depth]) if watched else ():
                children = engine.topology.below(depth, node, level)
                if len(children) > MOST:
                    name, n = node_name(world, depth, node), len(children)
                    happened.append({"round": round_, "event": SKIPPED, "node": name, "children": n, "most": MOST})
                elif len(children):
                    weights = {k: v.detach().cpu().numpy() for k, v in ties(engine, depth, node, children).items()}
                    found.append(Ties(round_, depth, node, level, children, weights))
        if found:
            self.store.put(TABLE, round_, _encoded(found))
            self.fresh += found
        if not happened or self.store.get(SKIPPED, 0) is not None:
            return []
        self.store.put(SKIPPED, 0, {"round": torch.tensor(round_)})  # told once, also after a resume
        return happened[:1]

    def committed(self) -> None:
        """The store has committed what was put."""
        self.changed |= bool(self.fresh)
        self.known += self.fresh
        self.fresh = []

    def export(self, world: World, path: Path) -> None:
        """Writes ties.parquet where there is something new.

        :raises OSError: it cannot be written
        """
        if self.changed:
            write_atomic(path / "ties.parquet", to_table(world, self.known))
            self.changed = False


def to_table(world: World, found: list[Ties]) -> pa.Table:
    """Ties in long form, by the schema `TIES`."""
    parts = [_long(world, t, layer, weights) for t in found for layer, weights in t.weights.items()]
    return pa.concat_tables(parts) if parts else TIES.empty_table()


def _long(world: World, t: Ties, layer: str, weights: npt.NDArray[Any]) -> pa.Table:
    devices = t.level == world.topology.depth
    names = [world.federation.devices[i] if devices else node_name(world, t.level, int(i)) for i in t.children]
    n = len(names)
    columns = [
        pa.repeat(pa.scalar(t.round, pa.int32()), n * n),
        *(pa.repeat(pa.scalar(text, pa.string()), n * n) for text in (node_name(world, t.depth, t.node), layer)),
        pa.array(names, pa.string()).take(pa.array(np.repeat(np.arange(n), n))),
        pa.array(names, pa.string()).take(pa.array(np.tile(np.arange(n), n))),
        pa.array(weights.astype(np.float64).ravel()),
    ]
    return pa.table(columns, schema=TIES)


def _encoded(found: list[Ties]) -> Tree:
    """The record of one evaluation."""
    return {
        f"{t.depth}/{t.node}/{t.level}": {
            "children": torch.from_numpy(t.children),
            "weights": {k: torch.from_numpy(v) for k, v in t.weights.items()},
        }
        for t in found
    }


def _decoded(round_: int, record: Tree) -> list[Ties]:
    out = []
    for name, one in record.items():
        depth, node, level = map(int, name.split("/"))
        weights = {k: v.cpu().numpy() for k, v in one["weights"].items()}
        out.append(Ties(round_, depth, node, level, one["children"].cpu().numpy(), weights))
    return out
