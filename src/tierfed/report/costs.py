"""The charts of what a run cost: bytes, seconds and joules."""

import numpy as np
import plotly.graph_objects as go

from tierfed.report.colors import PALETTE
from tierfed.report.load import RunFolder
from tierfed.report.style import Chart, chart, faded, mode, plain, thin
from tierfed.report.words import Grid, amount, capped, duration, scale, unit

DIRECTIONS = ("down", "up")


def traffic(run: RunFolder) -> Chart | None:
    """Bytes of each round: a stack of the links, down and up."""
    panels = [(way, run.cost("link", f"{way}_bytes")) for way in DIRECTIONS]
    columns = [
        (f"{link}, {way}", panel.rounds, panel.values[:, i])
        for way, panel in panels
        for i, link in enumerate(panel.nodes)
    ]
    if not columns:
        return None
    columns.sort(key=lambda column: column[0])
    step = scale(max(float(np.nanmax(values, initial=0)) for _, _, values in columns))
    traces, table = [], {}
    for number, (name, rounds, values) in enumerate(columns):
        keep = thin(len(rounds))
        table[name] = dict(zip(rounds[keep].tolist(), values[keep].tolist(), strict=True))
        color = faded(PALETTE[number // 2 % len(PALETTE)], 1.0 if number % 2 else 0.5)
        marker = {"color": color, "line": {"width": 0}}
        traces.append(go.Bar(x=rounds[keep].tolist(), y=plain(values[keep] / 1000**step), name=name, marker=marker))
    return chart(
        "Traffic of each round",
        traces,
        x="round",
        y=f"bytes over links ({unit(step, 'B')})",
        alt=f"Stacked bar chart of the bytes of each link in each round; {amount(run.total_bytes, 'B')} in all.",
        data=_by_round(table, "B"),
        note="Down is towards the devices. The table above sums the whole run.",
        layout={
            "barmode": "stack",
            "bargap": 0.1 if run.last_round <= 100 else 0,
            "yaxis": {"rangemode": "tozero", "hoverformat": ".3g"},
        },
    )


def usage(run: RunFolder, metric: str) -> Chart | None:
    """Seconds or joules of each round: a line a link, one for the devices' computing, one for the whole round."""
    symbol = "s" if metric == "seconds" else "J"
    whole = "round_seconds" if metric == "seconds" else "joules"
    curves = []
    panel = run.cost("link", metric)
    curves += [(link, panel.rounds, panel.values[:, i]) for i, link in enumerate(panel.nodes)]
    for tier, name, label in (
        ("device", f"compute_{metric}", "computing on devices, summed"),
        ("cloud", whole, "whole round"),
    ):
        panel = run.cost(tier, name)
        if panel.values.size:
            curves.append((label, panel.rounds, panel.values[:, 0]))
    if not curves:
        return None
    traces, table = [], {}
    for (name, rounds, values), color in zip(curves, PALETTE * len(curves), strict=False):
        keep = thin(len(rounds))
        table[name] = dict(zip(rounds[keep].tolist(), values[keep].tolist(), strict=True))
        style = {"color": color, "width": 2, "dash": "dash" if name == "whole round" else "solid"}
        traces.append(
            go.Scatter(x=rounds[keep].tolist(), y=plain(values[keep]), name=name, mode=mode(len(keep)), line=style)
        )
    title = "Virtual time of each round" if metric == "seconds" else "Energy of each round"
    total = duration(run.clock_seconds) if metric == "seconds" else amount(run.total("cloud", whole), "J")
    return chart(
        title,
        traces,
        x="round",
        y=f"{metric} ({symbol})",
        alt=f"Line chart: {title.lower()}, by link and for computing; {total} for the whole run.",
        data=_by_round(table, symbol),
        half=True,
        height=320,
        layout={"yaxis": {"rangemode": "tozero", "hoverformat": ".3g"}},
    )


def cost_table(run: RunFolder) -> Grid | None:
    """The costs of the whole run: a row a link, one for computing, one for all."""
    names = ("down_bytes", "up_bytes", "seconds", "joules")
    panels = {name: run.cost("link", name) for name in names}
    links = sorted({link for panel in panels.values() for link in panel.nodes})
    rows = []
    for link in links:
        sums = [
            float(np.nansum(p.values[:, p.nodes.index(link)])) if link in p.nodes else None for p in panels.values()
        ]
        both = None if sums[0] is None and sums[1] is None else (sums[0] or 0.0) + (sums[1] or 0.0)
        rows.append([link, *(amount(v, "B") for v in (*sums[:2], both)), duration(sums[2]), amount(sums[3], "J")])
    across = [run.total("link", f"offload_{name}") for name in names[:2]]
    if None not in across:
        both = sum(v or 0.0 for v in across)
        rows.append(["of it while training, with the edges", *(amount(v, "B") for v in (*across, both)), "", ""])
    seconds, joules = (run.total("device", f"compute_{name}") for name in ("seconds", "joules"))
    if seconds is not None or joules is not None:
        rows.append(["computing on devices", *("" for _ in range(3)), duration(seconds), amount(joules, "J")])
    edges = run.total("device", "edge_seconds")
    if edges is not None:
        rows.append(["computing on edges", *("" for _ in range(3)), duration(edges), ""])
    if not rows:
        return None
    down, up = run.total("link", "down_bytes"), run.total("link", "up_bytes")
    joules = run.total("cloud", "joules")
    texts = (amount(v, "B") for v in (down, up, run.total_bytes))
    rows.append(["whole run", *texts, duration(run.clock_seconds), amount(joules, "J")])
    return Grid(
        ("link", "down", "up", "both", "time", "energy"),
        rows,
        "Times of links and devices are sums over all messages and devices, which work at the same time; "
        "the time of the whole run is the virtual clock at its end.",
    )


def _by_round(table: dict[str, dict[int, float]], symbol: str) -> Grid:
    rounds = sorted({r for column in table.values() for r in column})
    rows = [[str(r), *(amount(column.get(r), symbol) for column in table.values())] for r in rounds]
    return capped(("round", *table), rows)
