"""What one has to give up for what: global against personal models, and scores against costs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from tierfed.metrics import Floats
from tierfed.report.colors import PALETTE
from tierfed.report.grid import BASELINE, Column, GridFolder, own_model
from tierfed.report.style import SYMBOLS, Chart, axis_name, chart, plain, safe, score_axis
from tierfed.report.words import MODEL_NAMES, amount, capped, metric_name, scale, score, unit

_FRONT = "rgba(128,136,150,0.7)"
_FRONT_NAME = "not beaten in both"


def front(x: Floats, y: Floats, x_higher: bool, y_higher: bool) -> list[int]:
    """The places of the points that no other one beats: at least as good in both and better in one. From the best in x
    on; of equal points the first.
    """
    a, b = (v if higher else -v for v, higher in ((x, x_higher), (y, y_higher)))
    out: list[int] = []
    best = -np.inf
    for i in np.lexsort((np.arange(len(a)), -b, -a)).tolist():
        if b[i] > best:
            out.append(i)
            best = b[i]
    return out


def balance(grid: GridFolder) -> Chart | None:
    """Global against personal score: one point a run, a large one for the mean of an algorithm, and the front of those
    that no other one beats in both.
    """
    metric, names = grid.metric, {c.key: c for c in grid.columns}
    higher = grid.members[0].run.higher_is_better
    columns = (names["personal_post"], names["global"])
    points = _points(grid, columns)
    missing = [label for label in grid.labels if label not in points]
    if not points:
        return None
    traces = _scatter(points, grid, "personal %{x}, global %{y}<extra>%{text}</extra>", 1.0)
    rows = [[n, label, score(b, metric), score(a, metric)] for label, p in points.items() for n, a, b in p]
    means = {label: _mean(p) for label, p in points.items()}
    line, best = _front_line(means, higher, higher)
    alone, bar = _alone(grid, columns[0])
    left_out = f" Not shown, for want of one of the two: {', '.join(missing)}." if missing else ""
    axis = score_axis(metric) | {"rangemode": "normal"}
    corner = "the upper right" if higher else "the lower left"
    told = f" Dashed: the personal models of local-only training, {score(alone, metric)}." if bar else ""
    return chart(
        "Balance map: global against personal models",
        [*line, *traces],
        x=f"personal model after training: {axis_name(metric)}",
        y=f"global model: {axis_name(metric)}",
        alt=f"Scatter chart of global against personal {metric_name(metric)}, one point for each of {len(rows)} runs. "
        f"Not beaten in both: {', '.join(best)}.",
        data=capped(("run", "algorithm", "global", "personal"), rows, 200, 2),
        note=f"Small: one run. Large: mean over seeds. Best is {corner}. Not beaten in both by any other one: "
        f"{', '.join(best)}.{told}{left_out}",
        height=460,
        layout={"hovermode": "closest", "xaxis": axis, "yaxis": axis, "shapes": bar},
    )


def pareto(grid: GridFolder, model: str, cost: str) -> Chart | None:
    """A score against a cost: one point a run, a large one for the mean of an algorithm, and the front of those that no
    other one beats in both.

    :param model: "global", or "own": the model that a device would use
    :param cost: "bytes" or "joules"
    """
    metric, names = grid.metric, {c.key: c for c in grid.columns}
    higher = grid.members[0].run.higher_is_better
    mine = Column("own", "", metric, higher, lambda m: _own(m.run)) if model == "own" else names["global"]
    points = _points(grid, (names[cost], mine))
    if not points:
        return None
    symbol, word = ("B", "traffic") if cost == "bytes" else ("J", "energy")
    step = scale(max(x for p in points.values() for _, x, _ in p))
    traces = _scatter(points, grid, f"%{{text}}: %{{y}}, %{{x:.3g}} {unit(step, symbol)}<extra></extra>", 1000.0**step)
    means = {label: _mean(p) for label, p in points.items()}
    line, best = _front_line(means, False, higher, 1000.0**step)
    who = MODEL_NAMES["global"] if model == "global" else "model that a device would use"
    rows = [
        [n, label, amount(x, symbol), score(y, metric), "yes" if label in best else ""]
        for label, p in points.items()
        for n, x, y in p
    ]
    return chart(
        f"{who.capitalize()} against {word}",
        [*line, *traces],
        x=f"{word} of the whole run ({unit(step, symbol)})",
        y=f"{axis_name(metric)}",
        alt=f"Scatter chart of the {metric_name(metric)} of the {who} against {word}, one point for each of "
        f"{len(rows)} runs. Not beaten in both: {', '.join(best)}.",
        data=capped(("run", "algorithm", word, metric_name(metric), "on the front"), rows, 200, 2),
        note=f"Best is the {'upper' if higher else 'lower'} left. On the line: none is better and cheaper.",
        half=True,
        height=400,
        layout={
            "hovermode": "closest",
            "xaxis": {"rangemode": "tozero", "hoverformat": ".3g"},
            "yaxis": score_axis(metric) | {"rangemode": "normal"},
        },
    )


def _own(run: Any) -> float | None:
    model = own_model(run)
    return run.statistics(model)["weighted"] if model else None


def _points(grid: GridFolder, columns: tuple[Column, Column]) -> dict[str, list[tuple[str, float, float]]]:
    """Of each algorithm the runs that have both numbers: name, x, y."""
    found = {}
    for label in grid.labels:
        each = zip(grid.of_label(label), *(grid.values(label, c).tolist() for c in columns), strict=True)
        known = [(m.name, x, y) for m, x, y in each if np.isfinite(x) and np.isfinite(y)]
        if known:
            found[label] = known
    return found


def _mean(points: Sequence[tuple[str, float, float]]) -> tuple[float, float]:
    return float(np.mean([p[1] for p in points])), float(np.mean([p[2] for p in points]))


def _scatter(
    points: dict[str, list[tuple[str, float, float]]], grid: GridFolder, hover: str, divided_by: float
) -> list[Any]:
    """One trace an algorithm, in its color and symbol."""
    traces = []
    for label, each in points.items():
        number = grid.labels.index(label)
        name, (x, y) = safe([label])[0], _mean(each)
        marker = {
            "color": PALETTE[number % len(PALETTE)],
            "symbol": SYMBOLS[number % len(SYMBOLS)],
            "size": [8] * len(each) + [16],
            "opacity": [0.55] * len(each) + [1.0],
        }
        traces.append(
            go.Scatter(
                x=plain(np.array([p[1] for p in each] + [x]) / divided_by),
                y=plain([p[2] for p in each] + [y]),
                text=[*safe(p[0] for p in each), f"{name}, mean"],
                name=name,
                mode="markers",
                marker=marker,
                hovertemplate=hover,
            )
        )
    return traces


def _front_line(
    means: dict[str, tuple[float, float]], x_higher: bool, y_higher: bool, divided_by: float = 1.0
) -> tuple[list[Any], list[str]]:
    """The front as a staircase below what nobody reaches, and who is on it."""
    labels = list(means)
    x, y = (np.array([means[label][i] for label in labels]) for i in (0, 1))
    best = front(x, y, x_higher, y_higher)
    line = go.Scatter(
        x=plain(x[best] / divided_by),
        y=plain(y[best]),
        mode="lines",
        name=_FRONT_NAME,
        # the corner of a step is the worse of its ends in both: nothing between them is claimed
        line={"color": _FRONT, "width": 2, "shape": "hv"},
        hoverinfo="skip",
        showlegend=len(best) > 1,
    )
    return [line], [labels[i] for i in best]


def _alone(grid: GridFolder, personal: Column) -> tuple[float | None, list[dict[str, Any]]]:
    """The mean personal score of local-only training, and a line at it."""
    labels = {m.label for m in grid.members if m.run.algorithm == BASELINE}
    values = np.concatenate([grid.values(label, personal) for label in labels]) if labels else np.zeros(0)
    if not np.isfinite(values).any():
        return None, []
    at = float(np.nanmean(values))
    line = {"color": _FRONT, "width": 1.5, "dash": "dash"}
    return at, [{"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "line": line}]
