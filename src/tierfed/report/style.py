"""What all charts have in common: colors, layout, the chart and its text alternative."""

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from tierfed.metrics import higher_is_better
from tierfed.report.words import Grid, metric_name

# readable on white and on near-black, and apart for the common color blindnesses; the page sets text and grid colors
MODEL_COLORS = {"global": "#3b82f6", "team": "#12a37f", "personal_pre": "#d99a00", "personal_post": "#e5537a"}
MODEL_DASHES = {"global": "solid", "team": "dash", "personal_pre": "dot", "personal_post": "solid"}
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "pentagon", "hexagon", "triangle-down")
HEAT = ((0.0, "rgba(59,130,246,0.04)"), (0.5, "rgba(59,130,246,0.55)"), (1.0, "rgba(37,99,235,1)"))
SCORES = ((0.0, "#d6336c"), (0.5, "#d9b36a"), (1.0, "#2563eb"))
"""From a bad score to a good one."""

MAX_POINTS = 500


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure (plotly's dict form), what it shows in one sentence, and its numbers as a table."""

    title: str
    figure: dict[str, Any]
    alt: str
    data: Grid
    note: str = ""
    half: bool = False


def chart(
    title: str,
    traces: Iterable[Any],
    *,
    x: str,
    y: str,
    alt: str,
    data: Grid,
    note: str = "",
    half: bool = False,
    height: int = 360,
    layout: dict[str, Any] | None = None,
) -> Chart:
    """A chart from plotly traces with titled axes and a transparent background."""
    figure = go.Figure(data=list(traces))
    figure.update_layout(
        template=go.layout.Template(),
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        height=height,
        margin={"l": 64, "r": 16, "t": 52 if half else 30, "b": 48},  # a short legend must not meet the buttons
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        hovermode="x unified",
        xaxis={"title": {"text": x}, "automargin": True, "zeroline": False},
        yaxis={"title": {"text": y, "standoff": 12}, "automargin": True, "zeroline": False},
    )
    if x == "round" and max((r for t in figure.data for r in t.x), default=0) <= 12:
        figure.update_layout(xaxis={"dtick": 1})
    figure.update_layout(layout or {})
    return Chart(title=title, figure=figure.to_plotly_json(), alt=alt, data=data, note=note, half=half)


def score_axis(metric: str) -> dict[str, Any]:
    """The y axis of a metric: percent for accuracy, from 0 for an error."""
    if metric == "accuracy":
        return {"tickformat": ".1~%", "hoverformat": ".1%"}
    return {"hoverformat": ".4g", "rangemode": "tozero"}


def axis_name(metric: str) -> str:
    """The title of a metric's axis, with its unit."""
    if metric == "accuracy":
        return "accuracy (%)"
    unit = {"abs_error": "target units", "squared_error": "target units, squared"}.get(metric)
    return f"{metric_name(metric)} ({unit})" if unit else metric_name(metric)


def direction(metric: str) -> str:
    """A sentence for the note of a chart whose lower values are the better ones."""
    return "" if higher_is_better(metric) else " Lower is better."


def plain(values: npt.ArrayLike) -> list[float | None]:
    """Values for a chart: five significant digits, gaps where they are not finite."""
    return [float(f"{v:.5g}") if math.isfinite(v) else None for v in np.asarray(values, np.float64).ravel().tolist()]


def thin(length: int, limit: int = MAX_POINTS) -> npt.NDArray[np.int64]:
    """The positions of at most `limit` of `length` points, evenly taken, the first and the last among them."""
    if length <= limit:
        return np.arange(length)
    return np.unique(np.linspace(0, length - 1, limit).round().astype(np.int64))


def safe(names: Iterable[str]) -> list[str]:
    """Names as plotly shows them: it reads a few HTML tags in labels."""
    return [html.escape(name, quote=False) for name in names]


def band(x: list[int], low: npt.ArrayLike, high: npt.ArrayLike, color: str, group: str) -> list[Any]:
    """The area between two curves, hidden and shown with the line of its legend group."""
    shared = {"x": x, "mode": "lines", "line": {"width": 0}, "legendgroup": group, "showlegend": False}
    fill = faded(color, 0.14)
    edges = go.Scatter(**shared, y=plain(low), hoverinfo="skip")
    return [edges, go.Scatter(**shared, y=plain(high), hoverinfo="skip", fill="tonexty", fillcolor=fill)]


def faded(color: str, opacity: float) -> str:
    """A "#rrggbb" color, more or less transparent."""
    return f"rgba({','.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))},{opacity})"


def count_axis(largest: float) -> dict[str, Any]:
    """An axis of whole numbers from 0: about five of them, so that none is written twice."""
    return {"rangemode": "tozero", "tickformat": ",d", "dtick": max(1, math.ceil(largest / 5))}


def mode(points: int, limit: int = 30) -> str:
    """Lines, with markers on up to `limit` points: a single round must be seen as well."""
    return "lines+markers" if points <= limit else "lines"
