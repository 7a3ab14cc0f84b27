"""What a round leaves behind: rows of the metrics and events."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from tierfed.augment import Augmentation
from tierfed.cost import RoundCost
from tierfed.data.dataset import evenly
from tierfed.engine import Engine, RoundLog
from tierfed.engine.evaluate import models
from tierfed.metrics import MODELS, Kind, Row, gain, higher_is_better, main_metric, per_sample_scores, summarize
from tierfed.peers import PEER_LINK
from tierfed.setup import World
from tierfed.task import Task
from tierfed.transfers import Transfer
from tierfed.tree import Params, Tree

Scores = dict[str, npt.NDArray[np.float64]]  # metric -> [N]; NaN: no such model or no test data
_ROWS_AT_ONCE = 8192
_ALL_COUNTED, _COUNTED = 10_000, 1_000  # devices whose labels are counted for reports: all, or of more so many
NOT_MEASURED = -1.0  # of a trace, see `Tier.traces`


def kind(world: World) -> Kind:
    """Classification or regression."""
    return "classification" if world.federation.classes else "regression"


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
        own, name = engine.own(i), world.federation.devices[i]
        rows += _traces(round_, "device", name, own, engine.algorithm.traces)
    for depth, tier in enumerate(engine.tiers):
        nodes = sorted({int(i) for b in log.bursts if b.depth == depth for i in b.parents})
        for node in nodes if tier.traces else ():
            kept = engine.kept(depth, node)
            name = "cloud" if depth == 0 else node_name(world, depth, node)
            rows += _traces(round_, world.topology.levels[depth], name, kept, tier.traces)
    return rows


def _traces(round_: int, tier: str, node: str, state: Tree, names: tuple[str, ...]) -> list[Row]:
    values = {t: float(state[t]) for t in names if t in state}
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


def evaluate(world: World, engine: Engine, post: bool) -> dict[str, Scores]:
    """Scores of every evaluated model on the test data of every device: model -> metric -> [N]."""
    test, n = world.federation.test, len(world.federation)
    out: dict[str, Scores] = {name: {} for name in MODELS}
    shared: dict[int, dict[str, torch.Tensor]] = {}
    for found in models(engine, np.arange(n), post):
        i, task = found.device, world.task_of(found.device)
        rows = torch.from_numpy(test[i]).to(world.device)
        if not len(rows):
            continue
        personal = {"personal_pre": found.personal_pre, "personal_post": found.personal_post}
        for name, params in {"global": found.global_model, "team": found.team, **personal}.items():
            if params is None or params.keys() < set(task.keys):
                continue  # the algorithm has no complete model of this kind
            if name in personal:
                scores = {k: v.mean() for k, v in _score(world, task, params, rows).items()}
            else:  # one model for many devices: scored once on everybody's data
                if id(params) not in shared:
                    shared[id(params)] = _score_all(world, params)
                scores = {k: v[i] for k, v in shared[id(params)].items()}
            for metric, value in scores.items():
                out[name].setdefault(metric, np.full(n, np.nan))[i] = float(value)
    return {name: scores for name, scores in out.items() if scores}


def _score(world: World, task: Task, params: Params, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Scores of single samples [len(rows)]."""
    parts: list[dict[str, torch.Tensor]] = []
    with torch.no_grad():
        for part in rows.split(_ROWS_AT_ONCE):
            y = world.plan.y[part]
            out = task.outputs(params, world.plan.x[part])
            parts.append(per_sample_scores(out, y, kind(world), task.loss(out, y)))
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def _score_all(world: World, params: Params) -> dict[str, torch.Tensor]:
    """Mean scores on every device's test data [N]."""
    test = world.federation.test
    rows = torch.from_numpy(np.concatenate(test)).to(world.device)
    sizes = [len(t) for t in test]
    each = _score(world, world.task, params, rows)
    return {k: torch.stack([part.mean() for part in v.split(sizes)]) for k, v in each.items()}


def score_rows(
    world: World, round_: int, found: dict[str, Scores], baseline: npt.NDArray[np.float64] | None = None
) -> list[Row]:
    """Rows of every device, and statistics over devices; with the baseline's main metric [N] also the gain over it."""
    rows, samples, main = [], world.federation.sizes("test"), main_metric(kind(world))
    for model, scores in found.items():
        for metric, values in scores.items():
            for name, value, n in zip(world.federation.devices, values.tolist(), samples, strict=True):
                if n:
                    rows.append(Row(round_, "device", name, model, "test", metric, value))
            higher = higher_is_better(metric)
            statistics = summarize(values, samples, higher_is_better=higher)
            statistics["worst_device"] = summarize(values, samples, 0.0, higher)["worst"]
            if baseline is not None and metric == main:
                better = gain(values, baseline, higher)
                statistics["gain"] = float(np.nanmean(better))
            rows += [Row(round_, "cloud", "cloud", model, "test", f"{metric}/{k}", v) for k, v in statistics.items()]
    return rows


def headline(rows: list[Row]) -> dict[str, float]:
    """The sample-weighted main metric of every model among some rows."""
    return {
        r.model: r.value for r in rows if r.tier == "cloud" and r.metric in ("accuracy/weighted", "abs_error/weighted")
    }


def device_table(world: World) -> pa.Table:
    """The table of devices: name, first team, samples, label counts; with different models also which one. Of many
    devices, the labels of some are counted.
    """
    f, n = world.federation, len(world.federation)
    counted = evenly(n, n if n <= _ALL_COUNTED else _COUNTED)
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
    if world.kinds is not None:
        columns["model"] = pa.array(world.kind_names, pa.string()).take(pa.array(world.kinds))
    return pa.table(columns)


def task_summary(task: Task) -> dict[str, int]:
    """Numbers of the model."""
    init = task.init()
    return {
        "trainable": sum(init[k].numel() for k in task.trainable),
        "statistics": sum(init[k].numel() for k in task.buffers),
    }
