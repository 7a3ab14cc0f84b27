"""New teams after a round, from what inner nodes know of their children."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tierfed.tree import stack

if TYPE_CHECKING:
    from tierfed.engine.base import Engine

Ids = npt.NDArray[np.int64]


def regrouped(engine: Engine) -> list[Ids]:
    """The parents of all levels after the present round, cloud first, as the algorithm wants them."""
    scope, depth = engine.algorithm.regroup_scope(engine.round), engine.depth
    parents, wired = list(engine.topology.parents), engine.topology.colocated or (False,) * depth
    if scope and depth > 1:
        for d in reversed(range(1, depth)) if scope == "tree" else (depth - 1,):
            if not wired[d]:
                parents[d] = _level(engine, d, inside=scope == "inside_fog")
    return parents


def _level(engine: Engine, depth: int, inside: bool) -> Ids:
    """New parents of all nodes below a level, by the rows that it keeps of them; `inside`: of one grandparent."""
    out = engine.topology.parents[depth].copy()
    rows = engine.known(depth)
    known = np.array(list(rows), np.int64)
    above = engine.topology.parents[depth - 1]
    grandparents = above[out] if inside else np.zeros(len(out), np.int64)
    for grandparent in np.unique(grandparents[known]):
        ids = known[grandparents[known] == grandparent]
        nodes = np.flatnonzero(above == grandparent) if inside else np.arange(engine.topology.nodes[depth])
        local = np.searchsorted(nodes, out[ids])
        of_ids = stack([rows[i] for i in ids.tolist()])
        out[ids] = nodes[engine.algorithm.regroup(of_ids, local, len(nodes), engine.round)]
    return out
