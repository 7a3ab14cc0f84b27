"""What is known of every algorithm without a run: where it comes from, what travels on each link, what it needs."""

from tierfed.algorithm import Algorithm
from tierfed.algorithms import known, make
from tierfed.errors import InputError
from tierfed.models import build_model
from tierfed.task import Task

_SHAPE = (1, 2, 4)  # cloud, fogs, devices
_EVERY, _ONE, _OWN, _PATH = "every message", "one mean", "the team's model", "one sum along a path"


def catalog() -> list[dict[str, str]]:
    """A row for every algorithm by name; with default settings, in a tree with one level of fogs."""
    rows = []
    for name, entry in sorted(known().items()):
        algorithm = make(name)
        fog, linear = _over_a_fog(algorithm)
        rows.append(
            {
                "name": name,
                "paper": entry.paper,
                "up": entry.up,
                "down": entry.down,
                "fog to cloud": "-" if entry.up == "-" else fog,
                "models": entry.models,
                "needs": ", ".join([*(["a linear model"] if linear else []), *needs(algorithm)]) or "-",
                "all devices": "yes" if algorithm.needs_full else "no",
                "different models": "yes" if algorithm.mixed_models else "no",
            }
        )
    return rows


def _over_a_fog(algorithm: Algorithm) -> tuple[str, bool]:
    """(what a fog says to the cloud, whether the algorithm refuses what is no linear model)"""
    dense, linear = (
        build_model("mlp", (4,), 2, {"hidden": [3], "batch_norm": True}, 0),
        build_model("mclr", (4,), 2, {}, 0),
    )
    try:
        return fog_link(algorithm, Task(dense, classes=2)), False
    except InputError:
        return fog_link(algorithm, Task(linear, classes=2)), True


def fog_link(algorithm: Algorithm, task: Task) -> str:
    """What a fog says to the cloud about its devices' messages."""
    cloud, fog = algorithm.tiers(task, _SHAPE)
    if not fog.relay:
        return _PATH if fog.reduce == "chain" else _OWN
    return _EVERY if cloud.sees or cloud.watches or cloud.reduce != "mean" else _ONE


def needs(algorithm: Algorithm) -> list[str]:
    """What a run must have beside training data."""
    return [
        *(["batch norms"] if algorithm.needs_norms else []),
        *(["held-out local data"] if algorithm.needs_held else []),
        *(["public samples"] if algorithm.needs_public else []),
    ]
