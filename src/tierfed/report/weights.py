"""Who listens to whom in a run: its `ties.parquet` as arrays, members in an order that puts similar ones together."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tierfed.metrics import Floats
from tierfed.report.load import Ints, RunFolder

MOST = 256


class OwnWeights(NamedTuple):
    """How much of what members get is their own: `rounds` [T], `layers` [L], `members` [N], `values` [T, L, N]."""

    rounds: Ints
    layers: tuple[str, ...]
    members: tuple[str, ...]
    values: Floats


class LastWeights(NamedTuple):
    """The weights after the last recorded round: `layers`[name] is [n, n], row i what `members[i]` gets.

    NaN where two members have no node in common that mixes their models. `hidden` members are left out.
    """

    round: int
    members: tuple[str, ...]
    layers: dict[str, Floats]
    hidden: int


def own_weights(run: RunFolder) -> OwnWeights | None:
    """The weight of each member's own model over rounds; None: the run has no ties."""
    table = run.ties.filter(pc.equal(run.ties["device"], run.ties["other"]))
    if not table.num_rows:
        return None
    layers, members = _unique(table["layer"]), _unique(table["device"])
    rounds, row = np.unique(table["round"].to_numpy().astype(np.int64), return_inverse=True)
    values = np.full((len(rounds), len(layers), len(members)), np.nan)
    values[row, _places(table["layer"], layers), _places(table["device"], members)] = table["weight"].to_numpy()
    return OwnWeights(rounds, layers, members, values)


def last_weights(run: RunFolder, most: int = MOST) -> LastWeights | None:
    """The weights of all pairs; None: the run has no ties.

    Node after node, in each by label distribution; nodes that would make more than `most` members are left out, but
    for the first.
    """
    if not run.ties.num_rows:
        return None
    last = int(pc.max(run.ties["round"]).as_py())
    table = run.ties.filter(pc.equal(run.ties["round"], last))
    members, total = list[str](), 0
    for node in _unique(table["node"]):
        inside = _unique(table.filter(pc.equal(table["node"], node))["device"])
        total += len(inside)
        if not members or len(members) + len(inside) <= most:
            members += by_labels(run, inside)
    shown = tuple(members)
    row, column = _places(table["device"], shown), _places(table["other"], shown)
    known = (row >= 0) & (column >= 0)
    layers, weight = table["layer"].to_numpy(zero_copy_only=False), table["weight"].to_numpy()
    found = {}
    for layer in _unique(table["layer"]):
        at = known & (layers == layer)
        found[layer] = np.full((len(shown), len(shown)), np.nan)
        found[layer][row[at], column[at]] = weight[at]
    return LastWeights(last, shown, found, total - len(shown))


def label_shares(run: RunFolder, members: tuple[str, ...]) -> Floats | None:
    """The share of each label among the training samples of some devices [n, labels]; None: not all are devices, or
    there are no labels, or they were not counted.
    """
    place = {name: i for i, name in enumerate(run.devices.names)}
    if not run.devices.counts.shape[1] or any(m not in place for m in members):
        return None
    counts = run.devices.counts[[place[m] for m in members]].astype(np.float64)
    if not counts.any(1).all():
        return None
    shares: Floats = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return shares


def by_labels(run: RunFolder, members: tuple[str, ...]) -> list[str]:
    """Members in an order in which devices with similar labels are neighbors, as given where that is not known."""
    from scipy.cluster.hierarchy import leaves_list, linkage  # noqa: PLC0415  (half a second to import)

    shares = label_shares(run, members)
    if shares is None or len(members) < 3:
        return list(members)

    order = leaves_list(linkage(shares, "average", optimal_ordering=True))
    # an order and its reverse are equally good: the one that begins nearer to the first member
    return [members[i] for i in (order if order[0] <= order[-1] else order[::-1])]


def _unique(column: pa.ChunkedArray) -> tuple[str, ...]:
    return tuple(pc.unique(column).to_pylist())


def _places(column: pa.ChunkedArray, names: tuple[str, ...]) -> Ints:
    """The place of each entry among the names, -1: it is none of them."""
    found: Ints = pc.index_in(column, value_set=pa.array(names, pa.string())).fill_null(-1).to_numpy().astype(np.int64)
    return found
