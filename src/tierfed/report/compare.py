"""The charts that compare the runs of a grid."""

from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from tierfed.metrics import Floats, from_worst
from tierfed.report.colors import PALETTE
from tierfed.report.grid import GridFolder, gains, own_model
from tierfed.report.load import RunFolder
from tierfed.report.style import Chart, axis_name, band, chart, direction, mode, plain, safe, score_axis, thin
from tierfed.report.words import (
    MODEL_NAMES,
    NONE,
    amount,
    capped,
    duration,
    metric_name,
    scale,
    score,
    unit,
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
        name, line = safe([label])[0], _line(number)
        traces.append(
            go.Scatter(x=shown, y=plain(mean), name=name, legendgroup=label, mode=mode(len(shown)), line=line)
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
        half=True,
        layout={"yaxis": score_axis(grid.metric)},
    )


def per_device(grid: GridFolder) -> Chart | None:
    """The headline metric of every device on the model it would use: a box an algorithm, the devices of all seeds."""
    traces, rows = [], []
    for number, label in enumerate(grid.labels):
        values, names = _own_scores(grid, label)
        if not values.size:
            continue
        traces.append(_box(label, values, names, number, grid.metric))
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


def ranked(grid: GridFolder) -> Chart | None:
    """All devices of an algorithm from the worst to the best, the devices of all seeds in one line."""
    higher = grid.members[0].run.higher_is_better
    traces, rows = [], []
    for number, label in enumerate(grid.labels):
        values, names = _own_scores(grid, label)
        known = np.isfinite(values)
        if not known.any():
            continue
        order = np.flatnonzero(known)[from_worst(values[known], higher)]
        order = order[thin(len(order))]
        share = (np.arange(len(order)) + 0.5) / len(order)
        traces.append(
            go.Scatter(
                x=plain(share),
                y=plain(values[order]),
                text=safe(names[i] for i in order),
                name=safe([label])[0],
                mode=mode(len(order), 60),
                line=_line(number) | {"shape": "hv" if len(order) <= 60 else "linear"},
                hovertemplate=f"%{{text}}: %{{y:{score_axis(grid.metric)['hoverformat']}}}<extra></extra>",
            )
        )
        shares = [float(np.quantile(values[known], q if higher else 1 - q)) for q in _SHARES]
        rows.append([label, *(score(v, grid.metric) for v in shares)])
    if not traces:
        return None
    return chart(
        "From the worst device to the best",
        traces,
        x="share of the devices",
        y=axis_name(grid.metric),
        alt=f"Line chart of the {metric_name(grid.metric)} of all devices of {len(traces)} algorithms, sorted from the "
        "worst to the best.",
        data=capped(("algorithm", *(f"{q:.0%} of the devices" for q in _SHARES)), rows),
        note="The model that a device would use, devices of all seeds. At 10 %: a tenth of the devices does worse."
        + direction(grid.metric),
        half=True,
        layout={"yaxis": score_axis(grid.metric), "xaxis": {"tickformat": ".0%"}, "hovermode": "closest"},
    )


def gained(grid: GridFolder) -> Chart | None:
    """The gain of every device over local-only training: a box an algorithm."""
    traces, rows = [], []
    for number, label in enumerate(grid.labels):
        found = [(m, gains(m)) for m in grid.of_label(label) if m.run is not m.baseline]
        each = [(m, g) for m, g in found if g is not None]
        if not each:
            continue
        values = np.concatenate([g.values for _, g in each])
        names = [f"{m.run.devices.names[i]}, seed {m.run.seed}" for m, g in each for i in g.devices.tolist()]
        traces.append(_box(label, values, names, number, grid.metric))
        known = values[np.isfinite(values)]
        mean = score(float(known.mean()), grid.metric, signed=True) if known.size else NONE
        rows.append([label, str(len(values)), str(int((values > 0).sum())), str(int((values < 0).sum())), mean])
    if not traces:
        return None
    axis = {k: v for k, v in score_axis(grid.metric).items() if k != "rangemode"}
    said = "; ".join(f"{row[0]} {row[4]}" for row in rows)
    return chart(
        "Gain over local-only training",
        traces,
        x="algorithm",
        y=f"gain in {axis_name(grid.metric)}",
        alt=f"Box plot of the gain of each device over local-only training, for each algorithm. Means: {said}.",
        data=capped(("algorithm", "points", "better", "worse", "mean gain"), rows),
        note="Above zero a device does better than alone, with the same data and seed.",
        half=True,
        layout={"yaxis": axis | {"zeroline": True}, "hovermode": "closest", "showlegend": False},
    )


def totals(grid: GridFolder, key: str) -> Chart | None:
    """What a whole run costs: a bar an algorithm, mean over seeds; bytes by link."""
    title, unit_, read = _COSTS[key]
    parts: dict[str, dict[str, float]] = {}
    for label in grid.labels:
        for member in grid.of_label(label):
            for part, value in read(member.run).items():
                column = parts.setdefault(part, {})
                column[label] = column.get(label, 0.0) + value / len(grid.of_label(label))
    if not parts or not any(v for column in parts.values() for v in column.values()):
        return None
    sums = {n: sum(c.get(n, 0.0) for c in parts.values()) for n in grid.labels if any(n in c for c in parts.values())}
    step = scale(max(sums.values())) if key != "seconds" else 0
    traces = [
        go.Bar(
            x=safe(sums),
            y=plain([column.get(n, 0.0) / 1000**step for n in sums]),
            name=part,
            marker={"color": PALETTE[i % len(PALETTE)]},
        )
        for i, (part, column) in enumerate(sorted(parts.items()))
    ]
    said = "; ".join(f"{n} {_cost_text(key, v, unit_)}" for n, v in sums.items())
    columns = sorted(parts)
    rows = [
        [n, *(_cost_text(key, parts[p].get(n), unit_) for p in columns), _cost_text(key, v, unit_)]
        for n, v in sums.items()
    ]
    return chart(
        title,
        traces,
        x="algorithm",
        y=f"{key} ({unit(step, unit_)})",
        alt=f"Bar chart of the {key} of a whole run of each algorithm: {said}.",
        data=capped(("algorithm", *columns, "all"), rows),
        note="A whole run, mean over seeds.",
        half=True,
        height=320,
        layout={"barmode": "stack", "showlegend": len(parts) > 1, "yaxis": {"rangemode": "tozero"}},
    )


def _by_link(run: RunFolder) -> dict[str, float]:
    found: dict[str, float] = {}
    for way in ("down", "up"):
        panel = run.cost("link", f"{way}_bytes")
        for i, link in enumerate(panel.nodes):
            found[link] = found.get(link, 0.0) + float(np.nansum(panel.values[:, i]))
    return found


def _whole(value: float | None) -> dict[str, float]:
    return {} if value is None else {"whole run": value}


def _cost_text(key: str, value: float | None, unit_: str) -> str:
    return duration(value) if key == "seconds" else amount(value, unit_)


_COSTS: dict[str, tuple[str, str, Callable[[RunFolder], dict[str, float]]]] = {
    "bytes": ("Traffic", "B", _by_link),
    "seconds": ("Virtual time", "s", lambda run: _whole(run.clock_seconds)),
    "joules": ("Energy", "J", lambda run: _whole(run.total("cloud", "joules"))),
}
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


def _own_scores(grid: GridFolder, label: str) -> tuple[Floats, list[str]]:
    """The scores of all devices and seeds on the model that a device would use, and their names."""
    members = [m for m in grid.of_label(label) if own_model(m.run)]
    scores = [(m, m.run.last_scores(own_model(m.run))) for m in members]
    values = np.concatenate([s.values for _, s in scores]) if scores else np.zeros(0)
    return values, [f"{m.run.devices.names[i]}, seed {m.run.seed}" for m, s in scores for i in s.devices.tolist()]


def _line(number: int) -> dict[str, Any]:
    color = PALETTE[number % len(PALETTE)]
    return {"color": color, "width": 2, "dash": "solid" if number < len(PALETTE) else "dash"}


def _box(label: str, values: Floats, names: list[str], number: int, metric: str) -> Any:
    return go.Box(
        y=plain(values),
        name=safe([label])[0],
        text=safe(names),
        boxpoints="all",
        jitter=0.5,
        pointpos=0,
        marker={"color": PALETTE[number % len(PALETTE)], "size": 4, "opacity": 0.55},
        line={"width": 1.5},
        fillcolor="rgba(128,128,128,0.10)",
        hovertemplate=f"%{{text}}: %{{y:{score_axis(metric)['hoverformat']}}}<extra></extra>",
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
