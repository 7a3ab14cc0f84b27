"""`tierfed compare`: runs and grids side by side, on a page and in the terminal."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tierfed.report import gather, write_comparison
from tierfed.report.load import finite
from tierfed.report.pairs import paired_tests
from tierfed.report.tables import comparison_summary, comparison_table, paired_table
from tierfed.session import on_disk


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs and of grids.")],
    out_file: Annotated[Path, typer.Option("--out", help="The HTML file.")] = Path("comparison.html"),
    reference: Annotated[
        str, typer.Option(metavar="LABEL", help="Test all others against this one; else all pairs, of many the first.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Runs and grids side by side: one HTML file, a table, and paired tests over devices and seeds."""
    grid = gather(folders)
    tests = paired_tests(grid, reference)
    with on_disk(out_file.parent):
        path = write_comparison(grid, out_file, reference)
    if as_json:
        plain = [t._asdict() | {"median": finite(t.median)} for t in tests]
        found = {**comparison_summary(grid), "tests": plain, "notes": list(grid.notes), "report": str(path)}
        typer.echo(json.dumps(found, indent=2))
        return
    out = Console(width=None if sys.stdout.isatty() else 1000)
    for table in filter(None, (comparison_table(grid), paired_table(tests, grid.metric))):
        for column in table.columns:
            column.overflow = "fold"
        out.print(table)
    for note in (*grid.notes, f"comparison: {path}"):
        out.print(note, soft_wrap=True, markup=False, highlight=False)
