"""The user's own data: npz, csv and parquet files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from torch import Tensor

from tierfed.data.arrays import Array, existing, read_npz
from tierfed.data.dataset import Bytes, Dataset, Ints, bits
from tierfed.data.settings import Columns
from tierfed.errors import InputError, nearest

PARTS = ("train", "val", "test")


def from_npz(path: Path, columns: Columns) -> Dataset:
    """x [n, *shape], y [n] (or [n, k] numbers), and if it likes device [n], team [n] and split [n].

    :raises InputError: a missing array, lengths that differ, arrays that are no numbers
    """
    data = read_npz(path, ("x", "y"))
    x = data["x"]
    if x.ndim < 2 or x.dtype.kind not in "uifb":
        raise InputError(f"{path}: x is {x.dtype} {list(x.shape)}; it must be numbers [samples, …]")
    return _dataset(path, x, data["y"], {k: data[k] for k in ("device", "team", "split") if k in data}, columns)


def from_table(path: Path, columns: Columns, kind: str) -> Dataset:
    """A csv or parquet file with one row per sample.

    :raises InputError: a column that is not there (with the nearest name), a feature that is no number
    """
    existing(path)
    try:
        table = pyarrow.csv.read_csv(path) if kind == "csv" else pyarrow.parquet.read_table(path)
    except (pa.ArrowException, OSError) as err:
        raise InputError(f"{path} cannot be read as {kind}: {err}") from None
    names: list[str] = table.column_names
    roles = {role: _role(path, names, role, getattr(columns, role)) for role in ("device", "team", "split")}
    label = _known(path, names, columns.label, "label")
    taken = {label, *roles.values()}
    features = [_known(path, names, f, "features") for f in columns.features] or [
        name for name in names if name not in taken and _numeric(table.schema.field(name).type)
    ]
    if not features:
        raise InputError(
            f"{path} has no numeric column besides {columns.label!r}; name the inputs: data.columns.features"
        )
    for name in features:
        if not _numeric(table.schema.field(name).type):
            raise InputError(
                f"{path}: feature {name!r} is {table.schema.field(name).type}, not a number; "
                f"turn it into numbers, or leave it out of data.columns.features"
            )
    x = np.stack([table.column(name).to_numpy().astype(np.float32) for name in features], 1)
    extra = {role: _whole(path, table, name) for role, name in roles.items() if name}
    return replace(_dataset(path, x, _whole(path, table, label), extra, columns), features=tuple(features))


def _known(path: Path, names: Sequence[str], name: str, setting: str) -> str:
    if name not in names:
        raise InputError(f"{path} has no column {name!r} (data.columns.{setting}); {nearest(name, names)}")
    return name


def _role(path: Path, names: Sequence[str], role: str, name: str | None) -> str | None:
    """The column that plays a role: the one that is named, else the one of that name where there is one."""
    return _known(path, names, name, role) if name else (role if role in names else None)


def _numeric(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _whole(path: Path, table: Any, name: str) -> Array:
    """A column without gaps."""
    column = table.column(name)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise InputError(
            f"{path}: column {name!r} has {column.null_count} empty entries, the first in row {row} (counted from 0); "
            f"fill or remove such rows first"
        )
    return np.asarray(column.to_pylist())


def _dataset(path: Path, x: Array, y: Array, extra: dict[str, Array], columns: Columns) -> Dataset:
    for what, array in {"y": y, **extra}.items():
        if len(array) != len(x):
            raise InputError(f"{path}: x has {len(x)} rows but {what} has {len(array)}; give each sample one entry")
    tensor = torch.from_numpy(np.ascontiguousarray(x if x.dtype == np.uint8 else x.astype(np.float32)))
    labels, classes = _target(path, y, columns)
    devices, device = _names(extra["device"]) if "device" in extra else ((), None)
    teams, team = _teams(path, extra["team"], devices, device) if "team" in extra else ((), None)
    return Dataset(
        name=path.stem,
        x=tensor,
        y=labels,
        classes=classes,
        bits_per_sample=bits(tensor, min(32, 8 * x.dtype.itemsize)),
        devices=devices,
        device=device,
        teams=teams,
        team=team,
        split=_split(path, extra["split"]) if "split" in extra else None,
    )


def _target(path: Path, y: Array, columns: Columns) -> tuple[Tensor, tuple[str, ...]]:
    """Labels and the names of the classes, or numbers and no names."""
    if columns.target == "number":
        if y.dtype.kind not in "uifb" or y.ndim not in (1, 2):
            raise InputError(
                f"{path}: the target is {y.dtype} {list(y.shape)}; a regression needs numbers [n] or [n, k]"
            )
        return torch.from_numpy(y.astype(np.float32)), ()
    if y.ndim != 1:
        raise InputError(
            f"{path}: labels have the shape {list(y.shape)}; give one label per sample, or target = 'number'"
        )
    if y.dtype.kind in "US":
        return _named_labels(path, y.astype(str), columns.classes)
    if y.dtype.kind not in "uifb":
        raise InputError(f"{path}: labels are {y.dtype}; give names or 0, 1, 2 …")
    if y.dtype.kind == "f" and not (np.isfinite(y).all() and (y == np.floor(y)).all()):
        row = int(np.flatnonzero(~np.isfinite(y) | (y != np.floor(y)))[0])
        raise InputError(
            f"{path}: label {y[row]} in row {row} is no whole number; say data.columns.target = 'number' for a "
            f"regression, or give labels 0, 1, 2 …"
        )
    labels = y.astype(np.int64)
    classes = columns.classes or tuple(map(str, range(max(0, int(labels.max(initial=0))) + 1)))
    return torch.from_numpy(labels), classes


def _named_labels(path: Path, y: npt.NDArray[np.str_], declared: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    found, place = np.unique(y, return_inverse=True)
    classes = declared or tuple(map(str, found))
    for name in found:
        if name not in classes:
            raise InputError(f"{path}: label {str(name)!r} is not in data.columns.classes; {nearest(name, classes)}")
    number = np.array([classes.index(name) for name in found], np.int64)
    return torch.from_numpy(number[place]), classes


def _names(values: Array) -> tuple[tuple[str, ...], Ints]:
    """The different values by name, in order (numbers by size), and which one each row has."""
    found, place = np.unique(values, return_inverse=True)
    return tuple(map(str, found)), place.astype(np.int64)


def _teams(path: Path, values: Array, devices: tuple[str, ...], device: Ints | None) -> tuple[tuple[str, ...], Ints]:
    """The names of the teams and the team of each device."""
    if device is None:
        raise InputError(f"{path} tells teams but not devices; name the column: data.columns.device")
    teams, of_row = _names(values)
    team = np.zeros(len(devices), np.int64)
    team[device] = of_row
    if (torn := np.flatnonzero(team[device] != of_row)).size:
        raise InputError(f"{path}: device {devices[device[torn[0]]]!r} is in more than one team; give it one name each")
    return teams, team


def _split(path: Path, values: Array) -> Bytes:
    """Parts by name, or 0, 1, 2."""
    known = {**{name: i for i, name in enumerate(PARTS)}, **{str(i): i for i in range(len(PARTS))}}
    found, place = np.unique(values, return_inverse=True)
    for value in found:
        if str(value) not in known:
            raise InputError(f"{path}: split {str(value)!r} is unknown; {nearest(str(value), PARTS)}")
    return np.array([known[str(value)] for value in found], np.int8)[place]
