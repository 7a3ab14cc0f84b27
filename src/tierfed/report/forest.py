"""The tree of a run: its devices colored by how well they do, and who changed its team."""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from tierfed.data.dataset import evenly
from tierfed.metrics import Floats
from tierfed.report.colors import PALETTE
from tierfed.report.grid import own_model
from tierfed.report.load import Ints, RunFolder
from tierfed.report.style import SCORES, Chart, axis_name, chart, plain, safe, score_axis
from tierfed.report.words import MODEL_NAMES, NONE, capped, metric_name, score

MOST = 1000
"""Devices in the picture of a tree; of more some are taken, evenly."""

_STEPS, _POINTS = 12, 6000  # positions of the slider: so many, and so many devices in all of them
_MOVERS = 100
_HIDDEN = {"visible": False, "showgrid": False, "zeroline": False}
_GRAY = "#7d8590"
_SLIDER = "128,136,150"  # seen in both themes


class Shape(NamedTuple):
    """A tree after one round: the team of each device, and the nodes above each team from the cloud down."""

    teams: tuple[str, ...]
    above: dict[str, tuple[str, ...]]


def shape_after(run: RunFolder, round_: int) -> Shape:
    """The tree after a round: that at the beginning, and all changes up to then."""
    teams = dict(zip(run.devices.names, run.devices.teams, strict=True))
    parents = {b: a for team, path in run.above.items() for a, b in pairwise(("", *path, team))}
    for event in run.events:
        if event["round"] > round_:
            break
        if event["event"] == "regroup" and event.get("device") in teams:
            teams[event["device"]] = str(event.get("to", ""))
        elif event["event"] == "rebuild" and event.get("node") in parents:
            parents[event["node"]] = str(event.get("to", ""))
    return Shape(tuple(teams.values()), {team: _path(parents, team) for team in {*run.above, *teams.values()}})


def _path(parents: dict[str, str], node: str) -> tuple[str, ...]:
    """The nodes above a node, from the cloud down; each once, whatever a damaged file says."""
    path: list[str] = []
    while (node := parents.get(node, "")) and node not in (*path, "cloud"):
        path.insert(0, node)
    return tuple(path)


def tree(run: RunFolder) -> Chart | None:
    """The tree in rings around the cloud, its devices colored by the model that they would use."""
    model = own_model(run)
    if not model:
        return None
    found = run.scores(model)
    last = max(found)
    shown = evenly(len(run.devices.names), MOST)
    moved = any(run.events_of(kind) for kind in ("regroup", "rebuild"))
    rounds = sorted(found)
    steps = min(_STEPS, max(2, _POINTS // len(shown)), len(rounds)) if moved else 1
    picked = [rounds[i] for i in np.unique(np.linspace(len(rounds) - 1, 0, steps).round().astype(int))]
    shapes = {r: shape_after(run, r) for r in picked}
    angles = _angles(list(shapes.values()), shown)
    scores = {r: _scores(run, model, r)[shown] for r in picked}
    pictures = {r: _picture(run, shapes[r], scores[r], angles, shown) for r in picked}
    known = np.concatenate([s[np.isfinite(s)] for s in scores.values()])
    traces = _traces(run, pictures[last], (float(known.min()), float(known.max())) if known.size else (0.0, 1.0))
    rows = _rows(run, shapes[last], scores[last], shown)
    among = (
        f" {len(shown)} of {len(run.devices.names)} devices are drawn." if len(shown) < len(run.devices.names) else ""
    )
    teams = f"{len(set(shapes[last].teams))} teams and " if run.teams else ""
    finite_now = scores[last][np.isfinite(scores[last])]
    between = f" from {score(finite_now.min(), run.metric)} to {score(finite_now.max(), run.metric)}" * bool(
        finite_now.size
    )
    slider = [_slider(pictures, picked)] if len(picked) > 1 else []
    made = chart(
        f"The tree after round {last}" if not slider else "The tree",
        traces,
        x="",
        y="",
        alt=f"The tree with the cloud in the middle, {teams}{len(shown)} devices in the outer ring, colored by their "
        f"{metric_name(run.metric)}{between} after round {last}.",
        data=capped(("device", "team", "team at the beginning", "changes", metric_name(run.metric)), rows, 200, 3),
        note=f"Color: {metric_name(run.metric)} of the model that a device would use ({MODEL_NAMES[model]}). Ring in "
        "the middle: the teams."
        + " Diamonds have left the team in which they began. The slider shows other rounds." * bool(slider)
        + among,
        height=620 if slider else 560,
        layout={
            "hovermode": "closest",
            "showlegend": False,
            "xaxis": {**_HIDDEN, "range": [-1.12, 1.12], "scaleanchor": "y", "constrain": "domain"},
            "yaxis": {**_HIDDEN, "range": [-1.12, 1.12]},
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "sliders": slider,
        },
    )
    # plotly's check of a figure knows no gaps among colors, plotly.js does: they are of devices without a score
    made.figure["data"][2]["marker"]["color"] = plain(scores[last])
    return made


def memberships(run: RunFolder) -> Chart | None:
    """The team of each device that moved, over rounds."""
    events = run.events_of("regroup")
    names = list(dict.fromkeys(str(e.get("device")) for e in events))
    if not names:
        return None
    hidden, names = len(names) - _MOVERS, names[:_MOVERS]
    place = {name: i for i, name in enumerate(run.devices.names)}
    names = [name for name in names if name in place]
    rounds = sorted({0, run.last_round, *(int(e["round"]) for e in events), *(int(e["round"]) - 1 for e in events)})
    teams = [[shape_after(run, r).teams[place[name]] for r in rounds] for name in names]
    order = sorted(range(len(names)), key=lambda i: (teams[i][-1], teams[i][0], names[i]))
    names, teams = [names[i] for i in order], [teams[i] for i in order]
    known = sorted({t for row in teams for t in row})
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(known))]
    scale = [(edge / len(known), colors[i]) for i in range(len(known)) for edge in (i, i + 1)]
    changes = [sum(a != b for a, b in pairwise(row)) for row in teams]
    rows = [[n, row[0], row[-1], str(c)] for n, row, c in zip(names, teams, changes, strict=True)]
    return chart(
        "Who changed its team",
        [
            go.Heatmap(
                x=rounds,
                y=safe(names),
                z=[[known.index(t) for t in row] for row in teams],
                customdata=[safe(row) for row in teams],
                colorscale=scale,
                zmin=-0.5,
                zmax=len(known) - 0.5,
                showscale=False,
                hovertemplate="%{y} is in %{customdata} after round %{x}<extra></extra>",
                ygap=1 if len(names) <= 60 else 0,
            )
        ],
        x="round",
        y="device",
        alt=f"One line for each of {len(names)} devices that changed team, colored by its team over rounds; "
        f"{len(events)} changes in all.",
        data=capped(("device", "team at the beginning", "team at the end", "changes"), rows, 200, 3),
        note="One color a team; where it changes the device has moved. Point at a line to see the team."
        + f" {hidden} more devices moved." * (hidden > 0),
        height=min(max(260, 16 * len(names) + 110), 900),
        layout={
            "hovermode": "closest",
            "xaxis": {"showgrid": False},
            "yaxis": {"type": "category", "showticklabels": len(names) <= 50, "showgrid": False},
        },
    )


