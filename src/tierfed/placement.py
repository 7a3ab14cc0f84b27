"""Where a model is trained: what no offloading, every cut, and a trusted edge would need of the median device.

All by formulas: sizes of layers and messages, floating-point operations, and the run's clock; nothing is trained.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tierfed.algorithm import Algorithm
from tierfed.clock import Clock
from tierfed.cost import Offloaded, Visit, computing
from tierfed.engine import Engine
from tierfed.engine.evaluate import message_to
from tierfed.errors import InputError
from tierfed.offload import OffloadSettings, SplitTask, bounds, layers_of
from tierfed.plan import Plan
from tierfed.task import Task
from tierfed.topology import Topology
from tierfed.tree import Tree, nbytes
from tierfed.wire import payload

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
NOWHERE, TRUSTED = "no offloading", "trusted edge"
_WIDTH = 2  # samples of a batch on which layers are measured


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of a chain, measured on one sample.

    :param floats: of its output; 0: it is no tensor of floats [B, ...], so it cannot be sent
    :param out_bytes: the same in bytes
    :param flops: floating-point operations of the forward and the backward pass
    :param trainable: whether it has anything to train
    """

    name: str
    floats: int
    out_bytes: int
    flops: float
    trainable: bool


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What one way to train needs per round of the median device, of those that take part; see `placements`.

    :param cut: the layer of a cut, else ""
    :param floats: that a sample has at the cut
    :param up_bytes: on the device's own link, models included
    :param joules: of the device: computing and sending
    :param device_share: of the computing
    :param recommended: the best of all cuts
    """

    placement: str
    cut: str
    floats: int
    up_bytes: int
    down_bytes: int
    seconds: float
    joules: float
    device_share: float
    recommended: bool = False

    def need(self, of: str) -> float:
        """Seconds, joules or bytes."""
        return float(self.up_bytes + self.down_bytes if of == "bytes" else getattr(self, of))


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What placements are compared on.

    :param topology: the tree of a run without offloading
    :param message: from the parent; :param reply: of a device to it
    """

    task: Task
    algorithm: Algorithm
    plan: Plan
    topology: Topology
    clock: Clock
    message: Tree
    reply: Tree
    visits: int  # of a device per round
    rounds: int


def bench(engine: Engine, clock: Clock, rounds: int) -> Bench:
    """What a run would compare on. The device that stands for all in the size of messages is the first one."""
    message, reply, _ = dry_visit(engine)
    topology, plan = engine.topology, engine.plan
    return Bench(
        task=engine.tasks[0],
        algorithm=engine.algorithm,
        plan=plan,
        topology=replace(topology, colocated=(*topology.colocated[:-1], False)) if topology.colocated else topology,
        clock=clock,
        message=message,
        reply=reply,
        visits=int(np.prod([engine.bursts(d) for d in range(engine.depth)])),
        rounds=rounds,
    )


def dry_visit(engine: Engine, device: int = 0) -> tuple[Tree, Tree, Tree]:
    """A visit of a device on its first batch: (message to it, its reply, its new private state)."""
    message, data = message_to(engine, device), engine.plan.one(device, engine.algorithm, 0, 0)
    first = data._replace(rows=data.rows[:, :1], live=data.live[:, :1], seed=data.seed[:, :1])
    return message, *engine.algorithm.device(engine.task(device), message, engine.own(device), first)


def measure_layers(task: Task, x: Tensor) -> list[Layer]:
    """The layers of a chain, in order.

    :param x: some samples [B, ...]
    :raises InputError: the model is no chain
    """
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415  it takes a second to load

    names = layers_of(task.module)
    net, start, follow, begin, out = copy.deepcopy(task.module), x[:_WIDTH], False, 0, list[Layer]()
    for end, (name, layer) in enumerate(net.named_children(), 1):
        trained = [p for p in net[begin:end].parameters() if p.requires_grad]  # type: ignore[index]
        leaf = start.detach().requires_grad_(follow)
        began = leaf.clone()  # the counter takes no leaf as an input
        with FlopCounterMode(display=False) as count:
            h = net[begin:end](began)  # type: ignore[index]
            good = isinstance(h, Tensor) and h.is_floating_point() and len(h) == len(start)
            of = [*trained, *([leaf] if follow else [])]
            if good and of:
                torch.autograd.grad(h, of, torch.ones_like(h), allow_unused=True)
        learns = any(p.requires_grad for p in layer.parameters())
        flops = count.get_total_flops() / len(start) if good or end == len(names) else 0.0
        each = h[0].numel() if good else 0
        out.append(Layer(name=name, floats=each, out_bytes=4 * each, flops=flops, trainable=learns))
        if good:  # else what comes out is only known to the next layer, and measured together with it
            out[-1] = replace(out[-1], out_bytes=each * h.element_size())
            start, begin, follow = h, end, follow or bool(trained)
    return out


