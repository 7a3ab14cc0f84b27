"""The runs and grids below a folder, and what of them changes while they go on."""

import os
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierfed.config import STAGE
from tierfed.errors import InputError, nearest
from tierfed.report.load import RunFolder
from tierfed.report.words import score

DEEPEST = 4
"""Levels of folders below the root that are looked through."""

_FILES = (
    "config.toml",
    "grid.json",
    "devices.parquet",
    "metrics.parquet",
    "events.jsonl",
    "ties.parquet",
    "labels.parquet",
)
_NO_RUN = ("state", "export", "__pycache__")

Version = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run or a grid below the root. `name` is its path from there, with slashes, "." for the root itself."""

    name: str
    path: Path
    grid: bool


def entries(root: Path) -> dict[str, Entry]:
    """All runs and grids below a folder, by name; links are not followed."""
    return {e.name: e for e in sorted(_found(root, root, 0), key=lambda e: e.name)}


def entry(root: Path, name: str) -> Entry:
    """One of `entries`, found without looking through all of them.

    :raises InputError: there is none of this name; a name that would lead out of the root is none
    """
    root = root.resolve()
    path = root if name == "." else root.joinpath(*name.split("/"))
    clean = not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in name.split("/"))
    if (name == "." or clean) and path.resolve() == path and path.is_relative_to(root):
        kind = _kind(path)
        if kind is not None:
            return Entry(name=name, path=path, grid=kind == "grid")
    raise InputError(f"no run {name!r} here; {nearest(name, entries(root))}")


def _found(folder: Path, root: Path, depth: int) -> Iterator[Entry]:
    kind = _kind(folder)
    if kind is not None:
        name = "." if folder == root else folder.relative_to(root).as_posix()
        yield Entry(name=name, path=folder, grid=kind == "grid")
    if depth == DEEPEST:
        return
    try:
        with os.scandir(folder) as inside:
            below = [d for d in inside if d.is_dir(follow_symlinks=False) and not d.name.startswith(".")]
    except OSError:  # it was deleted, or is not ours
        return
    for d in below:
        if d.name not in _NO_RUN:
            yield from _found(Path(d.path), root, depth + 1)


def _kind(folder: Path) -> str | None:
    if (folder / "grid.json").is_file():
        return "grid"
    # a run has its config first, and the state of its store before any number
    begun = (folder / "metrics.parquet").is_file() or (folder / "state").is_dir()
    return "run" if begun and (folder / "config.toml").is_file() else None


def version(found: Entry) -> Version:
    """What changes when a file of a run, or of a run of a grid, does."""
    folders = [found.path]
    if found.grid:
        with suppress(OSError):
            folders += [Path(d.path) for d in os.scandir(found.path) if d.is_dir(follow_symlinks=False)]
    elif (found.path / STAGE).is_dir():
        folders.append(found.path / STAGE)
    return tuple(stamp for folder in folders for stamp in _stamps(folder))


def _stamps(folder: Path) -> Iterator[tuple[str, int, int]]:
    for name in _FILES:
        try:
            status = (folder / name).stat()
        except OSError:
            continue
        yield f"{folder.name}/{name}", status.st_mtime_ns, status.st_size


class Listing:
    """A line for each run, read again only where its files have changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, tuple[Version, dict[str, Any]]] = {}

    def rows(self) -> list[dict[str, Any]]:
        """Name, what it is, how far it is, and its scores; the newest first."""
        rows = [self._row(e) for e in entries(self.root).values()]
        return sorted(rows, key=lambda row: -row["changed"])

    def _row(self, found: Entry) -> dict[str, Any]:
        now = version(found)
        known = self._known.get(found.name)
        if known is None or known[0] != now:
            changed = max((stamp[1] for stamp in now), default=0) / 1e9
            row = {"name": found.name, "grid": found.grid, "changed": changed, **_about(found)}
            self._known[found.name] = known = (now, row)
        return known[1]


def _about(found: Entry) -> dict[str, Any]:
    """What is known of a run; of one that cannot be read, why."""
    empty: dict[str, Any] = {
        "algorithm": "",
        "data": "",
        "seed": None,
        "round": None,
        "rounds": None,
        "state": "",
        "scores": {},
    }
    try:
        config = tomllib.loads((found.path / "config.toml").read_text("utf-8"))
        settings, source = config.get("run", {}), str(config.get("data", {}).get("source", ""))
        about = empty | {"data": source, "rounds": settings.get("rounds"), "seed": settings.get("seed")}
        about["algorithm"] = str(config.get("algorithm", {}).get("name", ""))
        if found.grid:
            tables = config.get("grid", {}).get("algorithms", [])
            names = ", ".join(str(t.get("name", "")) for t in tables if isinstance(t, dict)) or about["algorithm"]
            return about | {"algorithm": names, "seed": None, "state": "grid"}
        if not (found.path / "metrics.parquet").exists():
            return about | {"state": "no numbers yet"}
        run = RunFolder.read(found.path)
        scores = {m: score(run.statistics(m)["weighted"], run.metric) for m in run.models}
        return about | {"round": run.last_round, "state": run.ended, "scores": scores}
    except InputError as err:
        return empty | {"state": f"cannot be read: {err}"}
    except (OSError, ValueError, AttributeError):
        return empty | {"state": "cannot be read: config.toml is missing or damaged"}
