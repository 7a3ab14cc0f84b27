"""`tierfed export`: one device's model as a file, and a table of what was checked."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tierfed.export import Export
from tierfed.export import export as export_model
from tierfed.export.deploy import Told


def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    device: Annotated[str, typer.Option(metavar="ID", help="Whose model: the name of a device.")],
    model: Annotated[str, typer.Option(help="personal, personal_post, team or global.")] = "personal",
    format_: Annotated[str, typer.Option("--format", help="onnx or safetensors.")] = "onnx",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="The file; export/… in the run folder by default.")
    ] = None,
    prune: Annotated[
        float | None, typer.Option(metavar="0.8", help="Share of the weights that becomes zero, smallest first.")
    ] = None,
    tune_epochs: Annotated[int, typer.Option(help="Passes over the device's training data after pruning.")] = 2,
    last: Annotated[bool, typer.Option("--last", help="Of the last round, where the best one was kept.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights and activations (onnx).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Write a device's model to a file: ONNX or safetensors, pruned or in 8 bits, checked on its test data."""
    # a pipe has no width: lines are as long as they need to be
    out, err = Console(width=None if sys.stdout.isatty() else 1000), Console(stderr=True)
    with _telling(out, quiet=as_json) as watch:
        done = export_model(
            folder,
            device,
            out_file,
            model=model,
            format=format_,  # type: ignore[arg-type]
            prune=prune,
            tune_epochs=tune_epochs,
            int8=int8,
            last=last,
            watch=watch,
        )
    if as_json:
        typer.echo(json.dumps({**asdict(done), "file": str(done.file)}, indent=2))
        return
    out.print(table(done))
    for text in done.warnings:
        err.print(f"warning: {text}", markup=False, soft_wrap=True, highlight=False)
    out.print(f"file: {done.file}", soft_wrap=True, markup=False, highlight=False)


def table(done: Export) -> Table:
    """Every stage of an export: how good, how equal to PyTorch, how large."""
    card = done.card
    title = f"{card.kind} model of {card.device}, round {card.round}, on {done.samples} test samples"
    out = Table(title=title, title_justify="left")
    for name in ("stage", done.metric.replace("abs_error", "error"), "same as PyTorch", "largest difference"):
        out.add_column(name, overflow="fold")
    for name in ("weights not 0", "KB", "KB zipped"):
        out.add_column(name, overflow="fold", justify="right")
    for v in done.variants:
        out.add_row(
            v.name,
            f"{v.score:.1%}" if done.metric == "accuracy" else f"{v.score:.4g}",
            f"{v.same:.1%}",
            f"{v.largest_difference:.1e}",
            f"{v.nonzeros} of {v.weights}",
            f"{v.bytes / 1e3:.1f}",
            f"{v.zipped_bytes / 1e3:.1f}",
        )
    return out


@contextmanager
def _telling(console: Console, quiet: bool) -> Iterator[Told | None]:
    """What is being done: in place on a terminal, a line each elsewhere."""
    if quiet:
        yield None
    elif console.is_terminal:
        with console.status("reading the run") as status:
            yield status.update
    else:
        yield lambda text: console.print(text, markup=False, soft_wrap=True, highlight=False)
