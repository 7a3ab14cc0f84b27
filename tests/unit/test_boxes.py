"""Box plots: where boxes and whiskers end up in pixels, and what is said to those who cannot see them."""

from xml.etree import ElementTree

import pytest

from tierfed.errors import InputError
from tierfed.report.boxes import boxes, quartiles

SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")


def tree(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def test_quartiles() -> None:
    """Of 0, 10, 20, 30 the places 0, 0.75, 1.5, 2.25 and 3: in between by linear interpolation."""
    assert quartiles([30, 0, 20, 10]) == (0, 7.5, 15, 22.5, 30)
    assert quartiles([4]) == (4, 4, 4, 4, 4)


def test_boxes_in_pixels() -> None:
    """From 0 to 40 in 192 ... 40 pixels, 3.8 a unit: quartiles of 0, 10, 20, 30, 40 are 10, 20, 30. Two groups share
    62 ... 304, a box is the middle 60 % of its 121 pixels.
    """
    got = tree(boxes({"a": [40, 10, 20, 30, 0], "b": [20, 20]}, title="T", x="x", y="y", size=(320, 240)))
    first, second = got.iter(f"{SVG}rect")
    assert [float(first.attrib[k]) for k in ("x", "y", "width", "height")] == pytest.approx([86.2, 78, 72.6, 76])
    assert (float(second.attrib["y"]), float(second.attrib["height"])) == (116, 0)
    thick = [e for e in got.iter(f"{SVG}line") if e.attrib["stroke-width"] == "3"]
    assert [float(e.attrib["y1"]) for e in thick] == [116, 116]
    assert first.attrib["stroke"] != second.attrib["stroke"]
    whiskers = [
        (float(e.attrib["y1"]), float(e.attrib["y2"]))
        for e in got.iter(f"{SVG}line")
        if e.attrib["stroke-width"] == "2" and e.attrib["x1"] == e.attrib["x2"] == "122.5"
    ]
    assert whiskers == [(192, 154), (78, 40)]
    assert {"T", "a", "b", "x", "y"} <= {e.text for e in got.iter(f"{SVG}text")}


def test_what_it_says_and_leaves_out() -> None:
    got = boxes({"a": [1, NAN, 3], "none": [NAN]}, title="T", y="accuracy, %")
    desc = tree(got).find(f"{SVG}desc")
    assert desc is not None
    assert desc.text == "Box plot of accuracy, %. a: median 2, from 1 to 3."
    assert got == boxes({"a": [1, NAN, 3]}, title="T", y="accuracy, %")


def test_nothing_to_draw() -> None:
    with pytest.raises(InputError, match="no finite value"):
        boxes({"a": [NAN]}, title="T", y="y")
