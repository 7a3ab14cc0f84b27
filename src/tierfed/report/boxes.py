"""Box plots as static SVG, beside the charts of `tierfed.report.svg` and of the same look."""

from collections.abc import Mapping, Sequence

import numpy as np

from tierfed.errors import InputError
from tierfed.report.colors import PALETTE
from tierfed.report.svg import _BOTTOM, _LEFT, _LINE, _RIGHT, _Box, _line, _n, _svg, _text

QUARTILES = ("lowest", "lower quartile", "median", "upper quartile", "highest")


def quartiles(values: Sequence[float]) -> tuple[float, ...]:
    """Five numbers of some finite values, under the names `QUARTILES`; between two values by linear interpolation."""
    return tuple(float(q) for q in np.quantile(np.asarray(values, np.float64), (0, 0.25, 0.5, 0.75, 1)))


def boxes(
    groups: Mapping[str, Sequence[float]],
    *,
    title: str,
    y: str,
    x: str = "",
    desc: str = "",
    size: tuple[int, int] = (640, 400),
) -> str:
    """A box from quartile to quartile with a line at the median for each group, and whiskers to its extreme values.

    :param groups: name below the box -> values; what is not finite is left out, a group without values has no box
    :param y: what the y axis shows, with its unit; :param x: what the groups are
    :param desc: what one sees, in words; by default median and extremes of every group
    :param size: width and height in pixels
    :raises InputError: nothing finite to draw
    """
    known = {name: [v for v in values if np.isfinite(v)] for name, values in groups.items()}
    known = {name: values for name, values in known.items() if values}
    if not known:
        raise InputError(f"the chart {title!r} has no finite value, wanted one at least; leave the chart out")
    five = {name: quartiles(values) for name, values in known.items()}
    ends = (min(q[0] for q in five.values()), max(q[-1] for q in five.values()))
    frame = (_LEFT, 40, size[0] - _RIGHT, size[1] - _BOTTOM)
    box = _Box(frame, (0.0, float(len(five))), ends)
    parts = [*box.axes(x, y, ticks_x=False)]
    for place, (name, (low, first, median, third, high)) in enumerate(five.items()):
        color = PALETTE[place % len(PALETTE)]
        middle, top = box.at((place + 0.5, third))
        left, right = (box.at((place + share, 0.0))[0] for share in (0.2, 0.8))
        heights = {v: box.at((0.0, v))[1] for v in (low, first, median, third, high)}
        parts += [_line(middle, heights[a], middle, heights[b], color, 2) for a, b in ((low, first), (third, high))]
        parts += [_line(middle - 8, heights[v], middle + 8, heights[v], color, 2) for v in (low, high)]
        parts.append(
            f'<rect x="{_n(left)}" y="{_n(top)}" width="{_n(right - left)}" '
            f'height="{_n(heights[first] - top)}" fill="{color}" fill-opacity="0.25" stroke="{color}"/>'
        )
        parts.append(_line(left, heights[median], right, heights[median], color, 3))
        parts.append(_text(middle, frame[3] + _LINE, name))
    said = "; ".join(f"{name}: median {q[2]:.4g}, from {q[0]:.4g} to {q[-1]:.4g}" for name, q in five.items())
    return _svg(size, title, desc or f"Box plot of {y}. {said}.", parts)
