"""Who holds what, as a page of its own: the heat map of a federation before anything runs."""

from pathlib import Path

import numpy as np

from tierfed.data import Federation
from tierfed.data.dataset import evenly
from tierfed.errors import InputError
from tierfed.metrics import write_atomic
from tierfed.report.load import MAX_DEVICES, Devices


def write_holdings(federation: Federation, path: Path) -> Path:
    """Write the training samples per label and device as one HTML file that works offline.

    :return: the path of the written file
    :raises InputError: the folder of the file is not there, or the libraries of reports are missing
    :raises OSError: the disk is full
    """
    if not path.parent.is_dir() or path.is_dir():
        raise InputError(f"{path} cannot be written, wanted a file name in an existing folder; choose another --plot")
    try:
        page = _page(federation, path.name)
    except ModuleNotFoundError as err:
        if (err.name or "").partition(".")[0] not in ("plotly", "jinja2", "markupsafe"):
            raise
        raise InputError(
            f"got a request for a plot, but {err.name} is not installed; pip install 'tierfed[report]'"
        ) from None
    write_atomic(path, page)
    return path


def devices_of(federation: Federation) -> Devices:
    """The devices of a federation as a report knows them; the team is the natural one, "" without any."""
    natural = federation.natural
    teams = [""] * len(federation) if natural is None else [federation.teams[t] for t in natural]
    sizes = (federation.sizes("train"), federation.sizes("val"), federation.sizes("test"))
    counts = np.zeros((len(federation), len(federation.classes)), np.int64)
    drawn = evenly(len(federation), MAX_DEVICES)  # the others are not in the chart
    counts[drawn] = federation.label_counts(devices=drawn)
    return Devices(tuple(federation.devices), tuple(teams), *sizes, counts, tuple(federation.classes))


def _page(federation: Federation, name: str) -> str:
    """The page of reports with one chart."""
    from tierfed.report.html import filled  # noqa: PLC0415
    from tierfed.report.labels import holdings_of  # noqa: PLC0415

    samples, teams = int(federation.sizes().sum()), len(federation.teams)
    facts = [
        f"{len(federation)} devices",
        *([f"{teams} natural teams"] if teams else []),
        f"{samples} training samples",
    ]
    section = {
        "title": "Data",
        "charts": [holdings_of(devices_of(federation))],
        "table": None,
        "closed": [],
    }
    return filled(
        title=federation.name,
        kind="data",
        facts=facts,
        tiles=[],
        sections=[section],
        configs=[],
        commands=[f"tierfed show CONFIG --plot {name}"],
    )
