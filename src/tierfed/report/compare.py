"""The charts that compare the runs of a grid."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from tierfed.metrics import Floats
from tierfed.report.colors import PALETTE
from tierfed.report.grid import GridFolder, own_model
from tierfed.report.style import (
    SYMBOLS,
    Chart,
    axis_name,
    band,
    chart,
    direction,
    mode,
    plain,
    safe,
    score_axis,
    thin,
)
from tierfed.report.words import MODEL_NAMES, capped, metric_name, score


def balance(grid: GridFolder) -> Chart | None:
    """Global against personal score: one point a run, a large one for the mean of an algorithm."""
    metric, names = grid.metric, {c.key: c for c in grid.columns}
    traces, rows, missing = [], [], []
    for number, label in enumerate(grid.labels):
        x, y = grid.values(label, names["personal_post"]), grid.values(label, names["global"])
        both = np.isfinite(x) & np.isfinite(y)
        members = [m for m, known in zip(grid.of_label(label), both, strict=True) if known]
        if not members:
            missing.append(label)
            continue
        x, y = x[both], y[both]
        color, symbol = PALETTE[number % len(PALETTE)], SYMBOLS[number % len(SYMBOLS)]
        hover = "personal %{x}, global %{y}<extra>%{text}</extra>"
        traces.append(
            go.Scatter(
                x=plain([*x, x.mean()]),
                y=plain([*y, y.mean()]),
                text=[*safe(m.name for m in members), f"{safe([label])[0]}, mean"],
                name=safe([label])[0],
                mode="markers",
                marker={
                    "color": color,
                    "symbol": symbol,
                    "size": [8] * len(members) + [16],
                    "opacity": [0.55] * len(members) + [1.0],
                },
                hovertemplate=hover,
            )
        )
        rows += [[m.name, label, score(a, metric), score(b, metric)] for m, a, b in zip(members, y, x, strict=True)]
    if not traces:
        return None
    left_out = f" Not shown, for want of one of the two: {', '.join(missing)}." if missing else ""
    axis = score_axis(metric) | {"rangemode": "normal"}
    return chart(
        "Balance of global and personal models",
        traces,
        x=f"personal model after training: {axis_name(metric)}",
        y=f"global model: {axis_name(metric)}",
        alt=f"Scatter chart of global against personal {metric_name(metric)}, one point for each of {len(rows)} runs.",
        data=capped(("run", "algorithm", "global", "personal"), rows, 200, 2),
        note=f"Small: one run. Large: mean over seeds. Best is {_corner(grid)}.{left_out}",
        height=420,
        layout={"hovermode": "closest", "xaxis": axis, "yaxis": axis},
    )


def learning(grid: GridFolder, model: str) -> Chart | None:
    """The headline metric of one model over rounds: a line (mean over seeds) and a band (lowest to highest seed)."""
    traces: list[Any] = []
    table: dict[str, dict[int, float]] = {}
    for number, label in enumerate(grid.labels):
        rounds, values = _curves(grid, label, model)
        if not len(rounds):
            continue
        keep = thin(len(rounds))
        shown, values = rounds[keep].tolist(), values[:, keep]
        mean = values.mean(0)
        table[label] = dict(zip(shown, mean.tolist(), strict=True))
        color = PALETTE[number % len(PALETTE)]
        if len(values) > 1:
            traces += band(shown, values.min(0), values.max(0), color, label)
        line = {"color": color, "width": 2, "dash": "solid" if number < len(PALETTE) else "dash"}
        traces.append(
            go.Scatter(
                x=shown, y=plain(mean), name=safe([label])[0], legendgroup=label, mode=mode(len(shown)), line=line
            )
        )
    if not traces:
        return None
    rounds_of_all = sorted({r for column in table.values() for r in column})
    rows = [[str(r), *(score(table[label].get(r), grid.metric) for label in table)] for r in rounds_of_all]
    last = "; ".join(f"{label} {score(c[max(c)], grid.metric)}" for label, c in table.items())
    return chart(
        f"{MODEL_NAMES[model].capitalize()}: {metric_name(grid.metric)} over rounds",
        traces,
        x="round",
        y=axis_name(grid.metric),
        alt=f"Line chart of the {metric_name(grid.metric)} of each algorithm over rounds. Last: {last}.",
        data=capped(("round", *table), rows),
        note="Line: mean over seeds. Band: lowest to highest seed." * (len(grid.seeds) > 1) + direction(grid.metric),
        layout={"yaxis": score_axis(grid.metric)},
    )


def per_device(grid: GridFolder) -> Chart | None:
    """The headline metric of every device on the model it would use: a box an algorithm, the devices of all seeds."""
    traces, rows = [], []
    for number, label in enumerate(grid.labels):
        members = [m for m in grid.of_label(label) if own_model(m.run)]
        scores = [(m, m.run.last_scores(own_model(m.run))) for m in members]
        if not scores:
            continue
        values = np.concatenate([s.values for _, s in scores])
        names = [f"{m.run.devices.names[i]}, seed {m.run.seed}" for m, s in scores for i in s.devices.tolist()]
        traces.append(
            go.Box(
                y=plain(values),
                name=safe([label])[0],
                text=safe(names),
                boxpoints="all",
                jitter=0.5,
                pointpos=0,
                marker={"color": PALETTE[number % len(PALETTE)], "size": 4, "opacity": 0.55},
                line={"width": 1.5},
                fillcolor="rgba(128,128,128,0.10)",
                hovertemplate="%{text}: %{y}<extra></extra>",
            )
        )
        known = values[np.isfinite(values)]
        quarters = np.percentile(known, (0, 25, 50, 75, 100)).tolist() if known.size else [None] * 5
        rows.append([label, str(len(values)), *(score(q, grid.metric) for q in quarters)])
    if not traces:
        return None
    return chart(
        f"{metric_name(grid.metric).capitalize()} of each device",
        traces,
        x="algorithm",
        y=axis_name(grid.metric),
        alt="Box plot with one point for each device and seed, for each algorithm, in the last evaluated round.",
        data=capped(("algorithm", "points", "lowest", "1st quarter", "median", "3rd quarter", "highest"), rows),
        note="The personal model after training; the team or global one where an algorithm has no personal model."
        + direction(grid.metric)
        + (f" A {grid.sample}." if grid.sample else ""),
        height=420,
        layout={"yaxis": score_axis(grid.metric), "hovermode": "closest", "showlegend": False},
    )


def _curves(grid: GridFolder, label: str, model: str) -> tuple[Any, Floats]:
    """The weighted mean over devices in the rounds that all seeds evaluated, and [seeds, R] values."""
    curves = [m.run.curve(model) for m in grid.of_label(label)]
    curves = [c for c in curves if len(c[0])]
    if not curves:
        return np.zeros(0, np.int64), np.zeros((0, 0))
    rounds = curves[0][0]
    for other, _ in curves[1:]:
        rounds = np.intersect1d(rounds, other)
    return rounds, np.stack([v[np.isin(r, rounds)] for r, v in curves])


def _corner(grid: GridFolder) -> str:
    return "the upper right" if grid.members[0].run.higher_is_better else "the lower left"
