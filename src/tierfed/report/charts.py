"""The charts of one run. Each function gives None where the run logged nothing to show."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from tierfed.metrics import Floats, summarize
from tierfed.report.colors import PALETTE
from tierfed.report.load import RunFolder
from tierfed.report.style import (
    MODEL_COLORS,
    MODEL_DASHES,
    Chart,
    axis_name,
    band,
    chart,
    count_axis,
    direction,
    mode,
    plain,
    safe,
    score_axis,
    thin,
)
from tierfed.report.words import BAND, INTERVAL, MODEL_NAMES, capped, metric_name, within

MAX_LINES = 100
_MEANINGS = {
    "alpha": "1: all global, 0: all personal. ",
    "tie": "How far the trained parameters are from those that came from above: 0 is the same model. ",
}


def learning(run: RunFolder, metric: str) -> Chart | None:
    """One metric over rounds: a line (weighted mean) and a band (10th to 90th percentile of the devices) a model."""
    traces: list[Any] = []
    columns: dict[str, dict[int, float]] = {}
    halves: dict[str, dict[int, float]] = {}
    for model in run.models:
        found = run.scores(model, metric)
        if not found:
            continue
        rounds = [list(found)[i] for i in thin(len(found)).tolist()]
        values = [found[r].values for r in rounds]
        mean = [summarize(v, run.devices.test[i])["weighted"] for i, v in (found[r] for r in rounds)]
        columns[model], halves[model] = dict(zip(rounds, mean, strict=True)), run.margins(model, metric)
        color = MODEL_COLORS[model]
        traces += band(rounds, *percentiles(values), color, model)
        line = {"color": color, "dash": MODEL_DASHES[model], "width": 2}
        traces.append(
            go.Scatter(
                x=rounds,
                y=plain(mean),
                name=MODEL_NAMES[model],
                legendgroup=model,
                mode=mode(len(rounds)),
                line=line,
            )
        )
    if not traces:
        return None
    rounds = sorted({r for column in columns.values() for r in column})
    rows = [[str(r), *(within(columns[m].get(r), halves[m].get(r), metric) for m in columns)] for r in rounds]
    last = "; ".join(f"{MODEL_NAMES[m]} {within(c[max(c)], halves[m].get(max(c)), metric)}" for m, c in columns.items())
    return chart(
        f"{metric_name(metric).capitalize()} over rounds",
        traces,
        x="round",
        y=axis_name(metric),
        alt=f"Line chart of the {metric_name(metric)} of each model over {len(rounds)} evaluated rounds. Last: {last}.",
        data=capped(("round", *(MODEL_NAMES[m] for m in columns)), rows),
        note=f"Line: mean over devices, weighted by test samples. Band: {BAND} of the devices.{direction(metric)}"
        + (f" {_drawn(run)}" if any(halves.values()) else ""),
        layout={"yaxis": score_axis(metric)},
    )


def trace(run: RunFolder, tier: str, metric: str) -> Chart | None:
    """What the algorithm logs about itself: one thin line a node, and their mean."""
    panel = run.panel(tier, metric)
    if not panel.values.size:
        return None
    keep, shown = thin(len(panel.rounds), 300), thin(len(panel.nodes), MAX_LINES)
    rounds, values = panel.rounds[keep].tolist(), panel.values[keep]
    many = len(panel.nodes) > 1
    traces: list[Any] = [
        go.Scatter(
            x=rounds,
            y=plain(values[:, n]),
            name=safe([panel.nodes[n]])[0],
            mode=mode(len(rounds), 1 if many else 30),
            line={"color": "rgba(128,136,150,0.45)" if many else PALETTE[0], "width": 1 if many else 2},
            connectgaps=True,
            showlegend=False,
            hovertemplate="%{fullData.name}: %{y:.4g}, round %{x}<extra></extra>",
        )
        for n in shown.tolist()
    ]
    mean = mean_over_nodes(values)
    if many:
        line = {"color": MODEL_COLORS["personal_post"], "width": 3}
        label = f"mean of {len(panel.nodes)} {tier}s"
        traces.append(
            go.Scatter(
                x=rounds,
                y=plain(mean),
                name=label,
                mode=mode(len(rounds), 1),
                line=line,
                hovertemplate="mean: %{y:.4g}",
            )
        )
    low, high = np.fmin.reduce(values, axis=1), np.fmax.reduce(values, axis=1)
    spread = np.column_stack([low, mean, high])
    rows = [[str(r), *(f"{v:.4g}" for v in s)] for r, s in zip(rounds, spread.tolist(), strict=True)]
    hidden = f" {len(shown)} of {len(panel.nodes)} are drawn." if len(shown) < len(panel.nodes) else ""
    name = metric_name(metric)
    meaning = _MEANINGS.get(metric, "")
    return chart(
        f"{name[0].upper()}{name[1:]}" if metric == "alpha" else f"{name[0].upper()}{name[1:]} ({tier})",
        traces,
        x="round",
        y=name if many else metric,
        alt=f"Line chart of {name} of {len(panel.nodes)} {tier}{'s' * many} over rounds; the mean goes "
        f"from {mean[0]:.4g} to {mean[-1]:.4g}.",
        data=capped(("round", "lowest", "mean", "highest"), rows),
        note=f"{meaning}One thin line a {tier}.{hidden}" if many else meaning,
        half=not many,
        height=360 if many else 260,
        layout={"hovermode": "closest", **({"yaxis": {"range": [-0.03, 1.03]}} if metric == "alpha" else {})},
    )


def moves(run: RunFolder) -> Chart | None:
    """How many devices changed team in each round."""
    events = run.events_of("regroup")
    if not events:
        return None
    rows = [[str(e["round"]), *(str(e.get(key, "")) for key in ("device", "from", "to"))] for e in events]
    devices = len({row[1] for row in rows})
    bars = _bars([int(e["round"]) for e in events], [1] * len(events), "devices that moved", PALETTE[2])
    return chart(
        "Team changes",
        [bars],
        x="round",
        y="devices moved",
        alt=f"Bar chart of team changes in each round: {len(events)} changes of {devices} devices.",
        data=capped(("round", "device", "from", "to"), rows, 200, 4),
        note=f"{len(events)} changes of {devices} devices; the table lists them.",
        height=260,
        layout={"xaxis": _all_rounds(run), "yaxis": count_axis(max(bars.y)), "showlegend": False},
    )


def faults(run: RunFolder) -> Chart | None:
    """Lost messages and silent nodes in each round."""
    found = [(kind, run.events_of(kind)) for kind in ("lost", "silent")]
    if not any(events for _, events in found):
        return None
    names = {"lost": "lost messages", "silent": "silent nodes"}
    traces, rows = [], []
    for (kind, events), color in zip(found, (PALETTE[1], PALETTE[3]), strict=True):
        counts = [_count(e) for e in events]
        if events:
            traces.append(_bars([int(e["round"]) for e in events], counts, names[kind], color))
        rows += [
            [str(e["round"]), names[kind], str(e.get("link", e.get("device", e.get("node", "")))), str(n)]
            for e, n in zip(events, counts, strict=True)
        ]
    total = {names[kind]: sum(map(_count, events)) for kind, events in found}
    text = ", ".join(f"{n} {name}" for name, n in total.items())
    return chart(
        "Lost messages and silent nodes",
        traces,
        x="round",
        y="count",
        alt=f"Bar chart of faults in each round: {text} in all.",
        data=capped(("round", "fault", "where", "count"), sorted(rows, key=lambda row: int(row[0])), 200, 3),
        note=f"In all: {text}.",
        height=260,
        layout={
            "barmode": "stack",
            "showlegend": True,
            "xaxis": _all_rounds(run),
            "yaxis": count_axis(sum(max(t.y) for t in traces)),
        },
    )


def _drawn(run: RunFolder) -> str:
    drawn = int(run.setting("eval", "devices", 0))
    return f"Each evaluation drew {drawn:,} of {len(run.devices.names):,} devices; the table has {INTERVAL}."


def percentiles(values: Iterable[Floats]) -> tuple[Floats, Floats]:
    """The 10th and 90th percentile over devices in each round, [R] each."""
    values = list(values)
    low = [summarize(v, np.isfinite(v))["p10"] for v in values]
    high = [summarize(v, np.isfinite(v), higher_is_better=False)["p10"] for v in values]
    return np.array(low), np.array(high)


def mean_over_nodes(values: Floats) -> Floats:
    """The mean over nodes in each round, without those that logged nothing."""
    known = ~np.isnan(values)
    total: Floats = np.where(known, values, 0).sum(1)
    mean: Floats = total / np.maximum(known.sum(1), 1)
    return mean


def _all_rounds(run: RunFolder) -> dict[str, Any]:
    return {"range": [0.5, run.last_round + 0.5], "dtick": max(1, math.ceil(run.last_round / 12))}


def _count(event: dict[str, Any]) -> int:
    return int(event.get("count", 1))


def _bars(rounds: list[int], counts: list[int], name: str, color: str) -> Any:
    where, row = np.unique(np.array(rounds), return_inverse=True)
    totals = np.bincount(row, weights=counts)
    return go.Bar(x=where.tolist(), y=totals.tolist(), width=0.8, name=name, marker={"color": color})
