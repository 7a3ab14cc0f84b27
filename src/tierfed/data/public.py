"""Public samples: data that belong to no device, from a file of the user or out of everybody's training rows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tierfed.data import tables
from tierfed.data.dataset import Dataset, Federation, Ints, checked
from tierfed.data.settings import Columns, DataSettings
from tierfed.errors import InputError
from tierfed.rng import Purpose, generator

SUFFIXES = {".npz": "npz", ".csv": "csv", ".parquet": "parquet"}


def public_samples(
    settings: DataSettings, federation: Federation, seed: int
) -> tuple[Sequence[Ints], tuple[Tensor, Tensor] | None, Ints | None]:
    """(training rows that each device keeps, the public samples x [P, *shape] and y [P, ...] or None, their rows of
    the pool [P] where they come from it).

    :raises InputError: both `public` and `public_path` are set; the file cannot be read, or holds other samples than
        the devices have
    """
    if settings.public_path is not None:
        if settings.public:
            raise InputError(
                f"data.public = {settings.public:g} and data.public_path = {settings.public_path!r} are two sources of "
                "public samples; set one of them"
            )
        return federation.train, _from_file(settings, federation), None
    if not settings.public:
        return federation.train, None, None
    train, rows = share_with_cloud(federation.train, settings.public, seed)
    at = torch.from_numpy(rows)
    return train, (federation.x[at], federation.y[at]), rows


def share_with_cloud(train: Sequence[Ints], share: float, seed: int) -> tuple[tuple[Ints, ...], Ints]:
    """(training rows that each device keeps, the cloud's rows): `share` of every device's; at least one is left."""
    kept, given = [], []
    for i, rows in enumerate(train):
        order = generator(seed, Purpose.SAMPLE, i).permutation(len(rows))
        n = min(round(share * len(rows)), len(rows) - 1)
        given.append(rows[np.sort(order[:n])])
        kept.append(rows[np.sort(order[n:])])
    return tuple(kept), np.sort(np.concatenate(given))


def _from_file(settings: DataSettings, federation: Federation) -> tuple[Tensor, Tensor]:
    """x scaled like the devices' samples, y as their labels or targets."""
    path = Path(str(settings.public_path)).expanduser()
    kind = SUFFIXES.get(path.suffix)
    if kind is None or not path.is_file():
        what = "there is no such file" if kind else "its name ends in none of " + ", ".join(SUFFIXES)
        raise InputError(f"data.public_path = {settings.public_path!r}: {what}; name an npz, csv or parquet file")
    columns = replace(
        settings.columns,
        features=federation.features or settings.columns.features,
        target="class" if federation.classes else "number",
        device=None,
        team=None,
        split=None,
    )
    data = checked(_read(path, kind, columns))
    _check(path, data, federation)
    y = _labels(path, data, federation) if federation.classes else data.y.to(federation.y.dtype)
    return federation.scaling(data.x, federation.x.dtype), y


def _read(path: Path, kind: str, columns: Columns) -> Dataset:
    own = replace(columns, classes=())  # their names are compared afterwards, as those of the public samples
    return tables.from_npz(path, own) if kind == "npz" else tables.from_table(path, own, kind)


def _check(path: Path, data: Dataset, federation: Federation) -> None:
    shape = tuple(data.x.shape[1:])
    if shape != federation.shape:
        raise InputError(
            f"{path}: a public sample has the shape {list(shape)}, but those of {federation.name} have "
            f"{list(federation.shape)}; give samples of that shape (data.public_path)"
        )
    scaled = federation.scaling.divisor != 1
    if scaled != (data.x.dtype == torch.uint8):
        was, wanted = ("numbers", "bytes (uint8)") if scaled else ("bytes (uint8)", "numbers")
        raise InputError(
            f"{path}: the public samples are {was}, but those of {federation.name} are {wanted}; give them raw, as the "
            "devices have theirs (data.public_path)"
        )
    if not federation.classes and data.y.shape[1:] != federation.y.shape[1:]:
        raise InputError(
            f"{path}: a public target has the shape {list(data.y.shape[1:])}, but those of {federation.name} have "
            f"{list(federation.y.shape[1:])}; give targets of that shape (data.public_path)"
        )


def _labels(path: Path, data: Dataset, federation: Federation) -> Tensor:
    """Labels by the names of the federation's classes, or where the file has numbers 0, 1, 2 … by their places."""
    names, known = federation.classes, data.classes
    strangers = [known[i] for i in data.y.unique().tolist() if known[i] not in names]
    if not strangers:
        place = torch.tensor([names.index(name) if name in names else 0 for name in known], dtype=torch.int64)
        return place[data.y]
    numbered = known == tuple(map(str, range(len(known))))
    if numbered and len(known) <= len(names):
        return data.y
    stranger = strangers[-1] if numbered else strangers[0]
    raise InputError(
        f"{path}: a public sample is of the class {stranger!r}, which {federation.name} does not have ({len(names)} "
        f"classes: {', '.join(names[:10])}{' …' if len(names) > 10 else ''}); leave such samples out, or give labels "
        "0, 1, 2 … in this order (data.public_path)"
    )