class _Picture(NamedTuple):
    """Where everything lies: edges (None between two), inner nodes, devices."""

    edges: tuple[list[float | None], list[float | None]]
    nodes: tuple[list[float], list[float], list[str]]
    devices: tuple[list[float], list[float], list[str]]
    scores: Floats
    symbols: list[str]


def _angles(shapes: list[Shape], shown: Ints) -> dict[str, tuple[float, float]]:
    """The slot of each team on the circle: where it begins and how wide it is. Wide enough for all rounds, so that a
    team stays where it is."""
    most: dict[str, int] = {}
    for shape in shapes:
        inside = [shape.teams[i] for i in shown.tolist()]
        for team in set(inside):
            most[team] = max(most.get(team, 0), inside.count(team))
    order = sorted(most, key=lambda team: (shapes[-1].above.get(team, ()), team))
    total, at, slots = sum(most.values()) + len(most) * (len(most) > 1), 0.0, {}
    for team in order:
        wide = 2 * np.pi * most[team] / total
        slots[team] = (at, wide)
        at += wide + 2 * np.pi / total
    return slots


def _picture(
    run: RunFolder, shape: Shape, scores: Floats, slots: dict[str, tuple[float, float]], shown: Ints
) -> _Picture:
    names = run.devices.names
    rings = 1 + max((len(path) for path in shape.above.values()), default=0)
    members: dict[str, list[int]] = {}
    for at, i in enumerate(shown.tolist()):
        members.setdefault(shape.teams[i], []).append(at)
    where: dict[tuple[str, ...], complex] = {(): 0j}
    angles: dict[tuple[str, ...], list[float]] = {}
    for team in members if run.teams else ():
        start, wide = slots[team]
        path = (*shape.above.get(team, ()), team)
        for depth in range(1, len(path) + 1):
            angles.setdefault(path[:depth], []).append(start + wide / 2)
    for path, around in angles.items():
        where[path] = len(path) / (rings + 1) * np.exp(1j * float(np.mean(around)))
    lines = [(where[path[:-1]], spot) for path, spot in where.items() if path]
    spots, texts, symbols = np.zeros(len(shown), complex), [""] * len(shown), ["circle"] * len(shown)
    for team, inside in members.items():
        start, wide = slots[team]
        spots[inside] = np.exp(1j * (start + wide * (np.arange(len(inside)) + 0.5) / len(inside)))
        lines += [(where[(*shape.above.get(team, ()), team) if run.teams else ()], spots[i]) for i in inside]
        for i in inside:
            first = run.devices.teams[shown[i]]
            began = f", began in {first}" * (team != first)
            texts[i] = f"{names[shown[i]]}{f', {team}' if team else ''}{began}"
            symbols[i] = "diamond" if began else "circle"
    ends = [z for a, b in lines for z in (a, b, None)]
    titles = ["cloud" if not p else f"{p[-1]}: {_size(members, p, shape)} devices" for p in where]
    return _Picture(
        (_axis(ends, "real"), _axis(ends, "imag")),
        (_axis(where.values(), "real"), _axis(where.values(), "imag"), safe(titles)),
        (_axis(spots, "real"), _axis(spots, "imag"), safe(texts)),
        scores,
        symbols,
    )


