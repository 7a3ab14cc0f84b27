"""Static charts: where numbers end up in pixels, what is said to those who cannot see them, the same bytes always."""

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.errors import InputError
from tierfed.report import svg
from tierfed.report.colors import PALETTE

SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")


def tree(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def texts(text: str) -> list[str]:
    return [e.text or "" for e in tree(text).iter(f"{SVG}text")]


def described(text: str) -> str:
    found = tree(text).find(f"{SVG}desc")
    assert found is not None
    return found.text or ""


def points(element: ElementTree.Element) -> list[tuple[float, ...]]:
    return [tuple(map(float, p.split(","))) for p in element.attrib["points"].split()]


class TestLines:
    def test_points_in_pixels(self) -> None:
        """One line has no legend: the data fill 62 … 304 and 40 … 192. (1, 5) is in the middle of (0, 0), (2, 10)."""
        got = svg.lines({"a": [(0, 0), (1, 5), (2, 10)]}, title="T", x="round", y="loss", size=(320, 240))
        (line,) = tree(got).iter(f"{SVG}polyline")
        assert points(line) == [(62, 192), (183, 116), (304, 40)]
        assert len(list(tree(got).iter(f"{SVG}circle"))) == 3
        assert texts(got)[0] == "T"
        assert {"round", "loss", "0.0", "0.5", "1.0", "1.5", "2.0", "0", "2", "4", "6", "8", "10"} <= set(texts(got))

    def test_two_lines_have_a_legend_with_their_colors(self) -> None:
        got = svg.lines({"a": [(0, 0), (1, 1)], "b": [(0, 1), (1, 0)]}, title="T", x="x", y="y")
        assert [e.attrib["stroke"] for e in tree(got).iter(f"{SVG}polyline")] == list(PALETTE[:2])
        assert {"a", "b"} <= set(texts(got))
        # other marks: a circle for the first, a square for the second; one of each in the legend
        assert (len(list(tree(got).iter(f"{SVG}circle"))), len(list(tree(got).iter(f"{SVG}rect")))) == (3, 3)

    def test_many_names_take_several_lines(self) -> None:
        one = svg.lines({"a": [(0, 0)], "b": [(1, 1)]}, title="T", x="x", y="y")
        long = svg.lines({"a" * 60: [(0, 0)], "b" * 60: [(1, 1)]}, title="T", x="x", y="y")
        heights = [
            {e.attrib["y"] for e in tree(t).iter(f"{SVG}text") if (e.text or "")[0] in "ab"} for t in (one, long)
        ]
        assert [len(h) for h in heights] == [1, 2]

    def test_a_gap_breaks_the_line_and_is_no_mark(self) -> None:
        got = svg.lines({"a": [(0, 1), (1, 2), (2, NAN), (3, 4), (4, 5)]}, title="T", x="x", y="y")
        assert [len(points(e)) for e in tree(got).iter(f"{SVG}polyline")] == [2, 2]
        assert len(list(tree(got).iter(f"{SVG}circle"))) == 4

    def test_a_band_widens_the_axis_and_lies_behind(self) -> None:
        """From 0 to 10 though the line stays at 5: the band's corners are at the ends of the plane."""
        got = svg.lines(
            {"a": [(0, 5), (1, 5)]}, bands={"a": [(0, 0, 10), (1, 0, 10)]}, title="T", x="x", y="y", size=(320, 240)
        )
        (band,) = tree(got).iter(f"{SVG}polygon")
        assert points(band) == [(62, 40), (304, 40), (304, 192), (62, 192)]
        order = [e.tag.removeprefix(SVG) for e in tree(got)]
        assert order.index("polygon") < order.index("polyline")

    def test_a_given_range(self) -> None:
        got = svg.lines({"a": [(0, 1), (1, 1)]}, title="T", x="x", y="y", y_range=(0, 2), size=(320, 240))
        (line,) = tree(got).iter(f"{SVG}polyline")
        assert points(line) == [(62, 116), (304, 116)]

    def test_a_single_point(self) -> None:
        got = svg.lines({"a": [(3, 0)]}, title="T", x="x", y="y")
        assert len(list(tree(got).iter(f"{SVG}circle"))) == 1

    def test_what_it_says(self) -> None:
        got = svg.lines({"a": [(0, 0), (1, -0.25)], "b": [(0, 3)]}, title="T", x="round", y="loss")
        assert described(got) == "Line chart of loss over round. At the end: a \N{MINUS SIGN}0.25; b 3."
        assert described(svg.lines({"a": [(0, 0)]}, title="T", x="x", y="y", desc="Own words.")) == "Own words."

    def test_many_points_have_no_marks(self) -> None:
        got = svg.lines({"a": [(i, i) for i in range(31)]}, title="T", x="x", y="y")
        assert list(tree(got).iter(f"{SVG}circle")) == []

    @pytest.mark.parametrize(
        ("series", "bands", "said"),
        [
            ({}, None, "no finite point"),
            ({"a": [(0, NAN)]}, None, "no finite point"),
            ({"a": [(0, 0)]}, {"b": []}, "'b'"),
        ],
    )
    def test_refused(self, series: Any, bands: Any, said: str) -> None:
        with pytest.raises(InputError, match=said):
            svg.lines(series, bands=bands, title="T", x="x", y="y")


class TestBars:
    def test_heights(self) -> None:
        """From 0 to 10 in 40 … 192 pixels: 5 is 76 high; one group, one bar in the middle 0.9 of 0.8 of 242."""
        got = svg.bars({"g": {"a": 5}, "h": {"a": 10}}, title="T", y="y", size=(320, 240))
        bars = [e for e in tree(got).iter(f"{SVG}rect") if e.attrib["fill"] == PALETTE[0]]
        assert [float(b.attrib["height"]) for b in bars] == [76, 152]
        assert [float(b.attrib["y"]) for b in bars] == [116, 40]
        assert float(bars[0].attrib["width"]) == pytest.approx(0.9 * 0.8 * 121, abs=0.01)
        assert {"g", "h"} <= set(texts(got))

    def test_negative_bars_hang(self) -> None:
        got = svg.bars({"g": {"a": 1, "b": -1}}, title="T", y="y", size=(320, 240))
        up, down = [e for e in tree(got).iter(f"{SVG}rect") if float(e.attrib["height"]) > 7]
        assert float(up.attrib["y"]) + float(up.attrib["height"]) == float(down.attrib["y"])

    def test_whiskers_and_what_is_missing(self) -> None:
        """8 ± 2 needs an axis to 10, which with a legend is 58 … 192: from 6 at 111.6 to 10 at 58."""
        got = svg.bars(
            {"g": {"a": 8, "b": NAN}, "h": {"b": 1}}, spread={"g": {"a": 2}}, title="T", y="y", size=(320, 240)
        )
        bars = [e for e in tree(got).iter(f"{SVG}rect") if e.attrib["width"] != "6"]
        assert len(bars) == 2
        whiskers = [e for e in tree(got).iter(f"{SVG}line") if e.attrib["x1"] == e.attrib["x2"]]
        assert [(w.attrib["y1"], w.attrib["y2"]) for w in whiskers] == [("111.6", "58")]

    def test_what_it_says(self) -> None:
        got = svg.bars({"g": {"a": 1, "b": NAN}}, title="T", y="y")
        assert described(got) == "Bar chart of y. g: a 1, b \N{EN DASH}."

    def test_refused(self) -> None:
        with pytest.raises(InputError, match="no finite value"):
            svg.bars({"g": {"a": NAN}}, title="T", y="y")


class TestHeatmap:
    def test_colors_and_numbers(self) -> None:
        got = svg.heatmap([[0, 1], [0.5, NAN]], ["r", "s"], ["c", "d"], title="T", x="X", y="Y", digits=1)
        # light (233, 241, 254), dark (29, 78, 216), their mean (131, 159.5, 235)
        assert [e.attrib["fill"] for e in tree(got).iter(f"{SVG}rect")] == ["#e9f1fe", "#1d4ed8", "#83a0eb"]
        assert texts(got) == ["T", "X", "Y", "c", "d", "r", "0.0", "1.0", "s", "0.5", "\N{EN DASH}"]
        ink = [e.attrib.get("fill") for e in tree(got).iter(f"{SVG}text") if e.text in ("0.0", "1.0", "0.5")]
        assert ink == ["#10141a", "#ffffff", "#10141a"]
        assert described(got) == "Heat map, 2 by 2. Highest: 1 at r, d."

    def test_given_ends(self) -> None:
        got = svg.heatmap([[5, 10]], ["r"], ["c", "d"], title="T", ends=(0, 10))
        assert [e.attrib["fill"] for e in tree(got).iter(f"{SVG}rect")] == ["#83a0eb", "#1d4ed8"]

    def test_all_equal(self) -> None:
        got = svg.heatmap([[2, 2]], ["r"], ["c", "d"], title="T")
        assert {e.attrib["fill"] for e in tree(got).iter(f"{SVG}rect")} == {"#e9f1fe"}

    @pytest.mark.parametrize(
        ("values", "rows", "columns", "said"),
        [
            ([[1, 2]], ["r"], ["c"], "1 column names"),
            ([[1]], ["r", "s"], ["c"], "2 row names"),
            ([], [], [], "0 row names"),
            ([[NAN]], ["r"], ["c"], "no finite number"),
        ],
    )
    def test_refused(self, values: Any, rows: Any, columns: Any, said: str) -> None:
        with pytest.raises(InputError, match=said):
            svg.heatmap(values, rows, columns, title="T")


def some() -> list[str]:
    return [
        svg.lines({"a": [(0, 1), (1, 2)]}, title="A", x="x", y="y", size=(300, 200)),
        svg.bars({"g": {"a": 5}}, title="B", y="y", size=(200, 250)),
        svg.heatmap([[1.0]], ["r"], ["c"], title="C"),
    ]


class TestBeside:
    def test_row_by_row(self) -> None:
        """Below a title of 34 pixels: 300 and 200 wide, the second row begins below the higher one of the first."""
        got = svg.beside(some(), title="All", per_row=2)
        inner = list(tree(got).iter(f"{SVG}svg"))[1:]
        assert [(e.attrib["x"], e.attrib["y"]) for e in inner] == [("0", "34"), ("300", "34"), ("0", "284")]
        last = int(inner[-1].attrib["height"])
        assert (tree(got).attrib["width"], tree(got).attrib["height"]) == ("500", str(284 + last))

    @pytest.mark.parametrize("charts", [[], ["<svg/>"]])
    def test_refused(self, charts: list[str]) -> None:
        with pytest.raises(InputError, match="what lines, bars and heatmap return"):
            svg.beside(charts, title="T")


MAKERS: list[Callable[[str], str]] = [
    lambda name: svg.lines({name: [(0, 1)], "b": [(0, 2)]}, title=name, x=name, y=name),
    lambda name: svg.bars({name: {name: 1, "b": 2}}, title=name, y=name),
    lambda name: svg.heatmap([[1.0]], [name], [name], title=name, x=name, y=name),
    lambda name: svg.beside([svg.heatmap([[1.0]], [name], [name], title=name)], title=name, desc=name),
]


@pytest.mark.parametrize("make", MAKERS)
class TestAll:
    def test_names_cannot_become_markup(self, make: Callable[[str], str]) -> None:
        evil = '"><script>alert(1)</script>&'
        got = make(evil)
        assert evil in texts(got)
        assert list(tree(got).iter(f"{SVG}script")) == []

    def test_accessible_and_for_both_backgrounds(self, make: Callable[[str], str]) -> None:
        got = make("n")
        assert tree(got).attrib["role"] == "img"
        assert tree(got).attrib["aria-label"] == "n"
        assert [e.tag for e in tree(got)][:2] == [f"{SVG}title", f"{SVG}desc"]
        assert len(described(got)) > 0
        # a gray whose contrast is 3 or more both on white and on the dark page of the documentation
        for back in ("#ffffff", "#1e2129"):
            assert contrast(tree(got).attrib["fill"], back) > 3

    def test_the_same_each_time_and_plain_numbers(self, make: Callable[[str], str]) -> None:
        assert make("n") == make("n")
        assert re.search(r'="-0"|e-\d|nan|inf', make("n")) is None


def contrast(a: str, b: str) -> float:
    """WCAG 2: (L1 + 0.05) / (L2 + 0.05) of the relative luminances."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


finite = st.floats(-1e9, 1e9, allow_subnormal=False)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=20))
def test_every_point_is_inside(data: list[tuple[float, float]]) -> None:
    got = svg.lines({"a": data}, title="T", x="x", y="y", size=(320, 240))
    for line in tree(got).iter(f"{SVG}polyline"):
        assert all(61.9 <= x <= 304.1 and 39.9 <= y <= 192.1 for x, y in points(line))


@settings(max_examples=25, deadline=None)
@given(finite, st.floats(1e-6, 1e6))
def test_ticks_are_round_ascending_and_inside(low: float, width: float) -> None:
    high = low + width
    if high <= low or width < 1e-9 * abs(low):
        return
    found = [v for v, _ in svg.ticks(low, high)]
    assert len(found) <= 7
    slack = 1e-6 * width + 1e-9 * abs(low)
    assert all(low - slack <= v <= high + slack for v in found)
    steps = {f"{b - a:.3g}" for a, b in pairwise(found)} if width > 1e-6 * abs(low) else set()
    assert len(steps) <= 1


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-1, 1, ["\N{MINUS SIGN}1.0", "\N{MINUS SIGN}0.5", "0.0", "0.5", "1.0"]),
        (0.1249, 0.1253, ["0.1249", "0.1250", "0.1251", "0.1252", "0.1253"]),
        (0, 600, ["0", "200", "400", "600"]),
    ],
)
def test_ticks_by_hand(low: float, high: float, want: list[str]) -> None:
    """The step is the smallest of 1, 2, 5 times a power of ten that is at least a fifth of the range."""
    assert [text for _, text in svg.ticks(low, high)] == want
    assert all(math.isfinite(v) for v, _ in svg.ticks(low, high))
