"""Live progress in a terminal; one line per evaluation elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from tierfed.loop import Progress, Watcher

_SHORT = {"global": "global", "team": "team", "personal_pre": "personal", "personal_post": "personal (post)"}


def scores(progress: Progress) -> str:
    """The last evaluation in a few words; of a sample of the devices with the half widths of confidence intervals."""
    return "  ".join(f"{_SHORT[k]} {v:.3f}{_margin(progress.margins.get(k))}" for k, v in progress.scores.items())


def _margin(half: float | None) -> str:
    return "" if half is None else f" ± {half:.3f}"


def megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


@contextmanager
def watching(console: Console, quiet: bool = False) -> Iterator[Watcher | None]:
    """A watcher for runs: a bar with ETA for each on a terminal, a line per evaluation when piped."""
    if quiet:
        yield None
    elif console.is_terminal:
        with _bars(console) as bars:
            tasks: dict[str, TaskID] = {}

            def move(p: Progress) -> None:
                if p.name not in tasks:
                    tasks[p.name] = bars.add_task(p.name, total=p.rounds, scores="", size="")
                text = (p.doing or scores(p)) + (f"  {p.stopped.partition(':')[0]}" if p.stopped else "")
                total = p.round if p.stopped else p.rounds
                bars.update(tasks[p.name], completed=p.round, total=total, scores=text, size=megabytes(p.bytes))

            yield move
    else:

        def line(p: Progress) -> None:
            if p.doing:
                console.print(f"{p.name}: {p.doing}", soft_wrap=True, highlight=False, markup=False)
            elif p.evaluated or p.stopped:
                ended = f"  {p.stopped}" if p.stopped else ""
                text = f"{p.name}: round {p.round}/{p.rounds}  {scores(p)}  {megabytes(p.bytes)}{ended}"
                console.print(text, soft_wrap=True, highlight=False, markup=False)

        yield line


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
