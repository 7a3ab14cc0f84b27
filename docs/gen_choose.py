"""Writes the tables of docs/choose.md from docs/comparison.md and the registry: python docs/gen_choose.py [--check]"""

import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tierfed.algorithm import Algorithm
from tierfed.algorithms import REGISTRY, make

HERE = Path(__file__).parent
TARGET, SOURCE = HERE / "choose.md", HERE / "comparison.md"
MEASURED, NEEDS = "measured", "needs"
MOST = 5
WANTED = (
    ("one model for everybody", "global"),
    ("a model of its own on every device", "personal, before"),
    ("the same, with time for one more local training", "personal, after"),
    ("both of one training: a global model and personal ones", "balance"),
    ("no device left behind", "worst tenth"),
    ("a model for each team", "team"),
)
Row = dict[str, str]


class DataSet(NamedTuple):
    """A part of the comparison."""

    title: str
    rows: list[Row]
    samples: int

    def values(self, column: str) -> dict[str, float]:
        """Method -> number, best first; without those that have none."""
        known = {r["method"]: v for r in self.rows if (v := number(r[column])) is not None}
        return dict(sorted(known.items(), key=lambda item: -item[1]))


def number(cell: str) -> float | None:
    """The number a cell begins with, without bold marks; of "91.4 ± 0.3" the mean."""
    found = re.match(r"\**(\d[\d.]*)", cell)
    return None if found is None else float(found[1])


def data_sets(text: str) -> Iterator[DataSet]:
    """The tables of the comparison that have methods in their first column."""
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        lines = [[c.strip() for c in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
        samples = re.search(r"on the (\d+) test samples", part)
        if samples is None or not lines or lines[0][0] != "method":
            continue
        rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
        yield DataSet(part.partition("\n")[0], rows, int(samples[1]))


def leaders(found: dict[str, float], samples: int) -> str:
    """The best, and those within two standard errors of it."""
    if not found:
        return "–"
    best = max(found.values())
    share = best / 100
    chance = 200 * math.sqrt(share * (1 - share) / samples)
    close = [f"{name} {value:.1f}" for name, value in found.items() if best - value <= chance]
    more = f" and {len(close) - MOST} more" if len(close) > MOST else ""
    return ", ".join(close[:MOST]) + more


def cheapest(data: DataSet) -> str:
    """The least traffic of a method that beats both local-only training and FedAvg before local training."""
    personal, sent = data.values("personal, before"), data.values("MB")
    bar = max(personal.get("`local`", 0.0), personal.get("`fedavg`", 0.0))
    able = [m for m in personal if personal[m] > bar]
    if not able:
        return f"none is better than local-only training ({bar:.1f}, 0 MB)"
    least = min(able, key=lambda m: sent[m])
    return f"{least} {personal[least]:.1f} with {sent[least]:g} MB"


def measured(text: str) -> str:
    """What was best for what on each data set."""
    sets = list(data_sets(text))
    head = ["| you want |", *(f" {d.title} |" for d in sets)]
    lines = ["".join(head), "|---" * (1 + len(sets)) + "|"]
    for want, column in WANTED:
        lines.append(f"| {want} | " + " | ".join(leaders(d.values(column), d.samples) for d in sets) + " |")
    lines.append("| a personal model for the least traffic | " + " | ".join(map(cheapest, sets)) + " |")
    for base, name in (("`local`", "training alone, for comparison"), ("`fedavg`", "FedAvg, for comparison")):
        cells = []
        for d in sets:
            known = [(c, d.values(c).get(base)) for c in ("global", "personal, before", "personal, after")]
            cells.append(", ".join(f"{c.replace(',', '')} {v:.1f}" for c, v in known if v is not None))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


FLAGS: tuple[tuple[str, Callable[[Algorithm], bool]], ...] = (
    ("a model with batch norms", lambda a: a.needs_norms),
    ("validation data on every device", lambda a: a.needs_held),
    ("every device in every round", lambda a: a.needs_full),
    ("public samples", lambda a: a.needs_public),
)


def needs() -> str:
    """Which methods ask for something that a tree may not have."""
    made = {name: make(name) for name in REGISTRY}
    lines = ["| needs | methods |", "|---|---|"]
    for what, holds in FLAGS:
        names = [f"`{name}`" for name, one in made.items() if holds(one)]
        lines.append(f"| {what} | {', '.join(names)} |")
    mixed = [f"`{name}`" for name, one in made.items() if one.mixed_models]
    return "\n".join([*lines, f"| no common model: devices may have different ones | {', '.join(mixed)} |"])


def renewed(text: str, name: str, table: str) -> str:
    """The page with another table between the mark of a name and the next end."""
    before, mark, rest = text.partition(f"<!-- {name} -->")
    _, end, after = rest.partition("<!-- end -->")
    return f"{before}{mark}\n\n{table}\n\n{end}{after}"


def page() -> str:
    """The guide with its tables renewed; what is between them is written by hand."""
    text = renewed(TARGET.read_text("utf-8"), MEASURED, measured(SOURCE.read_text("utf-8")))
    return renewed(text, NEEDS, needs())


def main() -> int:
    """Writes the page, or with --check says whether it is up to date."""
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.read_text("utf-8") == page() else 1
    TARGET.write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
