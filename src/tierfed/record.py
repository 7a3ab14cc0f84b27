"""What a round leaves behind: rows of the metrics and events."""

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from tierfed.augment import Augmentation
from tierfed.cost import RoundCost
from tierfed.data.dataset import evenly
from tierfed.engine import Engine, RoundLog
from tierfed.evaluation import Found, Ints, kind
from tierfed.metrics import BY_LABEL, Floats, Row, Scores, confidence, gain, higher_is_better, main_metric, summarize
from tierfed.peers import PEER_LINK
from tierfed.setup import World
from tierfed.task import Task
from tierfed.transfers import Transfer

_ALL_COUNTED, _COUNTED = 10_000, 1_000  # devices whose labels are counted for reports: all, or of more so many
NOT_MEASURED = -1.0  # of a trace, see `Tier.traces`


def cost_rows(
    world: World, round_: int, cost: RoundCost, clock_seconds: float, links: tuple[str, ...] = ()
) -> list[Row]:
    """Bytes, seconds and joules of every link level and of the devices in one round.

    :param links: names of the link levels of the cost; those of the world's tree by default
    """
    rows = []
    levels = (*(links or world.topology.links), PEER_LINK)
    for d, link in enumerate(levels[: len(cost.down_bytes)]):
        values = {
            "down_bytes": cost.down_bytes[d],
            "up_bytes": cost.up_bytes[d],
            "seconds": cost.link_seconds[d],
            "joules": cost.link_joules[d],
        }
        if world.config.offload.mode == "split" and d == len(links or world.topology.links) - 1:
            values |= {"offload_down_bytes": cost.offload_down_bytes, "offload_up_bytes": cost.offload_up_bytes}
        rows += [Row(round_, "link", link, "", "", metric, float(v)) for metric, v in values.items()]
    if world.edge is not None:
        rows.append(Row(round_, "device", "", "", "", "edge_seconds", cost.edge_seconds))
    rows += [
        Row(round_, "device", "", "", "", "compute_seconds", cost.compute_seconds),
        Row(round_, "device", "", "", "", "compute_joules", cost.compute_joules),
        Row(round_, "cloud", "cloud", "", "", "round_seconds", cost.round_seconds),
        Row(round_, "cloud", "cloud", "", "", "clock_seconds", clock_seconds),
        Row(round_, "cloud", "cloud", "", "", "joules", sum(cost.link_joules) + cost.compute_joules),
    ]
    return rows


def summed(rows: list[Row]) -> list[Row]:
    """Costs of one round that came in several parts, added up; of the clock the last."""
    total: dict[Row, float] = {}
    for r in rows:
        key = r._replace(value=0.0)
        total[key] = r.value if r.metric == "clock_seconds" else total.get(key, 0.0) + r.value
    return [key._replace(value=value) for key, value in total.items()]


def transfer_event(transfer: Transfer, cost: RoundCost, round_: int = 0) -> dict[str, Any]:
    """What crossed the links once, in the log of a run: bytes of the devices' own links, seconds, joules."""
    return {
        "round": round_,
        "event": "transfer",
        "what": transfer.what,
        "down_bytes": int(transfer.down_bytes.sum()),
        "up_bytes": int(transfer.up_bytes.sum()),
        "seconds": cost.round_seconds,
        "joules": sum(cost.link_joules),
    }


def augment_event(augmentation: Augmentation) -> dict[str, Any]:
    """What devices got beside their own samples, in the log of a run: rows, distance of the labels, leakage."""
    return {"round": 0, "event": "augment", **augmentation.facts}


def trace_rows(world: World, engine: Engine, round_: int, log: RoundLog) -> list[Row]:
    """The scalars that algorithm and tiers want to be seen, of the nodes that this round visited."""
    rows = []
    for i in sorted({int(i) for v in log.visits for i in v.devices}):
        rows += _traces(round_, "device", world.federation.devices[i], engine.traced(engine.depth, i))
    for depth, tier in enumerate(engine.tiers):
        nodes = sorted({int(i) for b in log.bursts if b.depth == depth for i in b.parents})
        for node in nodes if tier.traces else ():
            name = "cloud" if depth == 0 else node_name(world, depth, node)
            rows += _traces(round_, world.topology.levels[depth], name, engine.traced(depth, node))
    return rows


