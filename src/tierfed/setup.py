"""From a config to everything that a run needs, checked before anything is written."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from tierfed.algorithm import Algorithm, Batch
from tierfed.algorithms import make
from tierfed.augment import Augmentation, augment, on_threads, warm
from tierfed.augment.gan import Tell
from tierfed.checks import check_memory, check_needs, check_participation, machine_bytes
from tierfed.clock import Clock
from tierfed.config import Config
from tierfed.data import Dataset, Federation, federate, load
from tierfed.engine import ENGINES, Engine, Vectorized
from tierfed.errors import InputError
from tierfed.models import build_model, check_fit
from tierfed.plan import Plan
from tierfed.rng import Purpose, generator
from tierfed.store import Store
from tierfed.task import Task, loss_by_name
from tierfed.topology import Topology, build_topology
from tierfed.transfers import Transfer
from tierfed.tree import Params, nbytes, take

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
    augmentation: Augmentation | None = None
    """What devices train on beside their own samples."""
    begun: dict[str, Params] = field(default_factory=dict)
    """Tables of what was trained here: a run that goes on takes it from its store and does not train it again."""

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


def prepare(
    config: Config,
    data: Dataset | None = None,
    module: nn.Module | None = None,
    *,
    begun: Mapping[str, Params] | None = None,
    draft: bool = False,
    tell: Tell | None = None,
) -> World:
    """The world of a config.

    :param data: a data set at hand, in the place of data.source
    :param module: a model at hand, in the place of model.name
    :param begun: `World.begun` of the run that goes on
    :param draft: nothing is trained here and no sample generated: a world to look at, not to run
    :param tell: is told every two seconds how far a training is
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
    begun = {} if begun is None else begun
    labels, train, public, rows = federation.label_counts(), federation.train, None, None
    if config.data.public:
        train, rows = share_with_cloud(train, config.data.public, seed)
    more = None
    if config.augment.kind != "none":
        more = augment(
            replace(federation, train=train),
            config.augment,
            seed,
            public=rows,
            room=machine_bytes(),
            generator=begun.get("generator"),
            draft=draft,
            tell=tell,
        )
        federation, train = more.federation, more.federation.train
    x, y = federation.x.to(device), federation.y.to(device)
    if rows is not None:
        at = torch.from_numpy(rows).to(device)
        public = Batch(
            x[at], y[at], torch.ones(len(rows), dtype=torch.bool, device=device), torch.zeros((), dtype=torch.int64)
        )
    task = Task(module.to(device=device, dtype=dtype), loss, config.model.weight_decay, public)
    batch = None if config.data.batch == "all" else config.data.batch
    plan = Plan(x=x, y=y, train=train, held=federation.val, batch=batch, seed=seed, dtype=dtype)
    check_needs(config, algorithm, task, plan, federation)
    topology = build_topology(config.topology, plan.samples, seed, federation.natural, labels)
    task.verify(
        x[torch.from_numpy(train[0][: plan.width(0)]).to(device)],
        y[torch.from_numpy(train[0][: plan.width(0)]).to(device)],
    )
    check_participation(str(config.algorithm.get("name")), algorithm, topology)
    shared, tiers = take(task.init(), algorithm.shared(task)), algorithm.tiers(task, topology.shape)
    check_memory(str(config.algorithm.get("name")), tiers, topology, shared)
    clock = Clock.of(topology, config.cost, federation.bits_per_sample, config.faults.deadline_seconds)
    made: dict[str, Params] = {}
    if more is not None and more.generator:
        made["generator"] = more.generator
    if more is not None and config.augment.warmup_epochs and not draft:
        made["init"] = begun.get("init") or _warm(config, algorithm, task, plan, more, tell)
        module = copy.deepcopy(module)
        module.load_state_dict(made["init"], strict=False)
        task = Task(module, loss, config.model.weight_decay, public)
    return World(
        transfers=() if more is None else more.transfers,
        augmentation=more,
        begun=made,
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


def _warm(
    config: Config, algorithm: Algorithm, task: Task, plan: Plan, more: Augmentation, tell: Tell | None
) -> Params:
    """The first model, trained on the samples of the cloud."""
    settings = config.augment
    with on_threads(threads(config, task.module)):
        return warm(
            task,
            plan.x,
            plan.y,
            more.cloud,
            epochs=settings.warmup_epochs,
            lr=settings.warmup_lr or algorithm.lr,
            batch=plan.batch,
            seed=plan.seed,
            tell=tell,
        )


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
