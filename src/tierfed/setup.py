"""From a config to everything that a run needs, checked before anything is written."""

import os
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from tierfed.algorithm import Algorithm, Batch
from tierfed.algorithms import make
from tierfed.checks import check_memory, check_needs, check_participation
from tierfed.clock import Clock
from tierfed.config import Config
from tierfed.cost import Edge
from tierfed.data import Dataset, Federation, federate, load
from tierfed.engine import ENGINES, Engine, Vectorized
from tierfed.errors import InputError
from tierfed.models import build_model, check_fit
from tierfed.offload import BEST, SplitTask, layers_of
from tierfed.placement import (
    bench,
    best_cut,
    check_offload,
    dry_visit,
    first_samples,
    measure_layers,
    raw_bytes,
    share_of_device,
)
from tierfed.plan import Plan
from tierfed.rng import Purpose, generator
from tierfed.store import MemoryStore, Store
from tierfed.task import Task, loss_by_name
from tierfed.topology import Topology, build_topology
from tierfed.transfers import Transfer
from tierfed.tree import nbytes, take

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_CACHE_BYTES, _GPU_BYTES, _MOST_AT_ONCE = 1 << 24, 1 << 30, 256
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """What a run works on."""

    config: Config
    federation: Federation
    algorithm: Algorithm
    task: Task
    plan: Plan
    topology: Topology
    clock: Clock
    device: torch.device
    engine_name: str
    transfers: tuple[Transfer, ...] = ()
    """What crosses the links once, before round 1."""
    at_end: tuple[Transfer, ...] = ()
    """What crosses them once after the last round."""
    edge: Edge | None = None
    """Who computes what, where devices leave work to their edges."""
    placement: dict[str, Any] | None = None
    """The same for the log of the run."""

    def engine(self, store: Store) -> Engine:
        """An engine over a store."""
        engine = ENGINES[self.engine_name](
            self.algorithm,
            [self.task],
            self.topology,
            self.plan,
            store,
            faults=self.config.faults,
            clock=self.clock,
            edge=self.edge,
        )
        if isinstance(engine, Vectorized):
            engine.chunk = self.config.engine.chunk or chunk_of(self.task, self.device)
        return engine

    def team_name(self, node: int) -> str:
        """The name of a lowest inner node; stays with it when devices move."""
        if self.topology.depth == 1:
            return ""
        names = self.federation.teams
        if self.config.topology.teams in ("auto", "natural") and len(names) == self.topology.nodes[-1]:
            return names[node]
        return f"{self.topology.levels[-2]} {node}"


def prepare(config: Config, data: Dataset | None = None, module: nn.Module | None = None) -> World:
    """The world of a config.

    :param data: a data set at hand, in the place of data.source
    :param module: a model at hand, in the place of model.name
    :raises InputError: whatever does not fit, before anything is written
    """
    settings = {k: v for k, v in config.algorithm.items() if k not in ("name", "label")}
    algorithm = make(str(config.algorithm.get("name", "fedavg")), settings)
    device, dtype = choose_device(config.run.device), cast("torch.dtype", getattr(torch, config.run.dtype))
    seed = config.run.seed
    federation = load(config.data, seed, dtype) if data is None else federate(data, config.data, seed, dtype)
    outputs = len(federation.classes) or (1 if federation.y.dim() == 1 else federation.y.shape[1])
    name = config.model.name if config.model.name != "auto" else default_model(federation.shape)
    if module is None:
        module = build_model(name, federation.shape, outputs, config.model.options, seed)
    check_fit(
        module,
        federation.shape,
        outputs,
        name=name,
        dtype=None if federation.x.is_floating_point() else federation.x.dtype,
    )
    loss = loss_by_name(
        config.model.loss if config.model.loss != "auto" else "cross_entropy" if federation.classes else "mse"
    )
    x, y = federation.x.to(device), federation.y.to(device)
    train, public = federation.train, None
    if config.data.public:
        train, rows = share_with_cloud(train, config.data.public, seed)
        at = torch.from_numpy(rows).to(device)
        public = Batch(
            x[at], y[at], torch.ones(len(rows), dtype=torch.bool, device=device), torch.zeros((), dtype=torch.int64)
        )
    task = Task(module.to(device=device, dtype=dtype), loss, config.model.weight_decay, public)
    batch = None if config.data.batch == "all" else config.data.batch
    plan = Plan(x=x, y=y, train=train, held=federation.val, batch=batch, seed=seed, dtype=dtype)
    check_needs(config, algorithm, task, plan, federation)
    topology = build_topology(config.topology, plan.samples, seed, federation.natural, federation.label_counts())
    task.verify(
        x[torch.from_numpy(train[0][: plan.width(0)]).to(device)],
        y[torch.from_numpy(train[0][: plan.width(0)]).to(device)],
    )
    check_participation(str(config.algorithm.get("name")), algorithm, topology)
    shared, tiers = take(task.init(), algorithm.shared(task)), algorithm.tiers(task, topology.shape)
    check_memory(str(config.algorithm.get("name")), tiers, topology, shared)
    clock = Clock.of(topology, config.cost, federation.bits_per_sample, config.faults.deadline_seconds)
    world = World(
        config=config,
        federation=federation,
        algorithm=algorithm,
        task=task,
        plan=plan,
        topology=topology,
        clock=clock,
        device=device,
        engine_name=choose_engine(config.engine.name, module, device),
    )
    return world if config.offload.mode == "none" else offloaded(world)