def _traces(round_: int, tier: str, node: str, values: dict[str, float]) -> list[Row]:
    return [Row(round_, tier, node, "", "", t, v) for t, v in values.items() if v != NOT_MEASURED]


def node_name(world: World, depth: int, node: int) -> str:
    """The name of an inner node."""
    if depth == 0:
        return "cloud"
    return world.team_name(node) if depth == world.topology.depth - 1 else f"{world.topology.levels[depth]} {node}"


def events(world: World, round_: int, log: RoundLog) -> list[dict[str, Any]]:
    """Moves between teams and between parents, and faults of one round."""
    links = world.topology.links
    out: list[dict[str, Any]] = [
        {
            "round": round_,
            "event": "regroup",
            "device": world.federation.devices[i],
            "from": world.team_name(a),
            "to": world.team_name(b),
        }
        for i, a, b in log.moved
    ]
    out += [
        {
            "round": round_,
            "event": "rebuild",
            "node": node_name(world, level, i),
            "from": node_name(world, level - 1, a),
            "to": node_name(world, level - 1, b),
        }
        for level, i, a, b in log.reparented
    ]
    for event, counts in (("lost", log.lost), ("silent", log.silent)):
        out += [{"round": round_, "event": event, "link": links[d], "count": n} for d, n in sorted(counts.items())]
    return out


def score_rows(world: World, round_: int, found: Found, drawn: Ints, baseline: Scores | None = None) -> list[Row]:
    """Rows of every device, and statistics over devices; with the baseline's main metric also the gain over it.

    :param drawn: the devices that were evaluated; of a sample, the means get the half widths of their 95 % confidence
        intervals
    """
    rows: list[Row] = []
    for model, scores in found.items():
        for metric, (devices, values) in scores.items():
            for i, value in zip(devices.tolist(), values.tolist(), strict=True):
                rows.append(Row(round_, "device", world.federation.devices[i], model, "test", metric, value))
            better = None
            if baseline is not None and metric == main_metric(kind(world)):
                better = gain_over(baseline, Scores(devices, values), higher_is_better(metric))
            statistics = _statistics(world, metric, Scores(devices, values), better, len(drawn))
            rows += [Row(round_, "cloud", "cloud", model, "test", f"{metric}/{k}", v) for k, v in statistics.items()]
    return rows


def label_rows(world: World, round_: int, found: Found) -> list[Row]:
    """Takes the accuracies of single labels out of some scores: a row for every device that has the label."""
    return [
        Row(round_, "device", world.federation.devices[i], model, "test", metric, value)
        for model, scores in found.items()
        for metric in [m for m in scores if m.startswith(BY_LABEL)]
        for i, value in zip(*(a.tolist() for a in scores.pop(metric)), strict=True)
        if not math.isnan(value)
    ]


def gain_over(baseline: Scores, scores: Scores, higher: bool) -> Floats | None:
    """How much better each device does that both have scores of; None: there is no such device."""
    _, mine, theirs = np.intersect1d(scores.devices, baseline.devices, assume_unique=True, return_indices=True)
    return gain(scores.values[mine], baseline.values[theirs], higher) if len(mine) else None


