"""Whether an algorithm, a model, data and a tree fit together: asked before anything is written."""

import inspect
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from tierfed.algorithm import Algorithm, Tier
from tierfed.algorithms import REGISTRY, make
from tierfed.config import Config, personalization
from tierfed.data import Federation
from tierfed.data.drawn import Numbered
from tierfed.engine.ray_cluster import check_address
from tierfed.errors import InputError
from tierfed.models import MODELS, build_model, default_model
from tierfed.plan import Ids, Plan
from tierfed.task import Task
from tierfed.topology import FORMED, Topology
from tierfed.tree import Params, nbytes, take

_GROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")
_MOST_GROUPED = 100_000  # devices whose labels are counted one by one
_STACKED = 2  # a node that sees its children holds their rows once more while it works


def check_on_demand(config: Config, federation: Federation) -> None:
    """Devices whose rows are computed when they are used.

    :raises InputError: something needs the rows of all of them
    """
    if not isinstance(federation.devices, Numbered):
        return
    given, n = f"data.partition.kind = {config.data.partition.kind!r}", len(federation)
    if config.augment.kind != "none":
        raise InputError(
            f"augment.kind = {config.augment.kind!r} gives every device rows of its own, but with {given} they are "
            "computed when they are used; set augment.kind = 'none', or take another partition"
        )
    if config.topology.teams in ("worst", "average") and n > _MOST_GROUPED:
        raise InputError(
            f"topology.teams = {config.topology.teams!r} counts the labels of all {n} devices, which {given} draws one "
            f"by one; take at most {_MOST_GROUPED} devices, or other teams: random, sequential"
        )


def check_evaluation(config: Config, devices: int) -> None:
    """:raises InputError: more devices shall be evaluated than there are"""
    if config.eval.devices > devices:
        raise InputError(
            f"eval.devices = {config.eval.devices}, but there are {devices} devices; take fewer, or 0 to evaluate all"
        )


def check_ray(config: Config) -> None:
    """What a cluster needs that can be said before it is asked.

    :raises InputError: Ray is not installed, a wrong address, settings that only Ray has for another engine
    """
    settings = config.engine
    if settings.name == "ray":
        check_address(settings.address)
        if config.run.device == "cuda":
            raise InputError(
                "run.device = 'cuda' is of this process, which only averages where engine.name = 'ray'; set it to "
                "'auto', and engine.gpus to the GPUs of each worker"
            )
    elif settings.address or settings.gpus:
        what = "address" if settings.address else "gpus"
        raise InputError(f"engine.{what} is of engine.name = 'ray', but engine.name = {settings.name!r}; change one")


def check_tree(config: Config, algorithm: Algorithm, task: Task, topology: Topology) -> None:
    """Everything that an algorithm needs of the tree, the machine, and of the models to begin with.

    :raises InputError: something is missing, and what to do
    """
    name = str(config.algorithm.get("name"))
    check_participation(name, algorithm, topology)
    shared, tiers = take(task.init(), algorithm.shared(task)), algorithm.tiers(task, topology.shape)
    check_memory(name, tiers, topology, shared)
    if config.start.run is not None and not algorithm.goes_on:
        raise InputError(
            f"{name} makes its models of dual variables that begin at 0, and cannot go on with trained ones; take "
            "another algorithm after a run, or this one from the start"
        )


def check_personalization(
    config: Config,
    algorithm: Algorithm,
    tasks: Sequence[Task],
    kinds: Ids | None,
    plan: Plan,
    federation: Federation,
    topology: Topology,
) -> None:
    """The same of the stage after the training, before that begins.

    :raises InputError: its mechanism is unknown, has other settings, needs something, or cannot go on with models
    """
    later = personalization(config)
    if later is None:
        return
    name = str(later.pop("name"))
    later.pop("label", None)
    stage = replace(config, algorithm={"name": name}, start=replace(config.start, run="that before"))
    try:
        mechanism = make(name, later, "personalize.options")
        check_mixture(stage, mechanism, len(tasks))
        check_needs(stage, mechanism, tasks, kinds, plan, federation)
        check_tree(stage, mechanism, tasks[0], topology)
        if config.personalize.start == "global" and not _has_global(algorithm, tasks[0], topology):
            raise InputError(
                f"{config.algorithm.get('name')} has no complete global model to begin with; set personalize.start = "
                "'personal'"
            )
    except InputError as err:
        raise InputError(f"personalize.mechanism = {name!r}: {err}") from None


