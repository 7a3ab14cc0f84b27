"""What the laws are about: every row of the registry, and the options of a method that walk other paths.

A new algorithm needs no line here: its registry row is a case with its default settings. `QUICK` makes a slow one
cheap, `VARIANTS` adds options.
"""

from typing import Any

from tierfed.algorithm import Algorithm
from tierfed.algorithms import REGISTRY, make
from tierfed.task import Task

QUICK: dict[str, dict[str, Any]] = {"finetune": {"tune_epochs": 1}}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedavg, two epochs": ("fedavg", {"epochs": 2, "server_lr": 0.5}),
    "fedprox, edge": ("fedprox", {"edge": True, "mu": 0.1}),
    "fedadam, sgd": ("fedadam", {"optimizer": "sgd", "beta1": 0.5, "steps": 2}),
    "scaffold, edge": ("scaffold", {"edge": True}),
    "fedper, edge": ("fedper", {"edge": True}),
    "mtfl, statistics": ("mtfl", {"private": "us"}),
    "finetune, bias": ("finetune", {"tune": "bias", "tune_epochs": 1}),
    "finetune, head": ("finetune", {"tune": "head", "tune_epochs": 1}),
    "jobfed, team": ("jobfed", {"alpha_scope": "team", "change_share": "global"}),
    "jobfed, global": (
        "jobfed",
        {"alpha_scope": "global", "global_loss": "device_full", "alpha_effect": "prox", "direction": "np"},
    ),
    "jobfed, gradient": ("jobfed", {"alpha_rule": "gradient", "p_model": "full", "direction": "full"}),
    "jobfed, judge": ("jobfed", {"global_loss": "server_val", "private_set": "all", "recluster_every": 2}),
    "jobfed, k-means": ("jobfed", {"clustering": "spherical_kmeans", "min_team_size": 2, "alpha_effect": "none"}),
    "jobfed, inside": ("jobfed", {"cluster_scope": "inside_fog"}),
}

DEEP = {"jobfed, inside"}  # need a level of clusters below the fogs

CASES: dict[str, Algorithm] = {name: make(name, QUICK.get(name)) for name in REGISTRY} | {
    name: make(row, settings) for name, (row, settings) in VARIANTS.items()
}


def liftable(task: Task) -> list[str]:
    """The cases whose fogs are relays on a tree: they must not notice it."""
    out = []
    for name in sorted(CASES.keys() - DEEP):
        _, *fogs = CASES[name].tiers(task, (1, 2, 4, 12))
        if all(fog.relay for fog in fogs):
            out.append(name)
    return out


def fits(name: str, tree: str) -> bool:
    """Whether a case can run on a tree of `world.trees`."""
    return name not in DEEP or tree in ("4 tiers", "clusters")
