"""How commands say what they have found: tables for people, JSON for programs."""

import json
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

# a pipe has no width: lines are as long as they need to be
out = Console(width=None if sys.stdout.isatty() else 1000)
err = Console(stderr=True)


def say(value: Any) -> None:
    """JSON for a program: the only thing on the standard output."""
    typer.echo(json.dumps(value, indent=2))


def folded(table: Table) -> Table:
    """The same table, broken into more lines rather than cut off where a terminal is narrow."""
    for column in table.columns:
        column.overflow = "fold"
    return table


def listing(title: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    """A table of rows with the same keys."""
    if as_json:
        say(rows)
        return
    table = Table(title=title, title_justify="left")
    for key in rows[0] if rows else ():
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*(Text("yes" if v is True else "no" if v is False else str(v)) for v in row.values()))
    out.print(table)


def facts_table(name: str, facts: dict[str, Any]) -> Table:
    """Some facts of one thing, one a row."""
    table = Table(title=Text(name), title_justify="left", show_header=False)
    for key, value in facts.items():
        text = (
            ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        )
        table.add_row(key.replace("_", " "), Text(text))
    return table
