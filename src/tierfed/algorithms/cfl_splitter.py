"""CFL above the devices: one model per cluster, and the rule by which a cluster parts in two."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tierfed.algorithm import Info
from tierfed.algorithms.hypernetwork import put_rows
from tierfed.servers import Server
from tierfed.tree import Params, Tree, mix, row, scalar, tmap

TINY = 1e-12


def bipartition(directions: npt.NDArray[np.float64], partition: str) -> npt.NDArray[np.bool_]:
    """Who leaves [n], of n >= 2 directions [n, d]; the first one stays."""
    from scipy.cluster.hierarchy import fcluster, linkage  # noqa: PLC0415
    from scipy.spatial.distance import pdist  # noqa: PLC0415

    units = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), TINY)
    far = pdist(units, "sqeuclidean") / 2  # 1 - cosine
    merges = linkage(far, "single" if partition == "optimal" else "complete")
    merges[:, 2] = np.arange(len(merges))  # ties too end in two
    labels = fcluster(merges, len(merges) - 1.5, "distance")
    return np.asarray(labels != labels[0])


@dataclass(frozen=True, kw_only=True)
class Splitter(Server):
    """Keeps models {key: [C, ...]} and how many are in use; a device's row: the number of its cluster."""

    keys: tuple[str, ...]
    eps1: float
    eps2: float
    relative: bool
    start: int
    min_size: int
    max_clusters: int
    partition: str
    weight = "devices"

    def init(self, params: Params) -> Tree:
        models = tmap(lambda t: t.expand(self.max_clusters, *t.shape).clone(), params)
        return {"models": models, "used": scalar(1.0, params)}

    def child(self, params: Params, ident: int) -> Tree:
        return {"cluster": scalar(0.0, params).long()}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return {"params": row(state["models"], state["rows"]["cluster"][slot])}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        assert info.slots is not None
        at, new = info.slots, up["params"]
        models, cluster, used = state["models"], state["rows"]["cluster"].clone(), int(state["used"])
        theirs, size = cluster[at].cpu(), torch.bincount(cluster.cpu(), minlength=self.max_clusters)
        for c in theirs.unique().tolist():
            mine = torch.nonzero(theirs == c)[:, 0]
            old, got = row(models, c), row(new, mine)
            delta = torch.cat([(got[k] - old[k]).reshape(len(mine), -1) for k in self.keys], 1)  # [n, d]
            mean = mix(old, tmap(lambda t: t.mean(0), got), info.share)
            models = put_rows(models, torch.tensor([c]), tmap(lambda t: t[None], mean))
            whole = len(mine) == int(size[c]) and len(mine) >= 2 * self.min_size
            if whole and used < self.max_clusters and int(info.round) >= self.start and self.rests(delta):
                leaves = bipartition(delta.double().cpu().numpy(), self.partition)
                if min(leaves.sum(), (~leaves).sum()) >= self.min_size:
                    cluster[at[mine[torch.as_tensor(leaves)]]] = used
                    models = put_rows(models, torch.tensor([used]), tmap(lambda t: t[None], mean))
                    used += 1
        return {**state, "models": models, "used": torch.full_like(state["used"], used), "rows": {"cluster": cluster}}

    def rests(self, delta: Tensor) -> bool:
        """Whether a cluster with these updates [n, d] has come to rest, but not its devices."""
        together, alone = float(delta.mean(0).norm()), float(delta.norm(dim=1).max())
        return together < self.eps1 * (alone if self.relative else 1.0) and alone > self.eps2
