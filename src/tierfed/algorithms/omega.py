"""The relationship of tasks in multi-task learning: Omega [R, R], symmetric and positive semi-definite, for the penalty
1/2 tr(W^T Omega W) = 1/2 sum_rt Omega_rt <w_r, w_t> of the models W [R, d]. With U = 11' / R:

fixed_mean  I - U: every task is pulled to the mean of all.
learned     C^-1 of C = S / tr S, S = (W W^T + eps tr(W W^T) / R I)^1/2 (Zhang, Yeung, UAI 2010). tr C = 1 makes Omega
            grow with the tasks: its eigenvalues sum to at least R^2, and those of directions in which models hardly
            differ reach R / sqrt(eps), so that lam would depend on R and on how alike the models are. scale =
            "largest" divides by the largest eigenvalue, as I - U has it: equal models give I - U but for sqrt(eps).
graph       the Laplacian of the edges: 1/2 sum_ij a_ij |w_i - w_j|^2 over the edges.
cluster     with M the projection on the means of clusters: I - M + between (M - U), i.e.
            sum_t |w_t - wbar_c(t)|^2 + between sum_c R_c |wbar_c - wbar|^2 (Jacob, Bach, Vert, NeurIPS 2008, eps_W = 1,
            eps_B = between, eps_M = 0; Evgeniou, Micchelli, Pontil 2005). between = 1 is fixed_mean; 0: clusters do
            not know of one another. For given W the best M is that of k-means; Ward's linkage is its greedy form.
"""

import torch
from torch import Tensor

from tierfed.tree import Params

TINY, ROUNDING = 1e-30, 1e-13
Edge = tuple[int, int] | tuple[int, int, float]


def gram(w: Params) -> Tensor:
    """W W^T [R, R] in float64 of models with leaves [R, ...]; never anything of size d x d."""
    parts = [t.reshape(len(t), -1).double() for t in w.values()]
    return torch.stack([p @ p.T for p in parts]).sum(0)


def learned(products: Tensor, eps: float, scale: str = "trace") -> Tensor:
    """Omega [R, R] from W W^T [R, R]; models that are all zero are unrelated: a multiple of I."""
    ridge = (eps * products.trace() / len(products)).clamp(min=TINY)
    values, vectors = torch.linalg.eigh(products)
    values = torch.where(values > ROUNDING * values[-1], values, 0.0)  # what is beside the ridge but noise
    root = (values + ridge).sqrt()  # of S, ascending
    inverse = (root.sum() if scale == "trace" else root[0]) / root
    omega: Tensor = (vectors * inverse) @ vectors.T
    return (omega + omega.T) / 2


def laplacian(edges: tuple[Edge, ...], ids: Tensor) -> Tensor:
    """Omega [R, R] of the members `ids` [R] in float64; edges to others do not count."""
    ends = torch.tensor([e[:2] for e in edges])
    place = torch.full((int(max(ends.max(), ids.max())) + 1,), -1)
    place[ids] = torch.arange(len(ids))
    i, j = place[ends].T
    here = (i >= 0) & (j >= 0)
    a = torch.zeros(len(ids), len(ids), dtype=torch.float64)
    a[i[here], j[here]] = torch.tensor([float(e[2]) if len(e) == 3 else 1.0 for e in edges], dtype=a.dtype)[here]
    return torch.diag((a + a.T).sum(1)) - a - a.T


def clustered(labels: Tensor, between: float) -> Tensor:
    """Omega [R, R] in float64 of tasks with these clusters [R]."""
    same = (labels[:, None] == labels).double()
    m = same / same.sum(1)
    return torch.eye(len(m), dtype=m.dtype) - m + between * (m - 1 / len(m))


def ward(w: Params, clusters: int) -> Tensor:
    """Clusters [R] of models with leaves [R, ...], by Ward's linkage."""
    from scipy.cluster.hierarchy import fcluster, linkage  # noqa: PLC0415

    products = gram({k: t - t.mean(0) for k, t in w.items()}).cpu()
    n, size = len(products), products.diag()
    if n <= clusters:
        return torch.arange(n)
    upper = torch.triu_indices(n, n, 1)
    far = (size[:, None] + size - 2 * products)[upper[0], upper[1]].clamp(min=0).sqrt()
    return torch.from_numpy(fcluster(linkage(far.numpy(), "ward"), clusters, "maxclust").astype("int64"))
