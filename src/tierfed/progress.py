"""Live progress in a terminal and in a notebook; one line per evaluation elsewhere."""

import html
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from tierfed.result import Progress, Watcher

_SHORT = {"global": "global", "team": "team", "personal_pre": "personal", "personal_post": "personal (post)"}


def scores(progress: Progress) -> str:
    """The last evaluation in a few words; of a sample of the devices with the half widths of confidence intervals."""
    return "  ".join(f"{_SHORT[k]} {v:.3f}{_margin(progress.margins.get(k))}" for k, v in progress.scores.items())


def _known(progress: Progress) -> str:
    """The last evaluation, and the privacy that is spent."""
    return "  ".join(filter(None, (scores(progress), progress.spent)))


def _margin(half: float | None) -> str:
    return "" if half is None else f" ± {half:.3f}"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


@contextmanager
def watching(console: Console | None = None, quiet: bool = False) -> Iterator[Watcher | None]:
    """A watcher for runs: a bar with ETA for each on a terminal, a table that renews itself in a notebook, a line per
    evaluation when piped.

        with tierfed.watching() as watch:
            tierfed.run(config, watch=watch)
    """
    console = Console() if console is None else console
    if quiet:
        yield None
    elif (display := _notebook()) is not None:
        seen: dict[str, Progress] = {}
        handle: Any = None

        def renew(p: Progress) -> None:
            nonlocal handle
            seen[p.name] = p
            page = display.HTML(as_html(seen.values()))
            if handle is None:
                handle = display.display(page, display_id=True)
            else:
                handle.update(page)

        yield renew
    elif console.is_terminal:
        with _bars(console) as bars:
            tasks: dict[str, TaskID] = {}

            def move(p: Progress) -> None:
                if p.name not in tasks:
                    tasks[p.name] = bars.add_task(p.name, total=p.rounds, scores="", size="")
                text = (p.doing or _known(p)) + (f"  {p.stopped.partition(':')[0]}" if p.stopped else "")
                total = p.round if p.stopped else p.rounds
                bars.update(tasks[p.name], completed=p.round, total=total, scores=text, size=megabytes(p.bytes))

            yield move
    else:

        def say(p: Progress) -> None:
            if text := line(p):
                console.print(text, soft_wrap=True, highlight=False, markup=False)

        yield say


def line(p: Progress) -> str:
    """What there is to say in one line; empty: nothing."""
    if p.doing:
        return f"{p.name}: {p.doing}"
    if not p.evaluated and not p.stopped:
        return ""
    ended = f"  {p.stopped}" if p.stopped else ""
    return f"{p.name}: round {p.round}/{p.rounds}  {_known(p)}  {megabytes(p.bytes)}{ended}"


def _notebook() -> Any:
    """IPython's display, where this process is the kernel of a notebook; else None."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return sys.modules.get("IPython.display")


def as_html(progress: Iterable[Progress]) -> str:
    """A row for each run: how far it is, its last scores, its bytes."""
    rows = [
        f"<tr><th>{html.escape(p.name)}</th>"
        f'<td><progress value="{p.round}" max="{p.round if p.stopped else p.rounds}"></progress> '
        f"{p.round}/{p.rounds}</td><td>{html.escape(p.doing or p.stopped or _known(p))}</td>"
        f"<td>{megabytes(p.bytes)}</td></tr>"
        for p in progress
    ]
    return f"<table>{''.join(rows)}</table>"


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[scores]}"),
        TextColumn("{task.fields[size]}"),
        console=console,
    )