def share_of_device(layers: Sequence[Layer], ends: Sequence[int]) -> float:
    """How much of the computing of a cut model stays on the device.

    :param ends: where its parts end, see `bounds`
    """
    total = sum(layer.flops for layer in layers)
    at_edge = sum(layer.flops for layer in layers[ends[0] : ends[1]])
    return 1.0 - at_edge / total if total else 1.0


def exchange_bytes(layers: Sequence[Layer], ends: Sequence[int], label_bytes: int) -> tuple[int, int]:
    """Bytes down and up that one sample costs a device with a cut model, forward and backward."""
    h, front = layers[ends[0] - 1].out_bytes, any(layer.trainable for layer in layers[: ends[0]])
    if len(ends) == 2:
        return h * front, h + label_bytes
    middle, behind = layers[ends[1] - 1].out_bytes, any(layer.trainable for layer in layers[: ends[1]])
    return middle + h * front, h + middle * behind


def exchanged_bytes(task: SplitTask, plan: Plan, algorithm: Algorithm) -> tuple[Ints, Ints]:
    """What every device exchanges with its edge in a visit, down and up [N]: samples that gradients are computed on,
    times what one costs. Losses that are only measured come on top.
    """
    layers = measure_layers(task, first_samples(plan))
    down, up = exchange_bytes(layers, task.bounds, label_bytes(plan))
    samples = plan.work(np.arange(len(plan.train)), algorithm)
    return samples * down, samples * up


def first_samples(plan: Plan) -> Tensor:
    """Some samples of the first device."""
    return plan.x[torch.from_numpy(plan.train[0][:_WIDTH]).to(plan.x.device)]


def label_bytes(plan: Plan) -> int:
    """Bytes of the label of a sample."""
    return plan.y[0].numel() * plan.y.element_size()


def can_cut(layers: Sequence[Layer], tail: str) -> list[str]:
    """The layers after which a model can be cut before its tail."""
    names = [layer.name for layer in layers]
    last = names.index(tail) if tail in names else len(layers) - 1
    return [layer.name for layer in layers[:last] if layer.floats]


def raw_bytes(plan: Plan, algorithm: Algorithm, bits_per_sample: float) -> Ints:
    """Bytes of the raw samples [N] that training needs: held-out ones too, where the algorithm measures on them."""
    held = np.array([len(rows) for rows in plan.held]) if algorithm.needs_held else 0
    return np.ceil((plan.samples + held) * bits_per_sample / 8).astype(np.int64)


def placements(on: Bench, settings: OffloadSettings) -> list[Placement]:
    """No offloading, every cut, trusted edge. What crosses the links once is spread over the rounds. Recommended is the
    cut with the least of `settings.minimize` among those whose front has something to train, if there are any.

    :raises InputError: the model cannot be cut, or `settings.tail` is no layer behind any cut
    """
    layers = measure_layers(on.task, first_samples(on.plan))
    tail, names = settings.tail, [layer.name for layer in layers]
    if tail:
        bounds(names, names[0], tail)
    label, samples = label_bytes(on.plan), _work(on)
    none = np.zeros_like(samples)
    rows = [_placed(on, NOWHERE, "", payload(on.message), payload(on.reply), 1.0, settings, none, none)]
    for cut in can_cut(layers, tail):
        task, ends = SplitTask(on.task, cut, tail), bounds(names, cut, tail)
        down, up = exchange_bytes(layers, ends, label)
        parts = payload(task.crossing(on.message)), payload(task.crossing(on.reply))
        share = share_of_device(layers, ends)
        row = _placed(on, f"cut after {cut}", cut, *parts, share, settings, samples * down, samples * up)
        rows.append(replace(row, floats=layers[ends[0] - 1].floats))
    learning = [
        j for j, row in enumerate(rows) if row.cut and any(x.trainable for x in layers[: names.index(row.cut) + 1])
    ]
    cuts = learning or range(1, len(rows))  # a front that learns nothing sends the raw samples, again in every round
    if cuts:
        best = min(cuts, key=lambda j: (rows[j].need(settings.minimize), rows[j].seconds, j))
        rows[best] = replace(rows[best], recommended=True)
    return [*rows, _trusted(on, settings)]


