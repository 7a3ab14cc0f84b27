"""The nodes of a deployed run, as their processes describe themselves in small files beside it."""

import json
import time
from pathlib import Path
from typing import Any

FILE = "status.json"
STALE_SECONDS = 15.0
_MOST = 2000


def health(run: Path, root: Path, now: float | None = None) -> list[dict[str, Any]]:
    """The nodes that have left a file in a run folder or in the folder of its nodes: name, round, children, state. The
    cloud comes first, then those that are not well.

    :param root: nothing outside of it is read
    """
    now = time.time() if now is None else now
    files = [run / FILE, *sorted(run.with_name(run.name + ".nodes").glob(f"*/{FILE}"))][: _MOST + 1]
    found = [node for f in files if f.resolve().is_relative_to(root.resolve()) and (node := _node(f, now)) is not None]
    return sorted(found, key=lambda n: (n["node"] != "cloud", n["state"] in ("at work", "over"), n["node"]))


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
