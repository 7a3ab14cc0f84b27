"""The charts of who listens to whom: a heat map for each layer, and own weights over rounds."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from tierfed.metrics import Floats
from tierfed.report.charts import mean_over_nodes, percentiles
from tierfed.report.colors import PALETTE
from tierfed.report.load import RunFolder
from tierfed.report.style import Chart, band, chart, mode, plain, safe, thin
from tierfed.report.weights import LastWeights, last_weights, own_weights
from tierfed.report.words import BAND, NONE, Grid, capped

_MATRIX = 24  # members up to which the table of a heat map is the whole matrix
_LABELS, _HALF = 40, 12
# the lightest is not the background: that is where two devices have no node in common
_SCALE = ((0.0, "rgba(59,130,246,0.14)"), (0.5, "rgba(59,130,246,0.6)"), (1.0, "rgba(37,99,235,1)"))


def own_over_rounds(run: RunFolder) -> Chart | None:
    """How much of what devices get is their own: a line (mean over devices) and a band a layer."""
    own = own_weights(run)
    if own is None:
        return None
    keep = thin(len(own.rounds))
    rounds, values = own.rounds[keep].tolist(), own.values[keep]  # [T, L, N]
    traces: list[Any] = []
    means: dict[str, Floats] = {}
    for number, layer in enumerate(own.layers):
        means[layer] = mean_over_nodes(values[:, number])
        color = PALETTE[number % len(PALETTE)]
        traces += band(rounds, *percentiles(values[:, number]), color, layer)
        traces.append(
            go.Scatter(
                x=rounds,
                y=plain(means[layer]),
                name=safe([layer])[0],
                legendgroup=layer,
                mode=mode(len(rounds)),
                line={"color": color, "width": 2, "dash": "solid" if number < len(PALETTE) else "dash"},
            )
        )
    rows = [[str(r), *(f"{m[i]:.4f}" for m in means.values())] for i, r in enumerate(rounds)]
    last = "; ".join(f"{layer} {m[-1]:.4f}" for layer, m in means.items())
    return chart(
        "Own weight over rounds",
        traces,
        x="round",
        y="weight of the own model",
        alt=f"Line chart of the weight that a device's own model has in what it gets, for each layer. Last: {last}.",
        data=capped(("round", *means), rows),
        note="How much of what a device gets is its own model; the rest comes from others. Line: mean over devices. "
        f"Band: {BAND} of the devices.",
        layout={"yaxis": {"hoverformat": ".4f"}, "showlegend": True},
    )


def heat_maps(run: RunFolder) -> list[Chart]:
    """Whose model weighs how much in what each device gets, after the last recorded round: one chart a layer."""
    last = last_weights(run)
    return [] if last is None else [_heat_map(last, layer, weights) for layer, weights in last.layers.items()]


def _heat_map(last: LastWeights, layer: str, weights: Floats) -> Chart:
    names, n = safe(last.members), len(last.members)
    own = weights.diagonal()
    others = np.where(np.eye(n, dtype=bool), np.nan, weights)
    at = np.unravel_index(np.argmax(np.where(np.isnan(others), -np.inf, others)), others.shape)
    found = f"The mean own weight (diagonal) is {own.mean():.4f}"
    if n > 1 and np.isfinite(others[at]):
        found += f", the largest of others {others[at]:.4f}: {last.members[at[0]]} listens to {last.members[at[1]]}"
    hidden = f" {last.hidden} more devices are not drawn." if last.hidden else ""
    return chart(
        f"Who listens to whom: {layer}",
        [
            go.Heatmap(
                x=names,
                y=names,
                z=[plain(row) for row in weights],
                colorscale=_SCALE,
                colorbar={"title": {"text": "weight"}, "thickness": 12, "outlinewidth": 0},
                hovertemplate="%{y} listens to %{x}: weight %{z:.4f}<extra></extra>",
                hoverongaps=False,
                xgap=1 if n <= 60 else 0,
                ygap=1 if n <= 60 else 0,
            )
        ],
        x="whose model",
        y="device that gets it",
        alt=f"Heat map of the weights of {layer}, {n} by {n} devices, after round {last.round}. {found}.",
        data=_numbers(last, weights),
        note=f"Row: what a device gets after round {last.round}; column: how much another one's model weighs in it; "
        f"rows sum to 1. Devices with similar labels are neighbors. {found}.{hidden}",
        half=n <= _HALF,
        height=min(max(320, 14 * n + 160), 720),
        layout={
            "hovermode": "closest",
            "xaxis": {"type": "category", "showticklabels": n <= _LABELS, "showgrid": False},
            "yaxis": {
                "type": "category",
                "showticklabels": n <= _LABELS,
                "showgrid": False,
                "autorange": "reversed",
            },
        },
    )


def _numbers(last: LastWeights, weights: Floats) -> Grid:
    """The matrix, or of many devices the own weight and whom they listen to most."""
    names = last.members
    if len(names) <= _MATRIX:
        texts = [[f"{v:.4f}" if np.isfinite(v) else NONE for v in row] for row in weights]
        return Grid(("device", *names), [[n, *row] for n, row in zip(names, texts, strict=True)])
    others = np.where(np.eye(len(names), dtype=bool) | np.isnan(weights), -np.inf, weights)
    best = others.argmax(1)
    rows = [[n, names[best[i]], f"{weights[i, i]:.4f}", f"{weights[i, best[i]]:.4f}"] for i, n in enumerate(names)]
    return capped(("device", "listens most to", "own weight", "weight of that one"), rows, 256, 2)