def offloaded(world: World) -> World:
    """The same run with work of the devices left to their edges, as its config says.

    :raises InputError: the algorithm, the model, the tree or the engine does not go with it
    """
    settings, name = world.config.offload, str(world.config.algorithm.get("name"))
    if settings.mode == "split" and world.config.engine.name == "auto":
        world = replace(world, engine_name="serial")
    check_offload(name, settings, world.engine(MemoryStore()), world.engine_name, world.config.run.rounds)
    return _trusting(world) if settings.mode == "edge" else _cut(world, name)


def _trusting(world: World) -> World:
    """Raw data go up, all training is at the edges, final models come down."""
    topology, n, speed = world.topology, len(world.federation), world.config.offload.edge_speed
    raw, none = raw_bytes(world.plan, world.algorithm, world.federation.bits_per_sample), np.zeros(n, np.int64)
    model = np.full(n, nbytes(world.task.init()), np.int64)
    up = Transfer(what="raw data", down_bytes=none, up_bytes=raw, end="parent", outside=True)
    down = Transfer(what="final models", down_bytes=model, up_bytes=none, end="parent", outside=True)
    return replace(
        world,
        topology=replace(topology, colocated=(*(topology.colocated or (False,) * topology.depth)[:-1], True)),
        transfers=(*world.transfers, up),
        at_end=(*world.at_end, down),
        edge=Edge(shares=(0.0,), speed=speed),
        placement={"mode": "edge", "device_share": 0.0, "edge_speed": speed},
    )


def _cut(world: World, name: str) -> World:
    """Devices and edges train the model together."""
    settings, task = world.config.offload, world.task
    cut, auto = settings.cut, settings.cut == BEST and BEST not in layers_of(task.module)
    if auto:
        cut = best_cut(bench(world.engine(MemoryStore()), world.clock, world.config.run.rounds), settings)
    task = SplitTask(task, cut, settings.tail)
    layers = measure_layers(task, first_samples(world.plan))
    for end in task.bounds[:-1]:
        if not layers[end - 1].floats:
            raise InputError(
                f"the output of layer {layers[end - 1].name!r} is no tensor [batch, ...] of floats, so it cannot be "
                f"sent; cut after one of {', '.join(layer.name for layer in layers[:-1] if layer.floats)}"
            )
    share = share_of_device(layers, task.bounds)
    log = {"mode": "split", "cut": cut, **({"tail": settings.tail} if settings.tail else {})}
    log |= {"chosen_by": settings.minimize} if auto else {}
    world = replace(
        world,
        task=task,
        edge=Edge(shares=(share,), speed=settings.edge_speed),
        placement={**log, "device_share": round(share, 4), "edge_speed": settings.edge_speed},
    )
    dry_visit(world.engine(MemoryStore()))
    if not task.asked:
        raise InputError(
            f"offload.mode = 'split', but {name} trains without gradients of the model, which is all that an edge with "
            "a part of it could compute; set offload.mode to 'edge' or 'none', or take another algorithm"
        )
    return world


def choose_device(name: str) -> torch.device:
    """:raises InputError: cuda was asked for and is not there"""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("run.device = 'cuda', but PyTorch sees no CUDA device; use 'cpu' or 'auto'")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def default_model(shape: tuple[int, ...]) -> str:
    """A network by the shape of a sample: [channels, length] a CNN, RGB images a LeNet with batch norm, else an MLP."""
    if len(shape) == 2:
        return "cnn1d"
    return "lenet16_bn" if shape == (3, 32, 32) else "mlp" if len(shape) == 1 else "epflu_mlp"


def choose_engine(name: str, module: nn.Module, device: torch.device) -> str:
    """For "auto" serial where a batched call does not pay or does not exist: convolutions on a CPU, recurrent nets."""
    if name != "auto":
        return name
    kinds = [type(m) for m in module.modules()]
    if any(issubclass(k, _RECURRENT) for k in kinds):
        return "serial"
    if device.type == "cpu" and any(issubclass(k, _CONVOLUTIONS) for k in kinds):
        return "serial"
    return "vectorized"


def chunk_of(task: Task, device: torch.device) -> int:
    """Devices per batched call: their models together stay in a CPU's cache, or fill a small part of a GPU."""
    room = _GPU_BYTES if device.type == "cuda" else _CACHE_BYTES
    return min(max(4, room // max(1, nbytes(task.init()))), _MOST_AT_ONCE)


def threads(config: Config, module: nn.Module) -> int:
    """Threads of PyTorch: small dense models are faster on one."""
    large = any(isinstance(m, (nn.Conv2d, nn.Conv3d)) for m in module.modules())
    return config.run.threads or ((os.cpu_count() or 1) if large else 1)


def share_with_cloud(train: Any, share: float, seed: int) -> Any:
    """(training rows that each device keeps, the cloud's rows): `share` of every device's; at least one is left."""
    kept, given = [], []
    for i, rows in enumerate(train):
        order = generator(seed, Purpose.SAMPLE, i).permutation(len(rows))
        n = min(round(share * len(rows)), len(rows) - 1)
        given.append(rows[np.sort(order[:n])])
        kept.append(rows[np.sort(order[n:])])
    return tuple(kept), np.sort(np.concatenate(given))
