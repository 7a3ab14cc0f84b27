"""What a checkpoint holds beside states: what a run was begun with, and whether it may go on."""

import copy
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tierfed.config import Config
from tierfed.data.drawn import Held, Numbered
from tierfed.errors import InputError
from tierfed.metrics import Row
from tierfed.session import fingerprint
from tierfed.setup import World
from tierfed.store import DiskStore
from tierfed.tree import Params


def check_config(store: DiskStore, path: Path, config: Config) -> None:
    """:raises InputError: the config was changed, fewer rounds than trained, a damaged record"""
    if store.meta and store.meta["fingerprint"] != fingerprint(config):
        raise InputError(f"{path / 'config.toml'} was changed since the run began; undo that, or start a new run")
    done = int(store.meta.get("round", 0))
    if config.run.rounds < done and not store.meta.get("stopped"):
        raise InputError(f"the run in {path} has trained {done} rounds already; {config.run.rounds} is less than that")
    store.verify()


def keep_begun(store: DiskStore, world: World, module: nn.Module | None) -> None:
    """What a run that goes on cannot make again from its config, or not without training it again."""
    given = {} if module is None else {"init": world.task.init()}
    for name, params in {**given, **world.begun}.items():
        store.put(name, 0, params)


def begun_with(store: DiskStore) -> dict[str, Params]:
    """The tables of `World.begun` that a run was begun with."""
    found = {name: store.get(name, 0) for name in ("init", "generator")}
    return {name: params for name, params in found.items() if params is not None}


def as_begun(store: DiskStore, module: nn.Module) -> nn.Module:
    """The module with the initial values of the run, whatever it holds by now.

    :raises InputError: it is another one
    """
    first = store.get("init", 0)
    if first is None:
        return module
    own = {k: list(v.shape) for k, v in module.state_dict().items() if k in first}
    if own != {k: list(v.shape) for k, v in first.items()}:
        raise InputError(
            "the module is not the one that the run was begun with: its parameters have other names or shapes"
        )
    module = copy.deepcopy(module)
    module.load_state_dict(first, strict=False)
    return module


def identity(world: World) -> dict[str, Any]:
    """What tells one federation from another; of x only the norm, for its last bits may differ between machines."""
    f, crc = world.federation, 0
    for held in ((f.y.contiguous().numpy(),), f.train, f.val, f.test):
        if isinstance(held, Held):
            crc = zlib.crc32(held.mark().to_bytes(4, "big"), crc)
            continue
        for array in held:
            crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    if not isinstance(f.devices, Numbered):
        crc = zlib.crc32("\n".join(f.devices).encode(), crc)
    norm = float(torch.linalg.vector_norm(f.x, dtype=torch.float64)) if f.x.is_floating_point() else float(f.x.sum())
    public = world.task.public
    if world.config.data.public_path is not None and public is not None:
        crc = zlib.crc32(public.y.cpu().numpy().tobytes(), crc)
        norm = math.hypot(norm, float(torch.linalg.vector_norm(public.x, dtype=torch.float64)))
    return {"crc": crc, "shape": list(f.x.shape), "norm": norm}


def check_data(store: DiskStore, path: Path, world: World) -> None:
    """:raises InputError: other data than the run began with"""
    if not store.meta:
        return
    before, now = store.meta.get("data"), identity(world)
    same = before is not None and {**before, "norm": 0} == {**now, "norm": 0}
    if not (same and before is not None and math.isclose(before["norm"], now["norm"], rel_tol=1e-5)):
        raise InputError(
            f"the data of the run in {path} are not those that it began with ({world.federation.name}); restore them, "
            "or start a new run"
        )


def replay(store: DiskStore) -> tuple[list[Row], list[dict[str, Any]]]:
    """The rows and events of the committed rounds."""
    rows: list[Row] = []
    happened: list[dict[str, Any]] = []
    for entry in store.logs():
        rows += [Row(*r) for r in entry["rows"]]
        happened += entry["events"]
    return rows, happened
