"""Teams by the direction in which devices move: pure functions on NumPy arrays, with team names that stay."""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TINY = 1e-12  # a direction shorter than this points nowhere


def recluster(
    directions: Floats, teams: Ids, groups: int, method: str = "average_linkage", min_size: int = 1, seed: int = 0
) -> Ids:
    """New teams [n] of n devices, clustered by the cosine of their directions [n, d] (JobFed).

    Devices without a direction keep their team, as do all when there are too few with one. New clusters take the
    names of the teams that they share most devices with (Hungarian matching); a team below `min_size` gets the
    nearest outsiders.
    """
    norms = np.linalg.norm(directions, axis=1) if directions.size else np.zeros(len(teams))
    able = np.flatnonzero(norms >= TINY)
    if groups < 2 or len(able) < groups * min_size:
        return teams
    units = directions[able] / norms[able, None]
    found = cluster(units, groups, method, seed)
    names = rename(found, teams[able], groups)
    out = teams.copy()
    out[able] = fill(units, names, groups, min_size)
    return out


def cluster(units: Floats, groups: int, method: str = "average_linkage", seed: int = 0) -> Ids:
    """Labels [n] in range(groups) of unit vectors [n, d]: average linkage on 1 - cosine, or spherical k-means (large
    n).
    """
    if method == "spherical_kmeans":
        from sklearn.cluster import KMeans  # noqa: PLC0415  (a second to import)

        return np.asarray(KMeans(groups, n_init=10, random_state=seed).fit_predict(units), np.int64)
    from scipy.cluster.hierarchy import fcluster, linkage  # noqa: PLC0415
    from scipy.spatial.distance import pdist  # noqa: PLC0415

    merges = linkage(np.maximum(pdist(units, "cosine"), 0.0), "average")
    return np.asarray(fcluster(merges, groups, "maxclust"), np.int64) - 1


def rename(labels: Ids, teams: Ids, groups: int) -> Ids:
    """The same partition under the names that agree best with `teams` (most devices in common)."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415

    _, first, place = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))[place]  # numbered by the first device: ties depend on the partition alone
    common = np.zeros((groups, groups), np.int64)
    np.add.at(common, (order, teams), 1)
    _, name = linear_sum_assignment(-common)
    return np.asarray(name, np.int64)[order]


def fill(units: Floats, teams: Ids, groups: int, min_size: int) -> Ids:
    """Moves the nearest devices of teams that can spare them into teams with fewer than `min_size`.

    Nearest: by cosine to the mean direction of the team; an empty team takes the device that fits its own team least.
    """
    teams = teams.copy()
    for k in range(groups):
        while (teams == k).sum() < min_size:
            size = np.bincount(teams, minlength=groups)
            spare = np.flatnonzero((teams != k) & (size[teams] > min_size))
            mine = teams == k
            if mine.any():
                fit = units[spare] @ units[mine].mean(0)
            else:
                centers = np.stack([units[teams == t].mean(0) if size[t] else 0 * units[0] for t in range(groups)])
                fit = -np.einsum("nd,nd->n", units[spare], centers[teams[spare]])
            teams[spare[np.argmax(fit)]] = k
    return teams
