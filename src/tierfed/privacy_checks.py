"""Whether a guarantee of differential privacy holds for a run as a whole: asked before the first round."""

import numpy as np

from tierfed.config import Config
from tierfed.dpsgd import private_tasks, refusal
from tierfed.engine import Engine
from tierfed.engine.evaluate import message_to
from tierfed.errors import InputError
from tierfed.registry import REGISTRY
from tierfed.task import Task
from tierfed.topology import FORMED

_SILENT = "-"  # of `Entry.up`: nothing is sent


def protected(config: Config) -> list[str]:
    """The tables of a config that promise something."""
    links = [f"links.{name}.privacy" for name, s in config.links.items() if s.privacy.clip is not None]
    return links + (["dp_sgd"] if config.dp_sgd.clip is not None else [])


def guarded(config: Config, engine: Engine) -> tuple[Task, ...]:
    """The tasks of a run, with DP-SGD where it is asked for.

    :raises InputError: devices tell something that no promise covers, and what to do
    """
    found = protected(config)
    if not found:
        return tuple(engine.tasks)
    reason = _beside(config) or _drawn(config, engine)
    if reason:
        raise InputError(f"[{found[0]}] promises differential privacy, but {reason}")
    if not config.dp_sgd.on:
        return tuple(engine.tasks)
    check_dp_sgd(config, engine)
    return private_tasks(config.dp_sgd, engine.tasks)


def _beside(config: Config) -> str:
    stage, offload = config.personalize.mechanism, config.offload.mode
    says_more = stage != "none" and (stage not in REGISTRY or REGISTRY[stage].up != _SILENT)
    reasons = [
        (
            config.topology.teams in FORMED,
            f"topology.teams = {config.topology.teams!r} forms teams from replies that nothing protects, before the "
            "first round; take other teams: natural, random, sequential",
        ),
        (
            config.augment.kind != "none",
            f"augment.kind = {config.augment.kind!r} lets devices share what was made of their samples; set it to "
            "'none'",
        ),
        (
            bool(config.data.public) and not config.data.public_path,
            "data.public makes samples of the devices public; take a file with samples of nobody (data.public_path), "
            "or set data.public = 0",
        ),
        (
            offload != "none",
            f"offload.mode = {offload!r} gives an edge a device's samples, or what a model makes of each; set it to "
            "'none'",
        ),
        (
            config.start.run is not None,
            "the run that start.run names has told more, which is not counted; begin with the initial model",
        ),
        (
            says_more,
            f"personalize.mechanism = {stage!r} lets devices send more after the training, which is not counted; take "
            "one that sends nothing (ftl, local), or none",
        ),
    ]
    return next((text for holds, text in reasons if holds), "")


def _drawn(config: Config, engine: Engine) -> str:
    if config.topology.sampling != "poisson" or not any(s.privacy.clip for s in config.links.values()):
        return ""
    if config.topology.over == "all":
        return (
            "topology.over = 'all' makes a mean tell how many took part, which topology.sampling = 'poisson' draws; "
            "set over = 'active' or sampling = 'fixed'"
        )
    if any(engine.algorithm.regroup_scope(r) for r in range(config.run.rounds)):
        return (
            "devices change team in the run, so the number that topology.sampling = 'poisson' expects below a fog "
            "changes; set sampling = 'fixed'"
        )
    return ""


def check_dp_sgd(config: Config, engine: Engine) -> None:
    """Whether all that devices send is made of noised gradients.

    :raises InputError: an algorithm that looks at samples in another way, samples that are twice in a pass
    """
    name, algorithm, plan = str(config.algorithm.get("name")), engine.algorithm, engine.plan
    if algorithm.steps is not None:
        fewest = int((plan.samples // plan.widths).min())
        if algorithm.steps > fewest:
            raise InputError(
                f"algorithm.steps = {algorithm.steps} with [dp_sgd]: a pass would have samples twice on a device with "
                f"{fewest} whole batches, and one of them could do more than dp_sgd.clip says; take at most {fewest} "
                "steps and more epochs"
            )
    kinds = np.zeros(len(plan.samples), np.int64) if engine.kinds is None else engine.kinds
    for kind in range(len(engine.tasks)):
        device = int(np.argmax(kinds == kind))
        data = plan.one(device, algorithm, 0, 0)
        reason = refusal(algorithm, engine.task(device), message_to(engine, device), engine.own(device), data)
        if reason:
            raise InputError(
                f"[dp_sgd] noises the gradients of task.train alone, but {name} {reason}: no guarantee holds; take "
                "another algorithm, or protect whole devices ([links.NAME.privacy])"
            )
