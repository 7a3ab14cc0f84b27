"""The nodes of a deployed run, as their processes describe themselves in small files beside it."""

import json
import re
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "status.json"
STALE_SECONDS = 15.0
_MOST = 2000


def health(run: Path, allowed: Sequence[Path], now: float | None = None) -> list[dict[str, Any]]:
    """The nodes that have left a file in a run folder or in the folder of their states: name, round, children, state.
    The cloud comes first, then those that are not well; fogs before devices.

    :param allowed: nothing outside of these folders is read
    """
    now = time.time() if now is None else now
    files = [run / FILE, *sorted(states(run).glob(f"*/{FILE}"))][: _MOST + 1]
    found = [node for f in files if _within(f, allowed) and (node := _node(f, now)) is not None]
    return sorted(found, key=_order)


def _order(node: dict[str, Any]) -> tuple[Any, ...]:
    name, well = node["node"], node["state"] in ("at work", "over")
    parts = [(int(p), "") if p.isdecimal() else (0, p) for p in re.split(r"(\d+)", name)]  # 9 before 10
    return name != "cloud", well, not node["children"], parts


def elsewhere(run: Path, allowed: Sequence[Path]) -> str:
    """The folder of the states of a run where that may not be read; else nothing."""
    folder = states(run)
    return str(folder) if folder.is_dir() and not _within(folder, allowed) else ""


def states(run: Path) -> Path:
    """Where fogs and devices of a run keep their states, a folder each: deploy.folder, or beside the run."""
    beside = run.with_name(run.name + ".nodes")
    try:
        config = tomllib.loads((run / "config.toml").read_text("utf-8"))
        folder, out = config.get("deploy", {}).get("folder"), config.get("run", {}).get("out")
    except (OSError, ValueError, AttributeError):
        return beside
    if not isinstance(folder, str) or not folder:
        return beside
    # both paths begin in the working folder of the processes, which the place of the run tells
    place, end = run.resolve(), Path(out).parts if isinstance(out, str) else ()
    known = place.parts[len(place.parts) - len(end) :] == end
    return (place.parents[len(end) - 1] if end and known else Path.cwd()) / folder


def _within(path: Path, allowed: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in allowed)


def _node(path: Path, now: float) -> dict[str, Any] | None:
    try:
        said = json.loads(path.read_text("utf-8"))
        age = now - float(said["at"])
        here, of = (int(n) for n in said["children"])
        return {
            "node": str(said["node"]),
            "state": _state(bool(said.get("over")), bool(said["joined"]), age),
            "round": int(said["round"]),
            "children": f"{here} of {of}" if of else "",
            "busy_seconds": float(said["busy_seconds"]),
            "seen_seconds": max(0.0, age),
        }
    except (OSError, ValueError, TypeError, KeyError):  # no such file, or half of one
        return None


def _state(over: bool, joined: bool, age: float) -> str:
    if over:
        return "over"
    if age > STALE_SECONDS:
        return "silent"
    return "at work" if joined else "not connected"
