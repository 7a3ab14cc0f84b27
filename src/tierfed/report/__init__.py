"""Reports of finished (or stopped) runs: a self-contained page, a table for the terminal, plain values for JSON."""

from collections.abc import Callable
from pathlib import Path

from tierfed.errors import InputError
from tierfed.metrics import write_atomic
from tierfed.report.gather import gather
from tierfed.report.grid import GridFolder
from tierfed.report.tables import read, summary, summary_table

__all__ = ["gather", "summary", "summary_table", "write_comparison", "write_report"]

PAGE = "report.html"


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run folder or a grid folder as one HTML file that works offline.

    :param out: where to; by default `report.html` in the folder, for a grid also in the folder of each of its runs
    :return: the path of the written file
    :raises InputError: the folder is neither a run nor a grid, it is damaged, or the libraries of reports are missing
    """
    found = read(folder)
    render = _renderer()
    if out is None:
        members = found.members if isinstance(found, GridFolder) else ()
        for m in members:
            write_atomic(m.run.path / PAGE, render(m, m.run.path / PAGE))
        for run in [m.run for m in members] if isinstance(found, GridFolder) else [found]:
            if run.later is not None:
                write_atomic(run.later.path / PAGE, render(run.later, run.later.path / PAGE))
    return _written(folder / PAGE if out is None else out, lambda path: render(found, path))


def write_comparison(grid: GridFolder, out: Path, reference: str = "") -> Path:
    """Write a comparison of runs as one HTML file that works offline.

    :param reference: the label that all others are tested against, see `tierfed.report.pairs.paired_tests`
    :return: the path of the written file
    :raises InputError: no such label, the folder of the file is not there, or the libraries of reports are missing
    """
    render = _renderer()
    return _written(out, lambda path: render(grid, path, reference))


def _renderer() -> Callable[..., str]:
    """What makes a page. Charts and template are an extra: everything else must work without these libraries."""
    try:
        from tierfed.report.html import render  # noqa: PLC0415
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] not in ("plotly", "jinja2", "markupsafe"):
            raise
        raise InputError(
            f"got a request for a report, but {err.name} is not installed; pip install 'tierfed[report]'"
        ) from None
    return render


def _written(path: Path, page: Callable[[Path], str]) -> Path:
    if not path.parent.is_dir() or path.is_dir():
        raise InputError(f"{path} cannot be written, wanted a file name in an existing folder; choose another --out")
    write_atomic(path, page(path))
    return path
