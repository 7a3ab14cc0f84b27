"""Devices with data of their own, which nobody else has: a config names them, and they tell how many samples they hold.

With `deploy.devices` nobody reads the data of the run as a whole. The cloud asks every device for its number of
training, validation and test samples before round 1, for these weigh its replies; more of its data is never told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import torch

from tierfed.config import Config
from tierfed.data import DataSettings, Federation, PartitionSettings, federate, open_source
from tierfed.data.dataset import lengths
from tierfed.errors import InputError
from tierfed.plan import Plan
from tierfed.setup import World

Ints = npt.NDArray[np.int64]
PLACEHOLDER = "{name}"
_MADE_UP = 32  # rows of a pool that nobody trains on: shapes and kinds are those of the data


class Told(Sequence[Ints]):
    """Rows per device: how many there are, and which those of the devices here are.

    :param sizes: [N]
    :param here: rows of some of the devices
    """

    def __init__(self, sizes: Ints, here: Mapping[int, Ints] | None = None) -> None:
        self.sizes, self.here = sizes, dict(here or {})

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Ints: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Ints, ...]: ...

    def __getitem__(self, index: int | slice) -> Ints | tuple[Ints, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(len(self))[index])
        found = self.here.get(range(len(self))[index])
        return np.arange(self.sizes[index]) % _MADE_UP if found is None else found


def named(config: Config) -> tuple[tuple[str, ...], Ints]:
    """The devices of deploy.devices, and the fog of each [N].

    :raises InputError: what goes with it is missing, or does not
    """
    settings, data = config.deploy, config.data
    names = tuple(name for some in settings.devices.values() for name in some)
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(f"deploy.devices names {twice!r} twice; every device has one parent and one name")
    fogs = list(settings.devices)
    wanted = ["cloud"] if fogs == ["cloud"] else [f"fog-{k}" for k in range(len(fogs))]
    if fogs != wanted or not all(settings.devices.values()):
        raise InputError(f"deploy.devices has the parents {fogs}; wanted fog-0, fog-1, … or cloud alone, none empty")
    if not settings.shape:
        raise InputError("deploy.devices is set, and deploy.shape is not; give the shape of one sample, such as [9]")
    if data.public or data.public_path is not None or data.partition != PartitionSettings():
        raise InputError("deploy.devices is set: data.public, public_path and partition need all data in one place")
    if config.topology.teams not in ("auto", "natural"):
        raise InputError(f"topology.teams = {config.topology.teams!r}, but deploy.devices says who is below whom")
    return names, np.repeat(np.arange(len(fogs)), [len(v) for v in settings.devices.values()])


def counted(config: Config, sizes: Ints) -> Federation:
    """Who there is, for a process without any data.

    :param sizes: training, validation and test samples [3, N]
    """
    names, fogs = named(config)
    shape, classes = config.deploy.shape, tuple(str(c) for c in range(config.deploy.classes))
    dtype = getattr(torch, config.run.dtype)
    x = torch.randn(_MADE_UP, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = torch.arange(_MADE_UP) % len(classes) if classes else torch.zeros(_MADE_UP, dtype=dtype)
    flat = list(config.deploy.devices) == ["cloud"]
    return Federation(
        name="devices",
        x=x,
        y=y,
        classes=classes,
        train=Told(sizes[0]),
        val=Told(sizes[1]),
        test=Told(sizes[2]),
        devices=names,
        bits_per_sample=32 * int(np.prod(shape)),
        natural=None if flat else fogs,
        teams=() if flat else tuple(config.deploy.devices),
    )


def own(config: Config, name: str, path: Path | None) -> Federation:
    """The same for the process of a device, which has its own rows beside.

    :param path: its file; by default data.path, where {name} is its name
    :raises InputError: no such device; the file cannot be read, or holds other samples than the others have
    """
    names, _ = named(config)
    if name not in names:
        raise InputError(f"deploy.devices names no device {name!r}; add it, or check --name")
    mine = _alone(config, name, path)
    index, shape, most = names.index(name), tuple(mine.x.shape[1:]), config.deploy.classes
    if shape != tuple(config.deploy.shape):
        raise InputError(f"{name} has samples of shape {list(shape)}, deploy.shape is {list(config.deploy.shape)}")
    if len(mine.classes) > most or bool(mine.classes) != bool(most):
        raise InputError(
            f"{name} has {len(mine.classes)} classes, deploy.classes is {most}; count those of all devices"
        )
    parts = mine.train, mine.val, mine.test
    sizes = np.array([np.full(len(names), len(part[0])) for part in parts], np.int64)
    whole = counted(config, sizes)
    train, val, test = (Told(n, {index: part[0]}) for n, part in zip(sizes, parts, strict=True))
    return replace(whole, x=mine.x, y=mine.y, train=train, val=val, test=test, scaling=mine.scaling)


def _alone(config: Config, name: str, path: Path | None) -> Federation:
    """The data of one device as a federation of one."""
    where = str(path) if path is not None else (config.data.path or "").replace(PLACEHOLDER, name)
    settings: DataSettings = replace(config.data, path=where or None)
    data = open_source(settings)
    if data.device is None:
        settings = replace(settings, partition=PartitionSettings(kind="iid", devices=1))
    elif name not in data.devices:
        raise InputError(f"{where} has no rows of device {name!r}; give the file of this device with --data")
    found = federate(data, settings, config.run.seed, getattr(torch, config.run.dtype))
    i = 0 if data.device is None else found.devices.index(name)
    rows = found.train[i], found.val[i], found.test[i]
    at = torch.from_numpy(np.concatenate(rows))
    bounds = np.cumsum([0, *map(len, rows)])
    train, val, test = ((np.arange(a, b),) for a, b in pairwise(bounds))
    return replace(found, x=found.x[at], y=found.y[at], train=train, val=val, test=test, devices=(name,), natural=None)


def guessed(config: Config) -> Ints:
    """Numbers of samples [3, N] before anybody has told any: enough for every check."""
    batch = config.data.batch
    return np.full((3, len(named(config)[0])), max(2, batch if isinstance(batch, int) else 2), np.int64)


def recounted(world: World, sizes: Ints) -> World:
    """The same world with the numbers that devices have told [3, N]."""
    federation = world.federation
    parts = (federation.train, federation.val, federation.test)
    here = [part.here if isinstance(part, Told) else {} for part in parts]
    train, val, test = (Told(n, rows) for n, rows in zip(sizes, here, strict=True))
    plan: Plan = replace(world.plan, train=train, held=val)
    return replace(
        world,
        federation=replace(federation, train=train, val=val, test=test),
        plan=plan,
        topology=replace(world.topology, samples=plan.samples),
    )


def sizes_of(world: World) -> Ints:
    """[3, N]"""
    federation = world.federation
    return np.stack([lengths(federation.train), lengths(federation.val), lengths(federation.test)])
