"""How well each device of a run does: boxes, all devices from the worst to the best, gains over local-only training."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from tierfed.metrics import Floats, from_worst, worst_count
from tierfed.report.colors import PALETTE
from tierfed.report.grid import Member, gains, own_model
from tierfed.report.load import Ints, RunFolder
from tierfed.report.style import MODEL_COLORS, Chart, axis_name, chart, direction, plain, safe, score_axis, thin
from tierfed.report.words import MODEL_NAMES, NONE, capped, metric_name, score

MOST = 1000
"""Bars in a chart; of more devices some are taken, evenly."""

BAD, GOOD = PALETTE[1], PALETTE[0]


def per_device(run: RunFolder) -> Chart | None:
    """The headline metric of every device in the last round: a box and all points a model."""
    scores = {m: run.last_scores(m) for m in run.models}
    scores = {m: s for m, s in scores.items() if not np.isnan(s.values).all()}
    if not scores:
        return None
    names = run.devices.names
    cells = {m: dict(zip(s.devices.tolist(), s.values.tolist(), strict=True)) for m, s in scores.items()}
    shown = sorted(set().union(*cells.values()))
    traces = [
        go.Box(
            y=plain(s.values),
            name=MODEL_NAMES[m].replace(", ", ",<br>"),
            text=safe(names[i] for i in s.devices.tolist()),
            boxpoints="all",
            jitter=0.5,
            pointpos=0,
            marker={"color": MODEL_COLORS[m], "size": 5, "opacity": 0.65},
            line={"width": 1.5},
            fillcolor="rgba(128,128,128,0.10)",
            hovertemplate="%{text}: %{y}<extra></extra>",
        )
        for m, s in scores.items()
    ]
    rows = [[names[i], *(score(c.get(i), run.metric) for c in cells.values())] for i in shown]
    return chart(
        f"{metric_name(run.metric).capitalize()} of each device",
        traces,
        x="model",
        y=axis_name(run.metric),
        alt=f"Box plot with one point for each of {len(shown)} devices, for each model, in the last evaluated round.",
        data=capped(("device", *(MODEL_NAMES[m] for m in scores)), rows, 200),
        note=f"Each point is a device on its own test set. Point at one to see its name.{direction(run.metric)}"
        + (f" A {run.sample}." if run.sample else ""),
        layout={"yaxis": score_axis(run.metric), "hovermode": "closest", "showlegend": False},
    )


def ranked(run: RunFolder) -> Chart | None:
    """A bar a device, from the worst to the best on the model that it would use; the worst tenth stands out."""
    model = own_model(run)
    places, values = run.last_scores(model) if model else (np.zeros(0, np.int64), np.zeros(0))
    if not np.isfinite(values).any():
        return None
    order = from_worst(values, run.higher_is_better)
    worst = worst_count(len(values))
    statistics = run.statistics(model)
    keep = thin(len(order), MOST)
    order, rank = order[keep], keep + 1
    bad = rank <= worst
    names = [run.devices.names[i] for i in places[order].tolist()]
    rows = [
        [str(r), n, run.devices.teams[i] or NONE, str(run.devices.test[i]), score(v, run.metric)]
        for r, n, i, v in zip(rank.tolist(), names, places[order].tolist(), values[order].tolist(), strict=True)
    ]
    parts = [(bad, "worst 10 %", BAD), (~bad, "all others", GOOD)]
    worst_names = ", ".join(names[:5]) + (", …" if worst > 5 else "")
    return chart(
        "From the worst device to the best",
        [_bars(rank[at], values[order][at], names, at, name, color, run.metric) for at, name, color in parts],
        x="rank",
        y=axis_name(run.metric),
        alt=f"Bar chart of the {metric_name(run.metric)} of {len(values)} devices in ascending order of quality: "
        f"{worst} worst devices have {score(statistics['worst'], run.metric)} on average, all have "
        f"{score(statistics['mean'], run.metric)}. The worst: {worst_names}.",
        data=capped(("rank", "device", "team", "test samples", metric_name(run.metric)), rows, 200, 3),
        note=f"The model that a device would use ({MODEL_NAMES[model]}), last evaluated round. Mean of the worst 10 %: "
        f"{score(statistics['worst'], run.metric)}, of all devices: {score(statistics['mean'], run.metric)}."
        f"{direction(run.metric)}" + _fewer(len(keep), len(values)),
        half=True,
        height=340,
        layout=_bar_layout(run.metric),
    )


def gained(member: Member) -> Chart | None:
    """A bar a device: how much better it does than alone, from the smallest gain to the largest."""
    found = None if member.run is member.baseline else gains(member)
    if found is None or not np.isfinite(found.values).any():
        return None
    run = member.run
    known = np.isfinite(found.values)
    places, values = found.devices[known], found.values[known]
    order = np.argsort(values, kind="stable")
    keep = thin(len(order), MOST)
    order, rank = order[keep], keep + 1
    names = [run.devices.names[i] for i in places[order].tolist()]
    better, worse = int((values > 0).sum()), int((values < 0).sum())
    text = f"{better} of {len(values)} devices do better than alone, {worse} worse; mean gain " + score(
        float(values.mean()), run.metric, signed=True
    )
    rows = [[n, score(v, run.metric, signed=True)] for n, v in zip(names, values[order].tolist(), strict=True)]
    parts = [(values[order] < 0, "worse than alone", BAD), (values[order] >= 0, "as good or better", GOOD)]
    axis = {k: v for k, v in score_axis(run.metric).items() if k != "rangemode"}
    return chart(
        "Gain over local-only training",
        [_bars(rank[at], values[order][at], names, at, name, color, run.metric) for at, name, color in parts],
        x="rank",
        y=f"gain in {axis_name(run.metric)}",
        alt=f"Bar chart of the gain of each device over local-only training, ascending. {text}.",
        data=capped(("device", "gain over local-only"), rows, 200),
        note=f"{text}. Compared is the model that a device would use." + _fewer(len(keep), len(values)),
        half=True,
        height=340,
        layout=_bar_layout(run.metric) | {"yaxis": axis},
    )


def _bars(rank: Ints, values: Floats, names: list[str], at: Any, name: str, color: str, metric: str) -> Any:
    number = score_axis(metric)["hoverformat"]
    return go.Bar(
        x=rank.tolist(),
        y=plain(values),
        text=safe(n for n, shown in zip(names, at.tolist(), strict=True) if shown),
        textposition="none",
        name=name,
        marker={"color": color, "line": {"width": 0}},
        hovertemplate=f"%{{text}}: %{{y:{number}}}<extra></extra>",
    )


def _bar_layout(metric: str) -> dict[str, Any]:
    return {"hovermode": "closest", "bargap": 0.15, "yaxis": score_axis(metric), "xaxis": {"tickformat": ",d"}}


def _fewer(shown: int, of: int) -> str:
    return f" {shown} of {of} devices are drawn." if shown < of else ""
