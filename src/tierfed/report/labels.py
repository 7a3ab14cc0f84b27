"""Who holds what, and how well each device does on each label: heat maps of labels and devices."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from tierfed.data.dataset import evenly
from tierfed.metrics import BY_LABEL, LABELS, METRICS, Floats
from tierfed.report.colors import PALETTE
from tierfed.report.grid import own_model
from tierfed.report.load import MAX_DEVICES, Devices, RunFolder, load, read_table
from tierfed.report.style import HEAT, SCORES, Chart, chart, plain, safe
from tierfed.report.words import MODEL_NAMES, NONE, capped, score


def holdings(run: RunFolder) -> Chart:
    """Who holds what in a run."""
    return holdings_of(run.devices)


def holdings_of(devices: Devices) -> Chart:
    """Training samples for each label and device, or for each device where there are no labels; of many devices
    some, evenly taken.
    """
    order, shown = _by_team(devices, devices.counts.any(1))
    names, teams = [devices.names[i] for i in order], [devices.teams[i] for i in order]
    labels, among = devices.counts.shape[1], f" of {len(devices.names)}" if len(names) < len(devices.names) else ""
    if labels:
        counts = devices.counts[order]
        traces: list[Any] = [_heat(shown, devices, counts.T.tolist(), "samples", "%{z} samples", colorscale=HEAT)]
    else:
        traces = [go.Bar(x=shown, y=devices.train[order].tolist(), marker={"color": PALETTE[0]}, name="samples")]
    sums = [devices.train, devices.val, devices.test]
    rows = [
        [n, t, *(str(s[i]) for s in sums), " ".join(map(str, devices.counts[i].tolist()))]
        for i, n, t in zip(order, names, teams, strict=True)
    ]
    headers = ("device", "team", "train", "validation", "test", "training samples per label")
    return chart(
        "Who holds what",
        traces,
        x="device, by team" if any(teams) else "device",
        y="label" if labels else "training samples",
        alt=f"{'Heat map of training samples per label' if labels else 'Bar chart of training samples'} for "
        f"{len(names)} devices{among}; {int(devices.train.sum())} training samples in all.",
        note=f"{len(names)} devices{among} are drawn, evenly taken." if among else "",
        data=capped(headers if labels else headers[:-1], rows if labels else [r[:-1] for r in rows], 200, 2),
        height=_height(labels),
        layout=_layout(len(names)) if labels else _layout(len(names)) | {"yaxis": {}},
    )


def accuracies(run: RunFolder) -> list[Chart]:
    """The accuracy of each device on each label, of the model that a device would use and of the global one."""
    models = dict.fromkeys(m for m in (own_model(run), "global") if m in run.models)
    return [c for m in models if (c := _accuracy(run, m)) is not None]


def by_label(run: RunFolder, model: str) -> Floats:
    """The accuracy of each device on each label [N, L] in the last round, NaN where it was not measured.

    :raises InputError: the file of them is damaged
    """
    there = (run.path / LABELS).exists()
    found = load(run.path, LABELS, lambda p: read_table(p, METRICS)) if there else METRICS.empty_table()
    found = found.filter(pc.and_(pc.equal(found["model"], model), pc.equal(found["round"], run.last_round)))
    found = found.filter(pc.is_in(found["node"], pa.array(run.devices.names)))
    labels = [int(m.removeprefix(BY_LABEL)) for m in found["metric"].to_pylist()]
    out = np.full((len(run.devices.names), max(labels, default=-1) + 1), np.nan)
    out[run.places(found, "accuracy", run.devices.names), labels] = found["value"].to_numpy()
    return out


def _accuracy(run: RunFolder, model: str) -> Chart | None:
    values = by_label(run, model)  # [N, L]
    known = ~np.isnan(values)
    if not known.any():
        return None
    devices, labels = run.devices, values.shape[1]
    order, shown = _by_team(devices, known.any(1))
    z = [plain(values[order, k]) for k in range(labels)]
    heat = _heat(shown, devices, z, "accuracy", "%{z:.0%}", colorscale=SCORES, zmin=0, zmax=1)
    heat.colorbar.tickformat = ".1~%"
    means = {k: float(values[known[:, k], k].mean()) for k in range(labels) if known[:, k].any()}
    worst = min(means, key=lambda k: means[k])
    among = f" of {len(devices.names)}" if len(order) < len(devices.names) else ""
    said = f"Least over devices: label {_label(devices, worst)}, {score(means[worst], 'accuracy')} on average."
    rows = [
        [devices.names[i], *(score(v, "accuracy") if np.isfinite(v) else NONE for v in values[i].tolist())]
        for i in order
    ]
    return chart(
        f"Accuracy on each label: {MODEL_NAMES[model]}",
        [heat],
        x="device, by team" if any(devices.teams[i] for i in order) else "device",
        y="label",
        alt=f"Heat map of the accuracy of {len(order)} devices{among} on each of {labels} labels. {said}",
        data=capped(("device", *(_label(devices, k) for k in range(labels))), rows, 200),
        note=f"On the test samples of a label, last round; blank where a device has none. {said}",
        height=_height(labels),
        layout=_layout(len(order)),
    )


def _by_team(devices: Devices, known: Any) -> tuple[list[int], list[str]]:
    """Devices in a heat map, by team, of many some: their places, and what they are called.

    :param known: [N] who has something to show; nobody: all are taken
    """
    some = np.flatnonzero(known) if known.any() else np.arange(len(devices.names))
    order = sorted(some[evenly(len(some), MAX_DEVICES)].tolist(), key=lambda i: devices.teams[i])
    pairs = zip(safe(devices.names[i] for i in order), safe(devices.teams[i] for i in order), strict=True)
    return order, [f"{t} / {n}" if t else n for n, t in pairs]


def _heat(shown: list[str], devices: Devices, z: list[Any], what: str, value: str, **more: Any) -> Any:
    """A heat map of labels (rows of z) and devices."""
    return go.Heatmap(
        x=shown,
        y=safe(_label(devices, k) for k in range(len(z))),
        z=z,
        colorbar={"title": {"text": what}, "thickness": 12, "outlinewidth": 0},
        hovertemplate=f"%{{x}}, label %{{y}}: {value}<extra></extra>",
        hoverongaps=False,
        xgap=1 if len(shown) <= 120 else 0,
        ygap=1 if len(z) <= 40 else 0,
        **more,
    )


def _label(devices: Devices, k: int) -> str:
    return devices.labels[k] if k < len(devices.labels) else str(k)


def _height(labels: int) -> int:
    return min(max(240, 22 * labels + 140), 560)


def _layout(devices: int) -> dict[str, Any]:
    return {
        "hovermode": "closest",
        "xaxis": {"type": "category", "showticklabels": devices <= 40, "showgrid": False},
        "yaxis": {"type": "category", "showgrid": False},
    }
