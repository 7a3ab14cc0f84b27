"""What both halves make of a config, and what they compare before a run begins."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tierfed.config import Config, EngineSettings, GridSettings, load_config
from tierfed.data import Dataset
from tierfed.errors import InputError
from tierfed.loop import with_given
from tierfed.session import fingerprint
from tierfed.settings import table
from tierfed.setup import World
from tierfed.tree import leaves

Source = Config | Mapping[str, Any] | str | Path


@dataclass(frozen=True, kw_only=True)
class Given:
    """What an app was made of."""

    config: Source
    data: Any
    module: Any

    def settled(self, run_config: Mapping[str, Any]) -> "Settled":
        """The config of a run with the keys of Flower's run config on top.

        :raises InputError: it has what Flower has no place for, or does not fit together
        """
        known = table(Config())
        # Flower lets users override only keys that an app has: an empty text is one that is left open
        overrides = {k: v for k, v in run_config.items() if "." in k and k.split(".")[0] in known and v != ""}
        first = sorted(overrides, key=lambda k: k != "algorithm.name")  # another name drops the former one's settings
        config = load_config(self.config, {k: overrides[k] for k in first})
        config = replace(
            config,
            engine=EngineSettings(name="serial"),
            run=replace(config.run, checkpoint_every=1),  # devices remember one visit back
            grid=GridSettings(),
        )
        _check(config)
        data = self.data() if callable(self.data) else self.data
        module = self.module if self.module is None or isinstance(self.module, nn.Module) else self.module()
        named, data = with_given(config, data, module)
        return Settled(config=config, data=data, module=module, mark=zlib.crc32(fingerprint(named).encode()))


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What a run is prepared from; `mark` is the same where the config is."""

    config: Config
    data: Dataset | None
    module: nn.Module | None
    mark: int


def _check(config: Config) -> None:
    """:raises InputError: the config asks for what only runs of tierfed's own have"""
    wrong = {
        "augment.kind": config.augment.kind,
        "offload.mode": config.offload.mode,
        "personalize.mechanism": config.personalize.mechanism,
        "select.by": config.select.by or "none",
        "start.run": config.start.run or "none",
    }
    for key, value in wrong.items():
        if value != "none":
            raise InputError(f"{key} = {value!r}: Flower's apps have no such stage; leave it out, or use `tierfed run`")


def check_world(world: World) -> None:
    """:raises InputError: the tree or the algorithm has no place in a star of supernodes"""
    name = world.config.algorithm.get("name", "fedavg")
    if world.topology.depth > 1:
        raise InputError(
            f"the tree has {' - '.join(world.topology.levels)}, but Flower's supernodes are right below its server; "
            "set topology.fogs = 0, or deploy the tree without Flower"
        )
    if any(tier.reduce == "chain" for tier in world.algorithm.tiers(world.task, world.topology.shape)):
        raise InputError(
            f"with algorithm.name = {name!r} a sum travels from device to device, but Flower's supernodes talk to its "
            "server alone, which would see every reply; take another algorithm"
        )
    if world.links.below or world.links.attack is not None:
        raise InputError(
            "[links] and [attack] change replies on their way, which Flower's messages have no place for; leave them "
            "out, or deploy the run without Flower"
        )
    if world.config.dp_sgd.on:
        raise InputError(
            "[dp_sgd] draws its noise from the seed of the run here, which Flower's server knows too: it would protect "
            "nobody; leave it out, or deploy the run without Flower"
        )


def card(world: World, settled: Settled, device: int) -> dict[str, Any]:
    """What has to be the same at a device and at the server."""
    rows, y = world.federation, world.federation.y
    held = [y[torch.from_numpy(np.asarray(part[device]))] for part in (rows.train, rows.val, rows.test)]
    crc = zlib.crc32(b"".join(np.ascontiguousarray(h.numpy()).tobytes() for h in held))
    squares = sum(float(t.double().square().sum()) for t in leaves(world.task_of(device).init()))
    return {"config": settled.mark, "samples": [len(h) for h in held], "labels": crc, "model": math.sqrt(squares)}


def differs(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What is not the same on two cards, in a user's words; empty: everything is."""
    if theirs.get("config") != mine["config"]:
        return "it has another config; give both apps the same one"
    if list(theirs.get("samples", [])) != mine["samples"] or theirs.get("labels") != mine["labels"]:
        return (
            f"it holds other data: {theirs.get('samples')} samples to train, validate and test on, here "
            f"{mine['samples']}, or other labels; give both apps the same data"
        )
    if not math.isclose(float(theirs.get("model", math.nan)), mine["model"], rel_tol=1e-5):
        return "its model begins with other values; name it in model.name, or seed what makes it"
    return ""
