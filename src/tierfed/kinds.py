"""The networks of a run: one for everybody, or different ones, and which device trains which."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from tierfed.config import KindSettings, ModelSettings
from tierfed.data import Federation
from tierfed.errors import InputError, nearest
from tierfed.models import build_model, check_fit, default_model
from tierfed.rng import Purpose, generator

Ids = npt.NDArray[np.int64]


def networks(
    settings: ModelSettings, federation: Federation, outputs: int, seed: int, module: nn.Module | None
) -> tuple[list[nn.Module], Ids | None]:
    """(one network per kind, the kind of each device [N] or None: all the same).

    :param outputs: numbers that a network has to give for a sample
    :param module: a network at hand, in the place of model.name
    :raises InputError: a network that cannot be built or does not fit the data; kinds that do not cover the devices
    """
    if not settings.kinds:
        return [_network(settings.name, settings.options, federation, outputs, seed, module)], None
    if module is not None or settings.name != "auto" or settings.options:
        other = "a module at hand" if module is not None else f"model.name = {settings.name!r} with its options"
        raise InputError(f"[[model.kinds]] and {other} are two ways to name the networks; give one of them")
    out = []
    for k, kind in enumerate(settings.kinds):
        with about(settings, k):
            out.append(_network(kind.name, kind.options, federation, outputs, seed, None))
    kinds = assign(settings.kinds, federation.devices, seed)
    return out, kinds if len(out) > 1 else None


@contextmanager
def about(settings: ModelSettings, kind: int) -> Iterator[None]:
    """Errors inside say which of several kinds they are about.

    :raises InputError: in the place of one
    """
    try:
        yield
    except InputError as err:
        if not settings.kinds:
            raise
        raise InputError(f"{_where(kind, settings.kinds[kind])}: {err}") from err.__cause__


def labels(settings: ModelSettings) -> tuple[str, ...]:
    """What the kinds are called: by the name of their network, with a number where several have it."""
    names = [kind.name for kind in settings.kinds or ()]
    return tuple(
        name if names.count(name) == 1 else f"{name} {names[: k + 1].count(name)}" for k, name in enumerate(names)
    )


def assign(kinds: Sequence[KindSettings], devices: Sequence[str], seed: int) -> Ids:
    """The kind of each device [N]: those named first, then numbers of devices by chance, then the rest.

    :raises InputError: an unknown device, one in two kinds, more or fewer places than devices, a kind without devices
    """
    out = np.full(len(devices), -1, np.int64)
    for k, kind in enumerate(kinds):
        for name in kind.devices if isinstance(kind.devices, tuple) else ():
            if name not in devices:
                raise InputError(f"{_where(k, kind)} names the device {name!r}; {nearest(name, devices)}")
            i = devices.index(name)
            if out[i] >= 0:
                other = _where(int(out[i]), kinds[out[i]])
                raise InputError(f"{_where(k, kind)} names the device {name!r}, and {other} too; leave it in one")
            out[i] = k
    free = np.flatnonzero(out < 0)
    free = free[generator(seed, Purpose.KINDS).permutation(len(free))]
    rest = [k for k, kind in enumerate(kinds) if kind.devices is None]
    if len(rest) > 1:
        raise InputError(
            f"{_where(rest[0], kinds[rest[0]])} and {_where(rest[1], kinds[rest[1]])} both take all the rest of the "
            "devices; give one of them a number of devices, or their names"
        )
    asked = sum(kind.devices for kind in kinds if isinstance(kind.devices, int))
    if asked > len(free) or (asked < len(free) and not rest):
        total = asked + len(devices) - len(free)
        raise InputError(
            f"model.kinds ask for {total} devices, but {'only ' if asked > len(free) else ''}{len(devices)} are there; "
            "change the numbers, or leave one table without `devices`, for all the rest"
        )
    for k, kind in enumerate(kinds):
        if isinstance(kind.devices, int):
            out[free[: kind.devices]], free = k, free[kind.devices :]
    for k in rest:
        out[free] = k
    empty = [k for k in range(len(kinds)) if not (out == k).any()]
    if empty:
        raise InputError(f"{_where(empty[0], kinds[empty[0]])} would be trained by no device; leave it out")
    return out


def _where(k: int, kind: KindSettings) -> str:
    return f"model.kinds.{k} ({kind.name})"


def _network(
    name: str, options: dict[str, Any], federation: Federation, outputs: int, seed: int, module: nn.Module | None
) -> nn.Module:
    shape, x = federation.shape, federation.x
    name = default_model(shape) if name == "auto" else name
    if module is None:
        module = build_model(name, shape, outputs, options, seed)
    check_fit(module, shape, outputs, name=name, dtype=None if x.is_floating_point() else x.dtype)
    return module
