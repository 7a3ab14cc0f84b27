"""From a config to everything that a run needs, checked before anything is written."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tierfed.algorithm import Algorithm, Batch
from tierfed.algorithms import make
from tierfed.augment import Augmentation, augment, warm
from tierfed.augment.gan import Tell
from tierfed.checks import (
    check_evaluation,
    check_mixture,
    check_needs,
    check_on_demand,
    check_personalization,
    check_ray,
    check_tree,
    machine_bytes,
)
from tierfed.choice import Choice, choose, cores, round_seconds, tried, worth_a_trial
from tierfed.clock import Clock
from tierfed.computing import on_threads
from tierfed.config import Config
from tierfed.cost import Edge
from tierfed.data import Dataset, Federation, federate, load, public_samples
from tierfed.engine import ENGINES, Engine, Vectorized
from tierfed.engine.ray_crew import RayCrew
from tierfed.errors import InputError
from tierfed.kinds import Ids, about, labels, networks
from tierfed.link_checks import check_links, linked
from tierfed.links import NONE, Links
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
from tierfed.privacy_checks import guarded
from tierfed.store import MemoryStore, Records, Store
from tierfed.task import Task, loss_by_name
from tierfed.topology import Topology, build_topology
from tierfed.transfers import Transfer, public_transfers
from tierfed.tree import Params, nbytes

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """What a run works on."""

    config: Config
    federation: Federation
    algorithm: Algorithm
    tasks: tuple[Task, ...]
    """One per architecture."""
    plan: Plan
    topology: Topology
    clock: Clock
    device: torch.device
    engine_name: str
    choice: Choice = field(default_factory=Choice)
    """How visits are computed, by an engine that has a choice."""
    kinds: Ids | None = None
    """[N] which of the tasks each device has; none: all the one."""
    transfers: tuple[Transfer, ...] = ()
    """What crosses the links once, before round 1."""
    at_end: tuple[Transfer, ...] = ()
    """What crosses them once after the last round."""
    links: Links = NONE
    """What happens to replies on their way."""
    edge: Edge | None = None
    """Who computes what, where devices leave work to their edges."""
    placement: dict[str, Any] | None = None
    """The same for the log of the run."""
    augmentation: Augmentation | None = None
    """What devices train on beside their own samples."""
    begun: dict[str, Params] = field(default_factory=dict)
    """Tables of what was trained here: a run that goes on takes it from its store and does not train it again."""

    @property
    def task(self) -> Task:
        """The task of all devices; of several, the first, whose model the tiers are made for."""
        return self.tasks[0]

    def task_of(self, device: int) -> Task:
        """The task of a device."""
        return self.tasks[0 if self.kinds is None else int(self.kinds[device])]

    @property
    def kind_names(self) -> tuple[str, ...]:
        """What different architectures are called; none where all devices have the same."""
        return () if self.kinds is None else labels(self.config.model)

    def parts(self, store: Records) -> dict[str, Any]:
        """What every engine over this world is made of, by the names of its parameters."""
        return {
            "algorithm": self.algorithm,
            "tasks": self.tasks,
            "topology": self.topology,
            "plan": self.plan,
            "store": store,
            "faults": self.config.faults,
            "kinds": self.kinds,
            "clock": self.clock,
            "edge": self.edge,
            "links": self.links,
        }

    def engine(self, store: Store, tell: Tell | None = None) -> Engine:
        """An engine over a store. :param tell: is told what it begins beside this process"""
        engine = ENGINES["vectorized" if self.engine_name == "ray" else self.engine_name](**self.parts(store))
        if isinstance(engine, Vectorized):
            engine.kernel, engine.chunk, engine.workers = self.choice.kernel, self.choice.chunk, self.choice.workers
            engine.shares = self.choice.shares
            engine.bf16, engine.threads = self.choice.bf16, self.config.run.threads or cores()
        if isinstance(engine, Vectorized) and self.engine_name == "ray":
            asked = self.config.engine
            engine.hire = partial(RayCrew, workers=asked.workers, address=asked.address, gpus=asked.gpus, tell=tell)
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
    federation: Federation | None = None,
    begun: Mapping[str, Params] | None = None,
    computed: Mapping[str, Any] | None = None,
    draft: bool = False,
    tell: Tell | None = None,
) -> World:
    """The world of a config.

    :param data: a data set at hand, in the place of data.source
    :param module: a model at hand, in the place of model.name
    :param federation: who holds what, in the place of [data]
    :param begun: `World.begun` of the run that goes on
    :param computed: how the run that goes on was computed: its kernel, and the shares of a cohort
    :param draft: nothing is trained here and no sample generated: a world to look at, not to run
    :param tell: is told every two seconds how far a training is
    :raises InputError: whatever does not fit, before anything is written
    """
    settings = {k: v for k, v in config.algorithm.items() if k not in ("name", "label")}
    algorithm = make(str(config.algorithm.get("name", "fedavg")), settings)
    check_ray(config)
    # whoever trains elsewhere is given arrays of the main memory
    device = choose_device("cpu" if config.engine.name == "ray" else config.run.device)
    dtype = cast("torch.dtype", getattr(torch, config.run.dtype))
    seed = config.run.seed
    federation = _held(config, data, dtype) if federation is None else federation
    check_evaluation(config, len(federation))
    outputs = len(federation.classes) or (1 if federation.y.dim() == 1 else federation.y.shape[1])
    modules, kinds = networks(config.model, federation, outputs, seed, module)
    loss = loss_by_name(
        config.model.loss if config.model.loss != "auto" else "cross_entropy" if federation.classes else "mse"
    )
    begun = {} if begun is None else begun
    check_on_demand(config, federation)
    ranged = config.topology.teams in ("worst", "average")
    labels = federation.label_counts() if ranged else None  # teams are formed by what devices hold themselves
    train, public, rows = public_samples(config.data, federation, seed)
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
    at_cloud = None if public is None else _whole(*public, device)
    tasks = []
    for k, network in enumerate(modules):
        with about(config.model, k):
            there = network.to(device=device, dtype=dtype)
            tasks.append(Task(there, loss, config.model.weight_decay, at_cloud, len(federation.classes)))
    batch = None if config.data.batch == "all" else config.data.batch
    plan = Plan(
        x=x,
        y=y,
        train=train,
        held=federation.val,
        batch=batch,
        seed=seed,
        dtype=dtype,
        whole=config.dp_sgd.clip is not None,
    )
    check_mixture(config, algorithm, len(tasks))
    check_needs(config, algorithm, tasks, kinds, plan, federation)
    topology = build_topology(config.topology, plan.samples, seed, federation.natural, labels)
    for k, task in enumerate(tasks):
        i = 0 if kinds is None else int(np.argmax(kinds == k))
        at = torch.from_numpy(train[i][: plan.width(i)]).to(device)
        with about(config.model, k):
            task.verify(x[at], y[at])
            algorithm.tiers(task, topology.shape)  # what it asks of a model is asked of every one
    check_tree(config, algorithm, tasks[0], topology)
    links, plan = linked(config, topology, plan, federation.classes, tasks[0].buffers)
    check_personalization(config, algorithm, tasks, kinds, plan, federation, topology)
    clock = Clock.of(topology, config.cost, federation.bits_per_sample, config.faults.deadline_seconds)
    made: dict[str, Params] = {}
    if more is not None and more.generator:
        made["generator"] = more.generator
    if more is not None and config.augment.warmup_epochs and not draft:
        made["init"] = begun.get("init") or _warm(config, algorithm, tasks, plan, more, tell)
        warmed = copy.deepcopy(modules[0])
        warmed.load_state_dict(made["init"], strict=False)
        tasks = [Task(warmed, loss, config.model.weight_decay, at_cloud, len(federation.classes))]
    world = World(
        transfers=(*(more.transfers if more is not None else ()), *public_transfers(algorithm, at_cloud, federation)),
        augmentation=more,
        begun=made,
        config=config,
        federation=federation,
        algorithm=algorithm,
        tasks=tuple(tasks),
        plan=plan,
        topology=topology,
        clock=clock,
        device=device,
        engine_name="vectorized" if config.engine.name == "auto" else config.engine.name,
        kinds=kinds,
        links=links,
    )
    return _checked(world, computed, draft, tell)


def _checked(world: World, computed: Mapping[str, Any] | None, draft: bool, tell: Tell | None) -> World:
    """The same with work left to edges, and with a choice of how it is computed."""
    world = world if world.config.offload.mode == "none" else offloaded(world)
    check_links(world.config, world.algorithm, lambda a: replace(world, algorithm=a).engine(MemoryStore()))
    world = replace(world, tasks=guarded(world.config, world.engine(MemoryStore())))
    return world if world.engine_name == "serial" else replace(world, choice=_choice(world, computed, draft, tell))


def _held(config: Config, data: Dataset | None, dtype: torch.dtype) -> Federation:
    """Who holds what, as [data] says; of a data set at hand, if there is one."""
    if config.deploy.devices and data is None:
        raise InputError(
            "deploy.devices names devices with files of their own, so nobody has the data of this run in one place: "
            "deploy it (`tierfed up`, or `tierfed cloud`, `fog` and `device`), or leave deploy.devices out"
        )
    seed = config.run.seed
    return load(config.data, seed, dtype) if data is None else federate(data, config.data, seed, dtype)


def _choice(world: World, computed: Mapping[str, Any] | None, draft: bool, tell: Tell | None) -> Choice:
    """How the visits of a run are computed."""
    settings, rounds, engine = world.config.engine, world.config.run.rounds, world.engine(MemoryStore())
    seconds = rounds * round_seconds(engine)
    choice = choose(settings, engine, seconds, **(computed or {}))
    if choice.gave_way and tell is not None:
        tell(choice.why)
    if computed or draft or not isinstance(engine, Vectorized) or not worth_a_trial(settings, seconds, choice):
        return choice
    alone = threads(world.config, [t.module for t in world.tasks])
    with on_threads(alone if choice.workers == 1 else 1):  # as many as it will have
        return tried(choice, settings, engine, tell)


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
    model = np.array([nbytes(world.task_of(i).init()) for i in range(n)], np.int64)
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
    if world.kinds is not None:
        raise InputError(
            f"offload.mode = 'split' cuts one model for all, but devices have {len(world.tasks)} different ones "
            "(model.kinds); set offload.mode to 'edge' or 'none', or take one model"
        )
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
        tasks=(task,),
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


def _whole(x: Tensor, y: Tensor, device: torch.device) -> Batch:
    """All samples of the cloud as one batch."""
    live = torch.ones(len(x), dtype=torch.bool, device=device)
    return Batch(x.to(device), y.to(device), live, torch.zeros((), dtype=torch.int64))


def _warm(
    config: Config, algorithm: Algorithm, tasks: Sequence[Task], plan: Plan, more: Augmentation, tell: Tell | None
) -> Params:
    """The first model, trained on the samples of the cloud.

    :raises InputError: devices have different models
    """
    settings = config.augment
    if len(tasks) > 1:
        raise InputError(
            f"augment.warmup_epochs = {settings.warmup_epochs} trains one first model for all, but devices have "
            f"{len(tasks)} different ones (model.kinds); set it to 0"
        )
    with on_threads(threads(config, [tasks[0].module])):
        return warm(
            tasks[0],
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


def threads(config: Config, modules: Sequence[nn.Module]) -> int:
    """Threads of PyTorch: small dense models are faster on one."""
    large = any(isinstance(m, _CONVOLUTIONS) for module in modules for m in module.modules())
    return config.run.threads or ((os.cpu_count() or 1) if large else 1)
