"""What the laws are about: every row of the registry, and the options of a method that walk other paths.

A new algorithm needs no line here: its registry row is a case with its default settings. `QUICK` makes a slow one
cheap, `VARIANTS` adds options.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from tierfed.algorithm import Algorithm
from tierfed.algorithms import REGISTRY, make
from tierfed.task import Task
from tierfed.testing.laws import Subject, is_relayed
from tierfed.testing.toy import toy_task
from tierfed.testing.trees import TREES

QUICK: dict[str, dict[str, Any]] = {
    "finetune": {"tune_epochs": 1},
    "reptile": {"steps": 2, "adapt_steps": 3},
    "permfl": {"steps": 2},
    "pfedme": {"inner": 2},
    "fedrep": {"head_epochs": 1},
    "l2gd": {"steps": 3},
    "al2gd": {"steps": 3},
    "fedmd": {"subset": 7, "digest_batch": 4, "public_epochs": 1},
    "perfit-fd": {"subset": 7, "digest_batch": 4},
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
    "ftl, adaptors": ("ftl", {"tune": "adaptors", "depth": 2, "epochs": 2}),
    "ftl, nothing": ("ftl", {"tune": "head", "depth": 0}),
    "reptile, sgd": ("reptile", {"optimizer": "sgd", "tune": "match", "match": "*bias", "steps": 2, "epochs": 2}),
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
    "fmtl, learned": ("fmtl", {"omega": "learned", "epochs": 2, "omega_every": 2}),
    "fmtl, trace": ("fmtl", {"omega": "learned", "scale": "trace", "eps": 1e-2, "lam": 0.01, "server_at": "fog"}),
    "fmtl, graph": ("fmtl", {"omega": "graph", "edges": [[0, 1], [5, 1, 0.5], [2, 8], [3, 4, 2.0]]}),
    "fmtl, teams": ("fmtl", {"omega": "cluster", "between": 0.3, "lam": 1.0}),
    "fmtl, clusters": ("fmtl", {"omega": "cluster", "clusters": 3, "between": 0.3}),
    "ifca, heads": ("ifca", {"depth": 1, "clusters": 3, "first": "noise"}),
    "cfl, splits": ("cfl", {"eps1": 1.0, "start": 1, "min_size": 1, "partition": "optimal", "server_at": "fog"}),
    "cfl, cloud": ("cfl", {"eps1": 1.0, "start": 1, "max_clusters": 3}),
    "mocha, mean": ("mocha", {"omega": "fixed_mean", "loss": "squared", "epochs": 2, "server_at": "fog"}),
    "mocha, graph": ("mocha", {"omega": "graph", "edges": [[0, 1], [5, 1, 0.5], [2, 8]], "loss": "hinge"}),
    "mocha, clusters": ("mocha", {"omega": "cluster", "between": 0.5, "samples": 32}),
    "fedmd, l1": ("fedmd", {"subset": 20, "digest": "l1", "digest_epochs": 2, "digest_lr": 0.02, "public_epochs": 0}),
    "fd, fog": ("fd", {"gamma": 1.0, "server_at": "fog", "epochs": 2}),
    "pfedhn, fog": ("pfedhn", {"server_at": "fog", "lr_hn": 0.1, "hidden": 1, "clip": 0.5}),
    "demlearn, updates": ("demlearn-p", {"similarity": "updates", "rebuild": 1, "amplify": 1.15, "amplify_rounds": 1}),
    "epflu, statistics": ("epflu", {"private": "us", "path": "2opt", "epochs": 2}),
    "ppt, few keys": ("ppt", {"ring_size": 2, "pool_size": 20, "path": "random", "noise": 3.0, "seed": 1}),
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

LINEAR = {"mocha"}  # rows whose model is one linear layer

DEEP = {"jobfed, inside"}  # need a level of clusters below the fogs

CASES: dict[str, Algorithm] = {name: make(name, QUICK.get(name)) for name in REGISTRY} | {
    name: make(row, settings) for name, (row, settings) in VARIANTS.items()
}


def task_of(
    name: str, act: Callable[[], nn.Module] = nn.ReLU, dtype: torch.dtype = torch.float64, dropout: float = 0.0
) -> Task:
    """The task of a case: the toy network, or logistic regression where a method takes nothing else."""
    if VARIANTS.get(name, (name,))[0] not in LINEAR:
        return toy_task(act, dtype, dropout)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Task(nn.Linear(8, 4).to(dtype))


def subject(name: str) -> Subject:
    """A case as the laws take it."""
    places = tuple(tree for tree in TREES if fits(name, tree))
    return Subject(algorithm=CASES[name], task=partial(task_of, name), trees=places)


def liftable() -> list[str]:
    """The cases whose fogs are relays on a tree: they must not notice it."""
    return [name for name in sorted(CASES.keys() - DEEP) if is_relayed(subject(name))]


def fits(name: str, tree: str) -> bool:
    """Whether a case can run on a tree of `tierfed.testing.trees.trees`."""
    return name not in DEEP or tree in ("4 tiers", "clusters")