def check_offload(name: str, settings: OffloadSettings, engine: Engine, engine_name: str, rounds: int) -> None:
    """:raises InputError: the algorithm, the tree or the engine does not go with the way of offloading"""
    given = f"offload.mode = {settings.mode!r}"
    if any(tier.reduce == "chain" for tier in engine.tiers):
        raise InputError(
            f"{given}, but in {name} devices hand a sum on to each other, so that no edge has their models; set "
            "offload.mode = 'none', or take another algorithm"
        )
    if settings.mode == "split" and engine_name != "serial":
        raise InputError(
            f"{given} exchanges messages for every batch of every device, which the {engine_name} engine trains many "
            "of at once; set engine.name to 'serial' or 'auto'"
        )
    moving = [r for r in range(rounds) if engine.algorithm.regroup_scope(r)]
    if settings.mode == "edge" and engine.depth > 1 and moving:
        raise InputError(
            f"{given}: the raw data of a device stay at the edge that got them, but {name} moves devices to other "
            f"teams (for the first time after round {moving[0] + 1}); set offload.mode to 'split' or 'none', or let "
            "the algorithm leave the teams as they are"
        )


def best_cut(on: Bench, settings: OffloadSettings) -> str:
    """The recommended one.

    :raises InputError: as `placements`; there is no layer to cut after
    """
    for row in placements(on, settings):
        if row.recommended:
            return row.cut
    raise InputError(
        "offload.cut = 'auto': the output of no layer of the model is a tensor [batch, ...] of floats that could be "
        "sent; put what belongs together into one layer, or set offload.mode to 'edge' or 'none'"
    )


def _work(on: Bench) -> Ints:
    """Samples that the devices process in a visit [N]."""
    return on.plan.work(np.arange(on.topology.devices), on.algorithm)


def _placed(
    on: Bench,
    name: str,
    cut: str,
    down: int,
    up: int,
    share: float,
    settings: OffloadSettings,
    more_down: Ints,
    more_up: Ints,
) -> Placement:
    """A row. :param more_down: [N] what is exchanged in training; :param more_up: likewise"""
    ids = np.arange(on.topology.devices)
    samples, shares, factor = _work(on), np.full(len(ids), share), np.ones(len(ids))
    there = Offloaded(share=shares, speed=settings.edge_speed, down_bytes=more_down, up_bytes=more_up)
    seconds = on.clock.visit_seconds(
        on.topology, ids, np.full(len(ids), down), np.full(len(ids), up), samples, factor, there
    )
    visit = Visit(tick=0, devices=ids, samples=samples, offloaded=there)
    own = computing(visit, on.clock.bits_per_sample, on.clock.settings)[1]
    joules = own + on.clock.moving(on.topology, ids, up + more_up)[1]
    return Placement(
        placement=name,
        cut=cut,
        floats=0,
        up_bytes=int(on.visits * median(up + more_up)),
        down_bytes=int(on.visits * median(down + more_down)),
        seconds=on.visits * median(seconds),
        joules=on.visits * median(joules),
        device_share=share,
    )


def _trusted(on: Bench, settings: OffloadSettings) -> Placement:
    raw, ids = raw_bytes(on.plan, on.algorithm, on.clock.bits_per_sample), np.arange(on.topology.devices)
    final = np.full(len(ids), nbytes(on.task.init()))
    (there, sending), (back, _) = (on.clock.moving(on.topology, ids, moved) for moved in (raw, final))
    zero = np.zeros(len(ids), np.int64)
    gone = Offloaded(share=np.zeros(len(ids)), speed=settings.edge_speed, down_bytes=zero, up_bytes=zero)
    visit = Visit(tick=0, devices=ids, samples=_work(on), offloaded=gone)
    at_edge = computing(visit, on.clock.bits_per_sample, on.clock.settings)[2]
    return Placement(
        placement=TRUSTED,
        cut="",
        floats=0,
        up_bytes=round(median(raw) / on.rounds),
        down_bytes=round(median(final) / on.rounds),
        seconds=median(on.visits * at_edge + (there + back) / on.rounds),
        joules=median(sending) / on.rounds,
        device_share=0.0,
    )


def median(values: npt.NDArray[Any]) -> float:
    """The lower median: a value that a device has."""
    return float(np.sort(values)[(len(values) - 1) // 2])
