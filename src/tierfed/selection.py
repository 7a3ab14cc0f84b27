"""Early stopping and model selection: how good a run is on validation data, and which of its rounds was the best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tierfed import objective as objectives
from tierfed.engine import Engine
from tierfed.errors import InputError
from tierfed.evaluation import Ints, evaluate, kind
from tierfed.metrics import Row, higher_is_better, main_metric, summarize
from tierfed.objective import COSTS, Objective
from tierfed.rng import Purpose, sample
from tierfed.setup import World

BEST = "best"
"""The folder of the best round's checkpoint, inside that of the run."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What [select] asks for.

    :param devices: the validation devices, ascending
    :param rows: validation rows of the pool of each device of the run [N]
    :param post: whether personal_post has to be evaluated
    """

    goal: Objective
    sign: int
    devices: Ints
    rows: Sequence[Ints]
    post: bool
    patience: int
    min_delta: float


def selection(world: World) -> Selection | None:
    """What [select] asks for; none: the run ends with its last round, whose models are its result.

    :raises InputError: no such objective, or nothing to validate on
    """
    settings, federation = world.config.select, world.federation
    if not settings.by:
        if settings.patience:
            raise InputError("select.patience needs something to judge by; set select.by, for example personal_pre")
        return None
    goal = objectives.parse(settings.by, "select.by")
    for term in goal.terms:
        if term.of in COSTS or term.statistic == "gain":
            raise InputError(f"select.by = {settings.by!r}: costs and gains are not validated; name scores of models")
    able = np.array([i for i in range(len(federation)) if len(federation.val[i])], np.int64)
    if len(able) < max(1, settings.devices):
        raise InputError(
            f"select.devices = {settings.devices}: {len(able)} devices have validation data; give them some "
            "(data.split.val), or take fewer"
        )
    chosen = able
    if settings.devices:
        chosen = able[sample(settings.devices, len(able), world.config.run.seed, Purpose.VALIDATION)]
    return Selection(
        goal=goal,
        sign=goal.sign(main_metric(kind(world))),
        devices=chosen,
        rows=federation.val,
        post=any(t.of == "personal_post" for t in goal.terms),
        patience=settings.patience,
        min_delta=settings.min_delta,
    )


def judged(s: Selection, world: World, engine: Engine) -> float:
    """The objective on the validation data of the validation devices.

    :raises InputError: the algorithm has no such model
    """
    found = evaluate(engine, s.rows, kind(world), s.devices, s.post)
    rows = [
        Row(engine.round, "cloud", "cloud", model, "val", f"{metric}/{name}", value)
        for model, scores in found.items()
        for metric, (devices, values) in scores.items()
        for name, value in _statistics(values, [len(s.rows[i]) for i in devices], metric).items()
    ]
    value = s.goal.value(rows)
    if value is None:
        have = ", ".join(sorted(found))
        raise InputError(f"select.by = {s.goal.text!r}: this algorithm has {have}; name one of them")
    return value


def _statistics(values: Any, samples: list[int], metric: str) -> dict[str, float]:
    higher = higher_is_better(metric)
    out = summarize(values, samples, higher_is_better=higher)
    return {**out, "worst_device": summarize(values, samples, 0.0, higher)["worst"]}


def after(s: Selection, before: dict[str, Any] | None, value: float, round_: int) -> dict[str, Any]:
    """What is remembered after an evaluation: the best value and its round, the evaluations since then."""
    best = -math.inf if before is None else s.sign * before["best"]
    if before is None or (math.isfinite(value) and s.sign * value > best + (s.min_delta if before else 0.0)):
        return {"best": value if math.isfinite(value) else -s.sign * 1e300, "round": round_, "since": 0}
    return {**before, "since": before["since"] + 1}


def ended(s: Selection, now: dict[str, Any]) -> str:
    """Why the run ends here; empty: it goes on."""
    if not s.patience or now["since"] < s.patience:
        return ""
    return f"no better in {now['since']} evaluations: {s.goal.text} was best in round {now['round']}"
