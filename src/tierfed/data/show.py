"""A look at a federation in the terminal: who has how many samples of which label."""

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tierfed.data.dataset import Federation, Ints, Part

SHADES = " ░▒▓█"
PARTS: tuple[Part, ...] = ("train", "val", "test")
MOST_ROWS = 40
MOST_CELLS = 62
WIDE_LABELS = 20
MOST_SHADED = 10_000


def heatmap(federation: Federation, rows: int = MOST_ROWS, own: Ints | None = None) -> Group:
    """A title and a table of devices: training samples per label as shades, sizes of the parts, natural team.

    The darkest shade is the largest number of training samples that any device has of any label, of more than 10,000
    devices any of those that are shown; a blank is none. At most `rows` devices are shown, the first ones, with a line
    that counts the others. Where there are more than 62 labels, neighbors share a cell.

    :param own: [N] how many of the training samples were the device's own before augmentation; one more column
    """
    table = Table()
    table.add_column("device", no_wrap=True)
    teams = federation.natural is not None
    if teams:
        table.add_column("team", no_wrap=True)
    some = np.arange(min(rows, len(federation))) if len(federation) > MOST_SHADED else None
    maps = shades(federation, some)
    if maps:
        table.add_column("labels", no_wrap=True)
    columns: list[tuple[str, Ints]] = [] if own is None else [("own", own)]
    columns += [(part, federation.sizes(part)) for part in PARTS]
    for name, _ in columns:
        table.add_column(name, justify="right")
    sizes = [size.tolist() for _, size in columns]
    for i, device in enumerate(federation.devices[:rows]):
        cells = [device]
        if federation.natural is not None:
            cells.append(federation.teams[federation.natural[i]])
        cells += [*maps[i : i + 1], *(str(size[i]) for size in sizes)]
        # Text, not str: a name with brackets is no markup.
        table.add_row(*map(Text, cells))
    if len(federation) > rows:
        table.add_row(Text(f"… {len(federation) - rows} more", style="dim"))
    return Group(Text(_title(federation)), table, *([Text(_caption(federation))] if maps else []))


def shades(federation: Federation, devices: Ints | None = None) -> list[str]:
    """One line of block shades per device, one cell per label; nothing for a regression.

    :param devices: those to show; None: all
    """
    counts = federation.label_counts("train", devices)
    classes = counts.shape[1]
    if classes == 0:
        return []
    together = _labels_per_cell(classes)
    cells = np.add.reduceat(counts, np.arange(0, classes, together), axis=1)
    level = np.ceil(4 * cells / max(1, cells.max())).astype(np.int64)
    width = 2 if classes <= WIDE_LABELS else 1
    return ["".join(SHADES[i] * width for i in row) for row in level]


def _labels_per_cell(classes: int) -> int:
    return -(-classes // MOST_CELLS)


def _title(federation: Federation) -> str:
    shape = " x ".join(map(str, federation.shape))
    kind = f"{len(federation.classes)} labels" if federation.classes else "a number to predict"
    teams = f" in {len(federation.teams)} natural teams" if federation.teams else ""
    sizes = federation.sizes("train")
    return (
        f"{federation.name}: {len(federation)} devices{teams}, samples of {shape}, {kind}; training samples per device "
        f"{sizes.min()} to {sizes.max()}, median {np.median(sizes):g}"
    )


def _caption(federation: Federation) -> str:
    classes = federation.classes
    if len(classes) <= WIDE_LABELS:
        return f"labels from left to right: {', '.join(classes)}"
    together = _labels_per_cell(len(classes))
    return f"labels from left to right: {classes[0]} … {classes[-1]}" + (
        f", {together} per cell" if together > 1 else ""
    )