def _size(members: dict[str, list[int]], path: tuple[str, ...], shape: Shape) -> int:
    return sum(len(i) for team, i in members.items() if (*shape.above.get(team, ()), team)[: len(path)] == path)


def _axis(spots: Any, part: str) -> list[Any]:
    return [None if z is None else round(float(getattr(z, part)), 4) for z in spots]


def _traces(run: RunFolder, picture: _Picture, ends: tuple[float, float]) -> list[Any]:
    number = score_axis(run.metric)["hoverformat"]
    size = 13 if len(picture.scores) <= 60 else 9 if len(picture.scores) <= 300 else 6
    bar = {"title": {"text": axis_name(run.metric)}, "thickness": 12, "outlinewidth": 0, "len": 0.6}
    tick = {"tickformat": ".1~%"} if run.metric == "accuracy" else {}
    edges = {"color": "rgba(128,136,150,0.45)", "width": 1}
    return [
        go.Scatter(x=picture.edges[0], y=picture.edges[1], mode="lines", line=edges, hoverinfo="skip"),
        go.Scatter(
            x=picture.nodes[0],
            y=picture.nodes[1],
            text=picture.nodes[2],
            mode="markers",
            marker={"color": _GRAY, "size": [18] + [9] * (len(picture.nodes[0]) - 1), "symbol": "square"},
            hovertemplate="%{text}<extra></extra>",
        ),
        go.Scatter(
            x=picture.devices[0],
            y=picture.devices[1],
            text=picture.devices[2],
            mode="markers",
            marker={
                "colorscale": SCORES if run.higher_is_better else [(1 - at, c) for at, c in reversed(SCORES)],
                "cmin": ends[0],
                "cmax": ends[1],
                "colorbar": bar | tick,
                "size": size,
                "symbol": picture.symbols,
                "line": {"color": "rgba(128,136,150,0.8)", "width": 0.5},
            },
            hovertemplate=f"%{{text}}: %{{marker.color:{number}}}<extra></extra>",
        ),
    ]


def _slider(pictures: dict[int, _Picture], rounds: list[int]) -> dict[str, Any]:
    """A position of the slider is other values of the same three traces."""
    steps = []
    for r in rounds:
        p = pictures[r]
        change = {
            "x": [p.edges[0], p.nodes[0], p.devices[0]],
            "y": [p.edges[1], p.nodes[1], p.devices[1]],
            "text": ["", p.nodes[2], p.devices[2]],
            "marker.color": [_GRAY, _GRAY, plain(p.scores)],
            "marker.symbol": ["circle", "square", p.symbols],
        }
        steps.append({"label": str(r), "method": "restyle", "args": [change, [0, 1, 2]]})
    return {
        "active": len(rounds) - 1,
        **{"bgcolor": f"rgba({_SLIDER},.3)", "bordercolor": f"rgba({_SLIDER},.5)"},
        **{"activebgcolor": f"rgba({_SLIDER},1)", "tickcolor": f"rgba({_SLIDER},.7)"},
        "currentvalue": {"prefix": "after round "},
        "pad": {"t": 8, "b": 8, "l": 20, "r": 20},
        "len": 0.9,
        "x": 0.05,
        "steps": steps,
    }


def _scores(run: RunFolder, model: str, round_: int) -> Floats:
    """The headline metric of all devices in a round, NaN where it was not measured [N]."""
    places, values = run.scores(model)[round_]
    scores = np.full(len(run.devices.names), np.nan)
    scores[places] = values
    return scores


def _rows(run: RunFolder, shape: Shape, scores: Floats, shown: Ints) -> list[list[str]]:
    changes: dict[str, int] = {}
    for event in run.events_of("regroup"):
        changes[str(event.get("device"))] = changes.get(str(event.get("device")), 0) + 1
    return [
        [
            run.devices.names[i],
            shape.teams[i] or NONE,
            run.devices.teams[i] or NONE,
            str(changes.get(run.devices.names[i], 0)),
            score(None if np.isnan(s) else float(s), run.metric),
        ]
        for i, s in zip(shown.tolist(), scores.tolist(), strict=True)
    ]
