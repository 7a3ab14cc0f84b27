"""Runs and grids from several folders as one comparison: refused where they cannot be compared."""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tierfed.errors import InputError
from tierfed.report.grid import GridFolder
from tierfed.report.load import RunFolder


def gather(folders: Sequence[Path]) -> GridFolder:
    """All runs of some run folders and grid folders. Of runs with one seed that share a part of their devices, only
    these devices are kept, and `GridFolder.notes` says so.

    :raises InputError: fewer than two runs, a damaged one, or runs that cannot be compared: other data, other devices,
        other test samples, another kind of task
    """
    runs = _named(folders)
    if len(runs) < 2:
        raise InputError(
            f"got {len(runs)} run, wanted two at least to compare; name more folders, or use `tierfed report`"
        )
    (first_name, first), *others = runs.items()
    for name, run in others:
        _same("data set", first_name, first.source, name, run.source)
        _same("metric", first_name, first.metric, name, run.metric)
        labels = [r.devices.counts.shape[1] for r in (first, run)]
        _same("number of labels", first_name, labels[0], name, labels[1])
    notes = []
    for seed in sorted({r.seed for r in runs.values()}):
        group = {n: r for n, r in runs.items() if r.seed == seed}
        common = _common(group)
        if any(len(common) < len(r.devices.names) for r in group.values()):
            notes.append(f"With seed {seed} only the {len(common)} devices that all runs have are compared.")
        for (a, left), (b, right) in pairwise(group.items()):
            _same_tests(a, left, b, right, common)
        runs |= {n: only(r, common) for n, r in group.items() if len(common) < len(r.devices.names)}
    shared = set.intersection(*({r.seed for r in runs.values() if r.algorithm == a} for a in _algorithms(runs)))
    if not shared and len(_algorithms(runs)) > 1:
        notes.append("No seed is common to all: runs with other seeds are not paired.")
    root = Path(os.path.commonpath([f.resolve() for f in folders]))
    return GridFolder.of(root if len(folders) > 1 else folders[0], runs, tuple(notes))


def only(run: RunFolder, names: Sequence[str]) -> RunFolder:
    """A run as if it had no other devices than these; its costs are still those of all."""
    wanted = set(names)
    keep = np.array([i for i, n in enumerate(run.devices.names) if n in wanted], np.int64)
    d, table = run.devices, run.metrics
    devices = d._replace(
        names=tuple(d.names[i] for i in keep),
        teams=tuple(d.teams[i] for i in keep),
        train=d.train[keep],
        val=d.val[keep],
        test=d.test[keep],
        counts=d.counts[keep],
    )
    own = pc.and_(pc.equal(table["tier"], "device"), pc.not_equal(table["node"], ""))
    inside = pc.is_in(table["node"], pa.array([d.names[i] for i in keep]))
    # statistics over all devices, which the run itself has logged, are no longer those of these
    over_all = pc.and_(pc.equal(table["tier"], "cloud"), pc.not_equal(table["model"], ""))
    wanted_rows = pc.and_(pc.or_(pc.invert(own), inside), pc.invert(over_all))
    return replace(run, devices=devices, metrics=table.filter(wanted_rows))


def _named(folders: Sequence[Path]) -> dict[str, RunFolder]:
    """Every run under a name of its own."""
    found: list[tuple[str, Path]] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder, wanted the folder of a run or a grid; check the path")
        if (folder / "grid.json").exists():
            grid = GridFolder.read(folder)
            found += [(m.name, m.run.path) for m in grid.members]
        else:
            found.append((folder.resolve().name, folder))
    twice = [p for n, (_, p) in enumerate(found) if any(p.resolve() == q.resolve() for _, q in found[:n])]
    if twice:
        raise InputError(f"{twice[0]} is named twice, wanted each run once; leave it out")
    names = [n for n, _ in found]
    return {name if names.count(name) == 1 else path.as_posix(): RunFolder.read(path) for name, path in found}


def _algorithms(runs: dict[str, RunFolder]) -> list[str]:
    return list(dict.fromkeys(r.algorithm for r in runs.values()))


def _same(what: str, a: str, left: object, b: str, right: object) -> None:
    if left != right:
        raise InputError(
            f"{a} and {b} cannot be compared: the {what} of {a} is {left}, of {b} {right}; "
            "compare runs on the same data and devices"
        )


def _common(group: dict[str, RunFolder]) -> list[str]:
    """The devices that all runs of a seed have, in the order of the first."""
    first_name, first = next(iter(group.items()))
    common = list(first.devices.names)
    for name, run in group.items():
        own = set(run.devices.names)
        common = [n for n in common if n in own]
        if not common:
            raise InputError(
                f"{first_name} and {name} cannot be compared: they share no device ({first.devices.names[0]!r}, … and "
                f"{run.devices.names[0]!r}, …); compare runs on the same data and devices"
            )
    return common


def _same_tests(a: str, left: RunFolder, b: str, right: RunFolder, common: list[str]) -> None:
    """A device is measured on the same samples in both, as far as their number tells."""
    tests = [dict(zip(r.devices.names, r.devices.test.tolist(), strict=True)) for r in (left, right)]
    for name in common:
        if tests[0][name] != tests[1][name]:
            raise InputError(
                f"{a} and {b} cannot be compared: device {name!r} has {tests[0][name]} test samples in {a} and "
                f"{tests[1][name]} in {b}; compare runs with the same partition and split"
            )
