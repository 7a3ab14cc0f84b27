"""What a page of the live view shows, as plain values: the parts of the report, without HTML."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from tierfed.errors import InputError
from tierfed.report.html import Section, content
from tierfed.report.style import Chart
from tierfed.report.tables import read
from tierfed.report.words import Grid
from tierfed.ui.folders import Entry, Version, version
from tierfed.ui.nodes import elsewhere, health

_KEPT = 4  # pages that are remembered


class Pages:
    """The pages of runs, made anew only where files have changed.

    :param nodes: further folders in which states of nodes may be read
    """

    def __init__(self, root: Path, nodes: Sequence[Path] = ()) -> None:
        self.root, self.allowed = root, (root, *nodes)
        self._known: dict[str, tuple[Version, dict[str, Any]]] = {}
        self._lock = Lock()

    def page(self, found: Entry) -> dict[str, Any]:
        """Title, facts, tiles, sections with tables and charts; `problem` where the run has no numbers yet or cannot be
        read. With the health of deployed nodes, which is never remembered.
        """
        with self._lock:  # two readers of a large run: the second one waits for what the first one reads
            now = version(found)
            known = self._known.pop(found.name, None)
            if known is None or known[0] != now:
                known = (now, _page(found, self.root))
            self._known[found.name] = known
            while len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
        page = {**known[1], "name": found.name, "nodes": [], "elsewhere": ""}
        if found.grid:
            return page
        return page | {"nodes": health(found.path, self.allowed), "elsewhere": elsewhere(found.path, self.allowed)}


def _page(found: Entry, root: Path) -> dict[str, Any]:
    empty = {"title": found.name, "kind": "run", "facts": [], "tiles": [], "sections": []}
    if not found.grid and not all((found.path / n).exists() for n in ("devices.parquet", "metrics.parquet")):
        return empty | {"problem": "No numbers yet: a run writes them ten seconds after its begin, and at its end."}
    try:
        page = content(read(found.path), root / "page.html")
    except InputError as err:
        return empty | {"problem": str(err)}
    sections = [_section(s) for s in page["sections"]]
    return {
        "title": page["title"],
        "kind": page["kind"],
        "problem": "",
        "facts": page["facts"],
        "tiles": [t._asdict() for t in page["tiles"]],
        "sections": sections,
        "configs": page["configs"],
    }


def _section(section: Section) -> dict[str, Any]:
    charts = [_chart(c) for c in section.charts]
    charts += [_chart(c, f"{name}: ") for name, inner in section.closed for c in inner]
    return {"title": section.title, "table": _grid(section.table), "charts": charts}


def _chart(chart: Chart, of: str = "") -> dict[str, Any]:
    return {
        "title": of + chart.title,
        "note": chart.note,
        "alt": chart.alt,
        "half": chart.half,
        "figure": chart.figure,
        "data": _grid(chart.data),
    }


def _grid(grid: Grid | None) -> dict[str, Any] | None:
    return None if grid is None else grid._asdict()
