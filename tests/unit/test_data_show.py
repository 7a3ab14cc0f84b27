"""The look at a federation in the terminal."""

import io

import numpy as np
import torch
from rich.console import Console

from tierfed.data import Federation, heatmap
from tierfed.data.show import shades


def federation(counts, natural=None, names=None):
    """Devices with these numbers of training samples per label, nothing else."""
    counts = np.array(counts)
    classes = counts.shape[1]
    y = np.concatenate([np.repeat(np.arange(classes), row) for row in counts])
    ends = np.cumsum(counts.sum(1))
    train = tuple(np.arange(end - size, end) for end, size in zip(ends, counts.sum(1), strict=True))
    nothing = tuple(np.zeros(0, np.int64) for _ in counts)
    return Federation(
        name="toy",
        x=torch.zeros(len(y), 3),
        y=torch.from_numpy(y),
        classes=tuple(f"c{i}" for i in range(classes)),
        train=train,
        val=nothing,
        test=nothing,
        devices=names or tuple(f"d{i}" for i in range(len(counts))),
        bits_per_sample=96,
        natural=natural,
        teams=("north", "south") if natural is not None else (),
    )


def rendered(fed, **kwargs):
    out = io.StringIO()
    Console(width=200, file=out).print(heatmap(fed, **kwargs))
    return out.getvalue()


def test_shades_are_quarters_of_the_largest_count():
    fed = federation([[0, 1, 2], [3, 5, 8]])
    # Of 8: 1 and 2 are the first quarter, 3 the second, 5 the third, 8 the last. Two characters per label.
    assert shades(fed) == ["  ░░░░", "▒▒▓▓██"]


def test_many_labels_share_cells():
    counts = np.zeros((1, 100), np.int64)
    counts[0, [0, 1]] = 4
    lines = shades(federation(counts))
    # 100 labels in 62 cells or fewer: 2 each, 50 cells; the first one holds both labels that occur.
    assert lines == ["█" + " " * 49]


def test_all_devices_and_a_line_for_the_others():
    text = rendered(federation([[1, 1]] * 120, natural=np.arange(120) % 2), rows=10)
    assert "d9" in text
    assert "d10 " not in text
    assert "… 110 more" in text
    assert "north" in text
    assert "120 devices in 2 natural teams" in text


def test_names_are_no_markup():
    assert "[red]x" in rendered(federation([[1, 1]], names=("[red]x",)))


def test_a_regression_shows_sizes():
    fed = federation([[2, 1], [1, 1]])
    text = rendered(Federation(**{**vars(fed), "classes": (), "y": fed.y.float()}))
    assert "a number to predict" in text
    assert "labels" not in text