def _has_global(algorithm: Algorithm, task: Task, topology: Topology) -> bool:
    """Whether the cloud has a whole model. Nothing is allocated."""
    cloud = algorithm.tiers(task, topology.shape)[0]
    like = {k: t.to("meta") for k, t in take(task.init(), algorithm.shared(task)).items()}
    return (cloud.model(cloud.init(like)) or {}).keys() >= set(task.keys)


def check_needs(
    config: Config,
    algorithm: Algorithm,
    tasks: Sequence[Task],
    kinds: Ids | None,
    plan: Plan,
    federation: Federation,
) -> None:
    """Everything that an algorithm needs of models and data.

    :param kinds: [N] which of the tasks each device has; None: all the one
    :raises InputError: something is missing, and what to do
    """
    name = str(config.algorithm.get("name"))
    check_batches(tasks, kinds, plan, federation)
    if algorithm.needs_public and tasks[0].public is None:
        raise InputError(
            f"{name} needs public samples, and there are none; set data.public, the share of every device's training "
            "rows that becomes public, or data.public_path, a file with samples of nobody"
        )
    if algorithm.needs_norms and not all(task.norms for task in tasks):
        model, remedy = _with_norms(config, federation)
        raise InputError(
            f"{name} keeps entries of batch norms on the devices, but the model {model!r} has no batch norm; {remedy}, "
            "or let other entries be private (algorithm.private or private_set)"
        )
    if algorithm.needs_held:
        check_held(config, federation)
    check_size(name, algorithm, plan, federation)


def check_mixture(config: Config, algorithm: Algorithm, models: int) -> None:
    """:raises InputError: devices have different models, and the algorithm or the formation of teams needs one"""
    if models == 1:
        return
    name = str(config.algorithm.get("name"))
    if not algorithm.mixed_models:
        able = [n for n in sorted(REGISTRY) if make(n).mixed_models]
        raise InputError(
            f"{name} sends models or parts of them, so all devices must have the same; with different ones "
            f"(model.kinds) take an algorithm that sends none: {', '.join(able)}"
        )
    if config.topology.teams in FORMED:
        raise InputError(
            f"topology.teams = {config.topology.teams!r} forms teams by models, so all devices must have the same; "
            "with different ones (model.kinds) take other teams: natural, random, sequential"
        )


def check_batches(tasks: Sequence[Task], kinds: Ids | None, plan: Plan, federation: Federation) -> None:
    """Batch norm cannot train on a batch of one sample.

    :param kinds: [N] which of the tasks each device has; None: all the one
    """
    norms = np.array([bool(task.norms) for task in tasks])[0 if kinds is None else kinds]
    single = np.flatnonzero(norms & (plan.widths < 2))
    if len(single):
        raise InputError(
            f"device {federation.devices[single[0]]!r} trains on batches of one sample, but the model has batch norm, "
            "which needs two; set data.batch and data.min_samples to 2 or more, or take a model without batch norm"
        )


