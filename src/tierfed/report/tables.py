"""Summaries of a run or a grid: a table for the terminal, a plain dict for JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from tierfed.config import STAGE
from tierfed.errors import InputError
from tierfed.lookup import near_run
from tierfed.report.grid import Column, GridFolder
from tierfed.report.load import RunFolder, finite
from tierfed.report.pairs import Paired, paired_grid
from tierfed.report.words import INTERVAL, MODEL_NAMES, Grid, amount, metric_name, spread, within

MARGINS = {"weighted": "weighted_ci95", "mean": "ci95", "gain": "gain_ci95"}
"""Statistics of `RunFolder.statistics` and the half widths of their confidence intervals."""


def read(folder: Path) -> RunFolder | GridFolder:
    """The run or the grid in a folder.

    :raises InputError: the folder is neither, or it is damaged
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder, wanted the folder of a run or a grid{near_run(folder) or '; check the path'}"
        )
    return GridFolder.read(folder) if (folder / "grid.json").exists() else RunFolder.read(folder)


def summary_grid(run: RunFolder) -> Grid:
    """One row a model: the statistics of the headline metric over devices in the last evaluated round."""
    side = "10th percentile" if run.higher_is_better else "90th percentile"
    statistics = {m: run.statistics(m) for m in run.models}
    keys = ["weighted", "mean", "std", "p10", "worst", "worst_device"]
    titles = ["weighted mean", "mean", "std", side, "worst 10 %", "worst device"]
    if any("gain" in s for s in statistics.values()):
        keys, titles = [*keys, "gain"], [*titles, "gain over local-only"]
    rows = [
        [MODEL_NAMES[m], *(within(s.get(k), s.get(MARGINS.get(k, "")), run.metric, signed=k == "gain") for k in keys)]
        for m, s in statistics.items()
    ]
    return Grid(("model", *titles), rows, f"{run.sample.capitalize()}; {INTERVAL}." if run.sample else "")


def comparison_cell(grid: GridFolder, label: str, column: Column) -> str:
    """One cell of the comparison: mean ± standard deviation over seeds; of one run that was evaluated on a sample of
    its devices, ± half the width of the confidence interval."""
    values = grid.values(label, column)
    members = grid.of_label(label)
    half = column.margin(members[0]) if column.margin is not None and len(members) == 1 else None
    if half is not None:
        return within(column.value(members[0]), half, column.metric, signed=column.key == "gain")
    if column.higher is not None:
        return spread(values, column.metric, signed=column.key == "gain")
    known = values[~np.isnan(values)]
    return amount(float(known.mean()) if known.size else None, "B" if column.metric == "bytes" else "J")


def summary_table(folder: Path) -> Table:
    """The summary of a run (model by statistic) or the comparison of a grid (algorithm by number), for the terminal.

    :raises InputError: the folder is neither a run nor a grid, or it is damaged
    """
    found = read(folder)
    if isinstance(found, RunFolder):
        grid = summary_grid(found)
        title = f"{found.algorithm} on {found.source}, seed {found.seed}: {metric_name(found.metric)}, {found.ended}"
        title += f"; {found.sample}, {INTERVAL}" if found.sample else ""
        table = Table(title=Text(title), title_justify="left")
        for number, header in enumerate(grid.headers):
            table.add_column(header, justify="right" if number else "left")
        for row in grid.rows:
            table.add_row(*map(Text, row))
        if found.later is not None:
            table.add_section()
            for name, *row in summary_grid(found.later).rows:
                table.add_row(Text(f"{found.later.algorithm}: {name}"), *map(Text, row[: len(grid.headers) - 1]))
        return table
    return comparison_table(found)


def comparison_table(found: GridFolder) -> Table:
    """Algorithm by number, for the terminal."""
    seeds = ", ".join(map(str, found.seeds))
    title = f"{metric_name(found.metric)}, mean ± std over seeds {seeds}{'; ' * bool(found.sample)}{found.sample}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("algorithm")
    for column in found.columns:
        table.add_column(column.title, justify="right")
    winners = [found.best(c) for c in found.columns]
    for label in found.labels:
        cells = [
            Text(comparison_cell(found, label, c), style="bold" if best == label else "")
            for c, best in zip(found.columns, winners, strict=True)
        ]
        table.add_row(Text(label), *cells)
    return table


def paired_table(tests: Sequence[Paired], metric: str) -> Table | None:
    """The paired tests of a comparison, for the terminal; None: there is nothing to pair."""
    grid = paired_grid(tests, metric)
    if grid is None:
        return None
    table = Table(title=Text("Wilcoxon signed-rank tests; positive: the first one is better"), title_justify="left")
    for number, header in enumerate(grid.headers):
        table.add_column(header, justify="left" if number < grid.text else "right")
    for row in grid.rows:
        table.add_row(*map(Text, row))
    return table


def summary(folder: Path) -> dict[str, Any]:
    """The same numbers as plain values; what is not known or not finite is None.

    :raises InputError: the folder is neither a run nor a grid, or it is damaged
    """
    found = read(folder)
    return _run_summary(found) if isinstance(found, RunFolder) else comparison_summary(found)


def comparison_summary(found: GridFolder) -> dict[str, Any]:
    """The numbers of a comparison as plain values."""
    algorithms = {label: {c.key: _mean_std(found.values(label, c)) for c in found.columns} for label in found.labels}
    runs = {m.name: {"label": m.label, **_run_summary(m.run)} for m in found.members}
    return {"kind": "grid", "metric": found.metric, "seeds": list(found.seeds), "algorithms": algorithms, "runs": runs}


def _run_summary(run: RunFolder) -> dict[str, Any]:
    later = {} if run.later is None else {STAGE: {"folder": str(run.later.path), **_run_summary(run.later)}}
    models = {m: {k: finite(v) for k, v in run.statistics(m).items()} for m in run.models}
    return {
        "kind": "run",
        "algorithm": run.algorithm,
        "data": run.source,
        "seed": run.seed,
        "devices": len(run.devices.names),
        "evaluated_devices": run.sampled or len(run.devices.names),
        "teams": len(run.teams),
        "rounds": run.last_round,
        "ended": run.ended,
        "metric": run.metric,
        "models": models,
        "total_bytes": finite(run.total_bytes),
        "clock_seconds": finite(run.clock_seconds),
        "total_joules": finite(run.total("cloud", "joules")),
        **later,
    }


def _mean_std(values: Any) -> dict[str, float | int | None]:
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if known.size else None
    deviation = float(known.std(ddof=1)) if known.size > 1 and np.isfinite(known).all() else None
    return {"mean": finite(mean), "std": finite(deviation), "seeds": int(known.size)}
