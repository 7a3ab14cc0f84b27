"""Static charts as SVG, for pages without scripts: lines with bands, grouped bars, heat maps with numbers.

Pure functions of numbers to text: the same numbers give the same bytes. The background is transparent and all that is
not data is a gray that can be read on white and on near-black. Every chart has a title, and a description with its
last or extreme numbers for those who cannot see it.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import TypeVar

from tierfed.errors import InputError
from tierfed.report.colors import PALETTE
from tierfed.report.words import MINUS, NONE

Point = tuple[float, float]
Band = tuple[float, float, float]
P = TypeVar("P", bound=tuple[float, ...])

_GRAY, _FAINT, _DARK, _LIGHT = "#7d8590", "#7d859055", "#10141a", "#ffffff"
_COLD, _HOT = (233, 241, 254), (29, 78, 216)
_FONT, _TITLE = 12, 15
_LEFT, _RIGHT, _BOTTOM, _LINE = 62, 16, 48, 18
_DASHES = ("", ' stroke-dasharray="6 4"', ' stroke-dasharray="2 3"')
_MOST_MARKS = 30
_HEAD = re.compile(r'^<svg xmlns="[^"]+" width="(\d+)" height="(\d+)" ')


def lines(
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    x: str,
    y: str,
    bands: Mapping[str, Sequence[Band]] | None = None,
    y_range: tuple[float, float] | None = None,
    desc: str = "",
    size: tuple[int, int] = (640, 400),
) -> str:
    """A line chart.

    :param series: name in the legend -> points (x, y) in order; a point that is not finite breaks the line
    :param bands: name of a series -> (x, low, high) in order, drawn behind its line
    :param x: what the x axis shows, :param y: the y axis, both with their units
    :param y_range: ends of the y axis; by default those of the numbers
    :param desc: what one sees, in words; by default where each line ends
    :param size: width and height in pixels
    :raises InputError: nothing finite to draw, or a band without a line
    """
    bands = bands or {}
    for name in bands:
        if name not in series:
            raise InputError(
                f"got a band for {name!r}, wanted one of the lines {', '.join(series)}; name it as its line"
            )
    known = {name: [p for p in points if _finite(*p)] for name, points in series.items()}
    xs = [p[0] for points in known.values() for p in points]
    ys = [p[1] for points in known.values() for p in points]
    ys += [v for points in bands.values() for b in points if _finite(*b) for v in b[1:]]
    if not xs:
        raise InputError(f"the chart {title!r} has no finite point, wanted one at least; leave the chart out")
    named = list(series)
    legend, top = _legend(named, size[0])
    box = _Box((_LEFT, top, size[0] - _RIGHT, size[1] - _BOTTOM), (min(xs), max(xs)), y_range or (min(ys), max(ys)))
    parts = [*legend, *box.axes(x, y, ticks_x=True)]
    for number, name in enumerate(named):
        color, shape = PALETTE[number % len(PALETTE)], number % 4
        for run in _runs(bands.get(name, ())):
            edge = [(b[0], b[2]) for b in run] + [(b[0], b[1]) for b in reversed(run)]
            parts.append(f'<polygon points="{box.path(edge)}" fill="{color}" fill-opacity="0.15"/>')
        for piece in _runs(series[name]):
            dash = _DASHES[number // len(PALETTE) % len(_DASHES)]
            parts.append(
                f'<polyline points="{box.path(piece)}" fill="none" stroke="{color}" stroke-width="2" '
                f'stroke-linejoin="round"{dash}/>'
            )
        if len(known[name]) <= _MOST_MARKS:
            parts += [_mark(shape, *box.at(p), color) for p in known[name]]
    ends = "; ".join(f"{name} {_short(points[-1][1])}" for name, points in known.items() if points)
    return _svg(size, title, desc or f"Line chart of {y} over {x}. At the end: {ends}.", parts)


def bars(
    groups: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    y: str,
    x: str = "",
    spread: Mapping[str, Mapping[str, float]] | None = None,
    desc: str = "",
    size: tuple[int, int] = (640, 400),
) -> str:
    """Bars from zero, in groups.

    :param groups: name of a group -> name in the legend -> value; what is missing or not finite has no bar
    :param spread: of the same form: half the length of a whisker, in units of y
    :param y: what the y axis shows, with its unit; :param x: what the groups are
    :param desc: what one sees, in words; by default all numbers
    :param size: width and height in pixels
    :raises InputError: nothing finite to draw
    """
    named = list(dict.fromkeys(name for group in groups.values() for name in group))
    cells = {(g, n): v for g, group in groups.items() for n, v in group.items() if _finite(v)}
    if not cells:
        raise InputError(f"the chart {title!r} has no finite value, wanted one at least; leave the chart out")
    reach = {(g, n): abs((spread or {}).get(g, {}).get(n, 0.0)) for g, n in cells}
    low = min(0.0, *(v - reach[at] for at, v in cells.items()))
    high = max(0.0, *(v + reach[at] for at, v in cells.items()))
    legend, top = _legend(named, size[0])
    box = _Box((_LEFT, top, size[0] - _RIGHT, size[1] - _BOTTOM), (0.0, float(len(groups))), (low, high))
    parts = [*legend, *box.axes(x, y, ticks_x=False)]
    width = 0.8 / len(named)
    for place, group in enumerate(groups):
        middle, _ = box.at((place + 0.5, 0.0))
        parts.append(_text(middle, box.frame[3] + _LINE, group))
        for number, name in enumerate(named):
            if (group, name) not in cells:
                continue
            value, half = cells[group, name], reach[group, name]
            left, zero = box.at((place + 0.1 + number * width, 0.0))
            right, end = box.at((place + 0.1 + (number + 0.9) * width, value))
            parts.append(
                f'<rect x="{_n(left)}" y="{_n(min(zero, end))}" width="{_n(right - left)}" '
                f'height="{_n(abs(end - zero))}" fill="{PALETTE[number % len(PALETTE)]}"/>'
            )
            if half:
                at, ends = (left + right) / 2, (box.at((0, value - half))[1], box.at((0, value + half))[1])
                parts.append(_line(at, ends[0], at, ends[1], _GRAY))
    said = "; ".join(f"{g}: " + ", ".join(f"{n} {_short(v)}" for n, v in group.items()) for g, group in groups.items())
    return _svg(size, title, desc or f"Bar chart of {y}. {said}.", parts)


def heatmap(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    x: str = "",
    y: str = "",
    digits: int = 2,
    ends: tuple[float, float] | None = None,
    cell: tuple[int, int] = (38, 24),
    desc: str = "",
) -> str:
    """A table of numbers on colors, light for the lowest and dark for the highest.

    :param values: numbers [R, C]; what is not finite has no color
    :param rows: names [R], :param columns: names [C]
    :param x: what the columns are, :param y: the rows
    :param digits: decimals that are written
    :param ends: values of the lightest and the darkest color; by default the lowest and the highest
    :param cell: width and height of a number's field in pixels
    :param desc: what one sees, in words; by default the highest number
    :raises InputError: names and numbers that do not belong together, or nothing finite to draw
    """
    if not rows or len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        raise InputError(
            f"got {len(values)} rows of {sorted({len(r) for r in values})} numbers for {len(rows)} row names and "
            f"{len(columns)} column names; give one name for each row and column"
        )
    known = [(v, r, c) for r, row in enumerate(values) for c, v in enumerate(row) if _finite(v)]
    if not known:
        raise InputError(f"the heat map {title!r} has no finite number, wanted one at least; leave it out")
    low, high = ends or (min(known)[0], max(known)[0])
    left = 12 + _width(max(rows, key=len)) + (_LINE if y else 0)
    top = 34 + (_LINE if x else 0) + _LINE
    parts = [_text(left + cell[0] * len(columns) / 2, 46, x)] if x else []
    if y:
        parts.append(_text(14, top + cell[1] * len(rows) / 2, y, turned=True))
    parts += [_text(left + (c + 0.5) * cell[0], top - 6, name) for c, name in enumerate(columns)]
    for r, row in enumerate(values):
        middle = top + (r + 0.5) * cell[1] + 4
        parts.append(_text(left - 6, middle, rows[r], "end"))
        for c, value in enumerate(row):
            at = left + c * cell[0]
            if not _finite(value):
                parts.append(_text(at + cell[0] / 2, middle, NONE))
                continue
            share = min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.0
            color = "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(_COLD, _HOT, strict=True))
            ink = _LIGHT if share > 0.5 else _DARK
            parts.append(
                f'<rect x="{at}" y="{top + r * cell[1]}" width="{cell[0]}" height="{cell[1]}" fill="{color}"/>'
            )
            parts.append(_text(at + cell[0] / 2, middle, f"{value:.{digits}f}".replace("-", MINUS), color=ink))
    best, r, c = max(known)
    said = f"Heat map, {len(rows)} by {len(columns)}. Highest: {_short(best)} at {rows[r]}, {columns[c]}."
    size = (left + cell[0] * len(columns) + 10, top + cell[1] * len(rows) + 10)
    return _svg((max(size[0], 24 + round(1.2 * _width(title))), size[1]), title, desc or said, parts)


def scatter(
    points: Mapping[str, Point],
    *,
    title: str,
    x: str,
    y: str,
    desc: str = "",
    size: tuple[int, int] = (640, 480),
) -> str:
    """Points in a plane, each with its name beside it.

    :param points: name -> (x, y); a point that is not finite is left out
    :param x: what the x axis shows, :param y: the y axis, both with their units
    :param desc: what one sees, in words; by default all numbers
    :param size: width and height in pixels
    :raises InputError: nothing finite to draw
    """
    known = {name: p for name, p in points.items() if _finite(*p)}
    if not known:
        raise InputError(f"the chart {title!r} has no finite point, wanted one at least; leave the chart out")
    xs, ys = ([p[d] for p in known.values()] for d in (0, 1))
    box = _Box((_LEFT, 40, size[0] - _RIGHT, size[1] - _BOTTOM), _roomy(xs), _roomy(ys))
    parts, places = list(box.axes(x, y, ticks_x=True)), {name: box.at(p) for name, p in known.items()}
    for number, at in enumerate(places.values()):
        parts.append(_mark(number % len(_SHAPES), *at, PALETTE[number % len(PALETTE)]))
    parts += [_text(*place, name, anchor) for name, (place, anchor) in _labels(places, box.frame).items()]
    said = "; ".join(f"{name} {_short(a)}, {_short(b)}" for name, (a, b) in known.items())
    return _svg(size, title, desc or f"Points of {x} and {y}. {said}.", parts)


def beside(charts: Sequence[str], *, title: str, per_row: int = 2, desc: str = "") -> str:
    """Several charts of this module in one, row by row.

    :raises InputError: none, or something that is no chart of this module
    """
    found = [_HEAD.match(chart) for chart in charts]
    if not found or not all(found):
        raise InputError("got no charts, or other text among them; give what lines, bars and heatmap return")
    sizes = [(int(m[1]), int(m[2])) for m in found if m]
    parts, top, width = [], 34, 24 + round(1.2 * _width(title))
    for start in range(0, len(charts), per_row):
        left = 0
        for chart, (w, h) in zip(charts[start : start + per_row], sizes[start : start + per_row], strict=True):
            parts.append(_HEAD.sub(f'<svg x="{left}" y="{top}" width="{w}" height="{h}" ', chart).rstrip())
            left += w
        width, top = max(width, left), top + max(h for _, h in sizes[start : start + per_row])
    return _svg((width, top), title, desc or f"{len(charts)} charts.", parts)


class _Box:
    """The plane of the data inside of a picture."""

    def __init__(self, frame: tuple[float, float, float, float], x: Point, y: Point) -> None:
        """:param frame: left, top, right, bottom in pixels"""
        self.frame, self.x, self.y = frame, _padded(x), _padded(y)

    def at(self, point: Point) -> Point:
        left, top, right, bottom = self.frame
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    def path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{_n(a)},{_n(b)}" for a, b in map(self.at, points))

    def axes(self, x: str, y: str, *, ticks_x: bool) -> Iterator[str]:
        left, top, right, bottom = self.frame
        for value, text in ticks(*self.y):
            _, at = self.at((self.x[0], value))
            yield _line(left, at, right, at, _FAINT)
            yield _text(left - 8, at + 4, text, "end")
        for value, text in ticks(*self.x) if ticks_x else ():
            at, _ = self.at((value, self.y[0]))
            yield _line(at, bottom, at, bottom + 4, _GRAY)
            yield _text(at, bottom + _LINE, text)
        yield _line(left, bottom, right, bottom, _GRAY)
        yield _text((left + right) / 2, bottom + _BOTTOM - 10, x)
        yield _text(16, (top + bottom) / 2, y, turned=True)


def ticks(low: float, high: float, most: int = 6) -> list[tuple[float, str]]:
    """Round numbers within a range, at most `most`, and how they are written.

    >>> [text for _, text in ticks(0.0, 1.0)]
    ['0.0', '0.2', '0.4', '0.6', '0.8', '1.0']
    """
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(n * step, f"{n * step + 0.0:.{digits}f}".replace("-", MINUS)) for n in range(first, last + 1)]


def _padded(ends: Point) -> Point:
    """A range that is not empty."""
    low, high = ends
    return ends if high > low else (low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2)


def _roomy(values: Sequence[float]) -> Point:
    """The range of some values and a twentieth of it at both ends."""
    low, high = _padded((min(values), max(values)))
    return low - (high - low) / 20, high + (high - low) / 20


def _labels(places: Mapping[str, Point], frame: tuple[float, float, float, float]) -> dict[str, tuple[Point, str]]:
    """Name of a point -> ((x, y), anchor) of its text: where it covers nothing, as far as there is such a place."""

    def free(start: float, low: float) -> bool:
        left, top, right, bottom = start, low - _FONT + 2, start + wide, low + 2
        inside = left >= frame[0] and right <= frame[2] and top >= frame[1] and bottom <= frame[3]
        return inside and not any(left < o[2] and o[0] < right and top < o[3] and o[1] < bottom for o in taken)

    taken = [(a - 4, b - 4, a + 4, b + 4) for a, b in places.values()]
    out: dict[str, tuple[Point, str]] = {}
    for name, (a, b) in sorted(places.items(), key=lambda item: item[1][1]):
        wide = _width(name)
        starts = [(s, b + down) for down in (4, -6, 14, -16, 24, -26, 34) for s in (a + 8, a - 8 - wide)]
        start, low = next((s for s in starts if free(*s)), starts[0])
        taken.append((start, low - _FONT + 2, start + wide, low + 2))
        out[name] = ((start, low), "start") if start > a else ((start + wide, low), "end")
    return out


def _runs(points: Sequence[P]) -> Iterator[Sequence[P]]:
    """The stretches without a gap."""
    gaps = [-1, *(i for i, p in enumerate(points) if not _finite(*p)), len(points)]
    yield from (points[a + 1 : b] for a, b in pairwise(gaps) if b > a + 1)


def _legend(names: Sequence[str], width: int) -> tuple[list[str], int]:
    """Names with their colors in as many lines as they need, and where the data may begin; none for a single one."""
    parts, left, top = [], _LEFT, 44
    if len(names) < 2:
        return [], 40
    for number, name in enumerate(names):
        needed = 26 + _width(name)
        if left > _LEFT and left + needed > width - _RIGHT:
            left, top = _LEFT, top + _LINE
        color, dash = PALETTE[number % len(PALETTE)], _DASHES[number // len(PALETTE) % len(_DASHES)]
        parts.append(_line(left, top - 4, left + 16, top - 4, color, 3, dash))
        parts.append(_mark(number % 4, left + 8, top - 4, color))
        parts.append(_text(left + 20, top, name, "start"))
        left += needed
    return parts, top + 14


_SHAPES: tuple[Callable[[float, float], str], ...] = (
    lambda x, y: f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3.5"',
    lambda x, y: f'<rect x="{_n(x - 3)}" y="{_n(y - 3)}" width="6" height="6"',
    lambda x, y: f'<path d="M{_n(x)} {_n(y - 4.5)}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"',
    lambda x, y: f'<path d="M{_n(x)} {_n(y - 4.5)}l4.5 7.5h-9z"',
)


def _mark(shape: int, x: float, y: float, color: str) -> str:
    return f'{_SHAPES[shape](x, y)} fill="{color}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: int = 1, dash: str = "") -> str:
    ends = f'x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width}"{dash}/>'


def _text(
    x: float, y: float, text: str, anchor: str = "middle", *, color: str = "", turned: bool = False, size: int = 0
) -> str:
    place = f'x="{_n(x)}" y="{_n(y)}"' + (f' transform="rotate(-90 {_n(x)} {_n(y)})"' if turned else "")
    look = (f' fill="{color}"' if color else "") + (f' font-size="{size}" font-weight="600"' if size else "")
    return f'<text {place} text-anchor="{anchor}"{look}>{escape(text)}</text>'


def _svg(size: tuple[int, int], title: str, desc: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title)}" '
        f'font-family="system-ui, sans-serif" font-size="{_FONT}" fill="{_GRAY}">'
    )
    named = [f"<title>{escape(title)}</title>", f"<desc>{escape(desc)}</desc>"]
    return "\n".join([head, *named, _text(12, 22, title, "start", size=_TITLE), *parts, "</svg>"]) + "\n"


def _finite(*values: float) -> bool:
    return all(math.isfinite(v) for v in values)


def _width(text: str) -> int:
    """About how many pixels a text is wide."""
    return round(0.58 * _FONT * len(text))


def _short(value: float) -> str:
    return f"{value:.4g}".replace("-", MINUS) if math.isfinite(value) else NONE


def _n(value: float) -> str:
    """A coordinate with two decimals at most."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