def check_size(name: str, algorithm: Algorithm, plan: Plan, federation: Federation) -> None:
    """:raises InputError: a device has more training samples than the algorithm has room for"""
    if algorithm.most_samples is None:
        return
    widths = plan.widths
    sizes = (algorithm.steps or -(-plan.samples // widths)) * widths
    most = int(np.argmax(sizes))
    if sizes[most] > algorithm.most_samples:
        raise InputError(
            f"{name} has room for {algorithm.most_samples} training samples per device, but device "
            f"{federation.devices[most]!r} has {sizes[most]} in whole batches; set algorithm.samples to that or more"
        )


def check_held(config: Config, federation: Federation) -> None:
    """The algorithm measures on local validation data."""
    empty = np.flatnonzero(federation.sizes("val") == 0)
    if len(empty):
        raise InputError(
            f"{config.algorithm.get('name')} measures its losses on held-out local data, but {len(empty)} devices have "
            f"none (the first is {federation.devices[empty[0]]!r}); set data.split.val (now {config.data.split.val}) "
            "or data.min_samples higher"
        )


def check_participation(name: str, algorithm: Algorithm, topology: Topology) -> None:
    """:raises InputError: the algorithm needs every device in every round, and some are not polled"""
    for policy, link in zip(topology.policies, topology.links, strict=True):
        if algorithm.needs_full and policy.sample != 1.0:
            raise InputError(
                f"{name} needs every device in every round, but topology.participation polls only {policy.sample:g} "
                f"({'share' if isinstance(policy.sample, float) else 'number'} of the children) on the link {link}; "
                "set it to 1.0"
            )


def check_memory(name: str, tiers: Sequence[Tier], topology: Topology, shared: Params) -> None:
    """What inner nodes keep of models and children must fit into the machine's memory. Nothing is allocated.

    :raises InputError: it does not
    """
    there, needed = machine_bytes(), server_bytes(tiers, topology, shared)
    if there is not None and needed > there:
        raise InputError(
            f"the nodes above the devices would need {needed / 1e9:.1f} GB for {name} ({topology.devices} devices, a "
            f"model of {nbytes(shared) / 1e6:.1f} MB), this machine has {there / 1e9:.1f} GB; take a smaller model, "
            "fewer devices, or where the algorithm has them: smaller hypernetworks (algorithm.width, hidden), fewer "
            "candidates (top_m), servers at the fogs (server_at = 'fog')"
        )


def server_bytes(tiers: Sequence[Tier], topology: Topology, shared: Params) -> int:
    """Bytes of all that inner nodes keep, and of the largest set of rows that one of them works on."""
    like = {k: t.to("meta") for k, t in shared.items()}
    total, at_work = 0, 0
    for depth, tier in enumerate(tiers):
        total += topology.nodes[depth] * nbytes(tier.init(like))
        row = nbytes(tier.child(like, 0))
        if not row:
            continue
        to = depth + 1
        while to < len(tiers) and tiers[to].relay:
            to += 1
        below = max(len(topology.below(depth, node, to)) for node in range(topology.nodes[depth]))
        total += topology.shape[to] * row
        at_work = max(at_work, _STACKED * below * row if tier.sees else 0)
    return total + at_work


def machine_bytes() -> int | None:
    """Memory of this machine, or of the control group that the process is in; None: nobody says."""
    found = []
    with suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(ValueError, OSError):
        found.append(int(_GROUP_MEMORY.read_text("ascii")))
    return min(found, default=None)


def _with_norms(config: Config, federation: Federation) -> tuple[str, str]:
    """The network that has no batch norms, and what to do: an option of it, or another one."""
    auto = config.model.name == "auto" and not config.model.kinds
    chosen = default_model(federation.shape) if auto else config.model.name
    if chosen in MODELS and "batch_norm" in inspect.signature(MODELS[chosen].build).parameters:
        return chosen, "set model.options.batch_norm = true"
    there = [m for m in MODELS if _has_norms(m, federation)]
    return chosen, f"take one that has (here: {', '.join(there) or 'one of your own'})"


def _has_norms(name: str, federation: Federation) -> bool:
    if not MODELS[name].fits(federation.shape):
        return False
    return bool(Task(build_model(name, federation.shape, max(2, len(federation.classes)), {}, 0)).norms)