def _statistics(world: World, metric: str, scores: Scores, better: Floats | None, drawn: int) -> dict[str, float]:
    """Statistics over devices of one metric of one model.

    :param better: gains over a baseline, if there is one
    :param drawn: how many devices were evaluated, those without test data among them
    """
    samples, population = [len(world.federation.test[i]) for i in scores.devices], len(world.federation)
    higher = higher_is_better(metric)
    out = summarize(scores.values, samples, higher_is_better=higher)
    out["worst_device"] = summarize(scores.values, samples, 0.0, higher)["worst"]
    if drawn < population:
        out["weighted_ci95"] = confidence(scores.values, population, samples, drawn)
        out["ci95"] = confidence(scores.values, population, drawn=drawn)
    if better is not None:
        known = better[~np.isnan(better)]
        out["gain"] = float(known.mean()) if len(known) else math.nan
        if drawn < population or len(better) < len(scores.values):
            out["gain_ci95"] = confidence(better, population)
    return out


def margins(rows: list[Row]) -> dict[str, float]:
    """The half width of the 95 % confidence interval of every number of `headline`; nothing where all devices were
    evaluated.
    """
    scores = ("accuracy/weighted", "abs_error/weighted")
    last = {r.model: r.round for r in rows if r.tier == "cloud" and r.metric in scores}
    halves = [r for r in rows if r.tier == "cloud" and r.metric.removesuffix("_ci95") in scores]
    return {r.model: r.value for r in halves if r.metric not in scores and r.round == last[r.model]}


def headline(rows: list[Row]) -> dict[str, float]:
    """The sample-weighted main metric of every model among some rows."""
    return {
        r.model: r.value for r in rows if r.tier == "cloud" and r.metric in ("accuracy/weighted", "abs_error/weighted")
    }


def numbers(rows: Iterable[Row]) -> dict[str, float]:
    """The numbers of a round that are not of single devices or fogs, by name: "personal_pre/accuracy/worst",
    "cloud/joules", "link/cloud-fog/up_bytes".
    """
    out = {}
    for r in rows:
        if r.tier in ("cloud", "link") or not r.node:
            place = r.model or (f"link/{r.node}" if r.tier == "link" else r.tier)
            out[f"{place}/{r.metric}"] = r.value
    return out


def device_table(world: World) -> pa.Table:
    """The table of devices: name, first team, samples, label counts; in a tree with more levels also the nodes above
    the team, with different models also which one. Of many devices, the labels of some are counted. The names of the
    labels are in its metadata.
    """
    f, n = world.federation, len(world.federation)
    most = n if n <= _ALL_COUNTED else _COUNTED
    counted = evenly(n, 0 if world.config.deploy.devices else most)  # whose labels nobody else knows
    counts: list[list[int] | None] = [None] * n
    for i, row in zip(counted.tolist(), f.label_counts(devices=counted).tolist(), strict=True):
        counts[i] = row
    teams = [world.team_name(k) for k in range(world.topology.nodes[-1])]
    columns = {
        "device": pa.array(f.devices if isinstance(f.devices, tuple) else list(f.devices), pa.string()),
        "team": pa.array(teams, pa.string()).take(pa.array(world.topology.parents[-1])),
        "train": pa.array(world.plan.samples),
        "val": pa.array(f.sizes("val")),
        "test": pa.array(f.sizes("test")),
        "counts": pa.array(counts, pa.list_(pa.int64())),
    }
    if world.topology.depth > 2:
        paths = [_above(world, k) for k in range(world.topology.nodes[-1])]
        columns["above"] = pa.array(paths, pa.list_(pa.string())).take(pa.array(world.topology.parents[-1]))
    if world.kinds is not None:
        columns["model"] = pa.array(world.kind_names, pa.string()).take(pa.array(world.kinds))
    return pa.table(columns).replace_schema_metadata({"labels": json.dumps(f.classes)})


def _above(world: World, team: int) -> list[str]:
    """The nodes between the cloud and a team, from the cloud down."""
    depth = world.topology.depth - 1
    at = np.array([team])
    return [node_name(world, d, int(world.topology.ancestor(depth, at, d)[0])) for d in range(1, depth)]


def task_summary(task: Task) -> dict[str, int]:
    """Numbers of the model."""
    init = task.init()
    return {
        "trainable": sum(init[k].numel() for k in task.trainable),
        "statistics": sum(init[k].numel() for k in task.buffers),
    }
