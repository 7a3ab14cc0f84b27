"""What the laws are about: every row of the registry, and the options of a method that walk other paths.

A new algorithm needs no line here: its registry row is a case with its default settings. `QUICK` makes a slow one
cheap, `VARIANTS` adds options.
"""

from typing import Any

from tierfed.algorithm import Algorithm
from tierfed.algorithms import REGISTRY, make
from tierfed.task import Task

QUICK: dict[str, dict[str, Any]] = {
    "finetune": {"tune_epochs": 1},
    "permfl": {"steps": 2},
    "pfedme": {"inner": 2},
    "fedrep": {"head_epochs": 1},
    "l2gd": {"steps": 3},
    "al2gd": {"steps": 3},
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedavg, two epochs": ("fedavg", {"epochs": 2, "server_lr": 0.5}),
    "fedprox, edge": ("fedprox", {"edge": True, "mu": 0.1}),
    "fedadam, sgd": ("fedadam", {"optimizer": "sgd", "beta1": 0.5, "steps": 2}),
    "scaffold, edge": ("scaffold", {"edge": True}),
    "fedper, edge": ("fedper", {"edge": True}),
    "mtfl, statistics": ("mtfl", {"private": "us"}),
    "finetune, bias": ("finetune", {"tune": "bias", "tune_epochs": 1}),
    "finetune, head": ("finetune", {"tune": "head", "tune_epochs": 1}),
    "pfedla, relu": ("pfedla", {"head": "relu_norm", "first": "self", "server_at": "fog", "lr_hn": 0.5, "hidden": 1}),
    "heurpfedla, top": ("heurpfedla", {"top_m": 4, "lr_hn": 0.5, "hidden": 0, "server_at": "fog"}),
    "fedfomo, fog": ("fedfomo", {"models": 2, "explore": 0.0, "server_at": "fog"}),
    "permfl, as published": ("permfl", {"steps": 2, "code_compat_lambda": True}),
    "permfl, split": ("permfl", {"steps": None, "lambda_team": 1.0, "eta": 0.3}),
    "ditto, longer": ("ditto", {"personal_epochs": 2}),
    "apfl, batch": ("apfl", {"adapt": "batch", "alpha_lr": 0.5}),
    "per-fedavg, hf": ("per-fedavg", {"order": "hf", "delta": 0.1, "adapt_steps": 3}),
    "per-fedavg, exact": ("per-fedavg", {"order": "exact"}),
    "fedamp, own": ("fedamp", {"start": "own", "server_at": "fog", "sigma": 0.5, "alpha": 0.1}),
    "ifca, heads": ("ifca", {"depth": 1, "clusters": 3, "first": "noise"}),
    "cfl, splits": ("cfl", {"eps1": 1.0, "start": 1, "min_size": 1, "partition": "optimal", "server_at": "fog"}),
    "cfl, cloud": ("cfl", {"eps1": 1.0, "start": 1, "max_clusters": 3}),
    "pfedhn, fog": ("pfedhn", {"server_at": "fog", "lr_hn": 0.1, "hidden": 1, "clip": 0.5}),
    "demlearn, updates": ("demlearn-p", {"similarity": "updates", "rebuild": 1, "amplify": 1.15, "amplify_rounds": 1}),
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
