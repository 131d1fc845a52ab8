"""Charts are well-formed SVG whose points stand where their numbers say."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from results.drawing import LEFT, PLOT, RIGHT, TOP, WIDTH, Line, Panel, numbers, svg, ticks

PANEL = Panel("Title <&>", "epoch", (Line("one & two", ((0, 0.0, 0.0), (10, 1.0, 0.0))),))


def circles(text):
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)]


def test_the_text_is_xml_and_escapes_names():
    root = ElementTree.fromstring(svg([PANEL, PANEL, PANEL]))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("Title <&>") == texts.count("one & two") == texts.count("epoch") == 3
    assert (root.get("width"), int(root.get("height")) > 2 * PLOT) == (str(2 * WIDTH), True)


def test_the_same_numbers_give_the_same_bytes():
    assert svg([PANEL]) == svg([PANEL])


def test_points_stand_where_their_numbers_say():
    assert circles(svg([PANEL])) == [(LEFT, TOP + PLOT), (WIDTH - RIGHT, TOP)]


def test_an_axis_with_marks_of_its_own_is_logarithmic():
    line = Line("k", ((10, 0.0, 0.0), (100, 0.5, 0.2), (1000, 1.0, 0.0)))
    text = svg([Panel("t", "k", (line,), ticks=(10, 100, 1000))])
    middle = (LEFT + WIDTH - RIGHT) / 2
    assert circles(text)[1] == (middle, TOP + PLOT / 2)
    bar = re.search(rf'<path d="M{middle} ([\d.]+)V([\d.]+)"', text)
    assert [float(end) for end in bar.groups()] == [TOP + 0.7 * PLOT, TOP + 0.3 * PLOT]
    assert all(f">{k}<" in text for k in (10, 100, 1000))


def test_many_points_are_a_line_without_dots():
    text = svg([Panel("t", "x", (Line("a", tuple((x, x, 0.0) for x in range(40))),))])
    assert "<circle" not in text
    assert text.count(" L") == 39


def test_long_names_stand_below_each_other():
    def height(label):
        panel = Panel("t", "x", tuple(Line(label + str(n), ((0, 0.0, 0.0), (1, 1.0, 0.0))) for n in range(2)))
        return int(ElementTree.fromstring(svg([panel])).get("height"))

    assert height("a name of more than twenty letters") > height("short")


def test_a_panel_without_points_says_so():
    text = svg([Panel("t", "x", (Line("a", ()),)), PANEL])
    assert text.count("no run recorded yet") == 1


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.41, 0.78, ["0.4", "0.5", "0.6", "0.7", "0.8"]),
        (96.5, 98.2, ["96.5", "97.0", "97.5", "98.0", "98.5"]),
        (-3.0, 3.0, ["-3", "-2", "-1", "0", "1", "2", "3"]),
    ],
)
def test_marks_are_round_and_hold_the_values(low, high, expected):
    assert numbers(ticks(low, high)) == expected


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 97.3, -2.0])
def test_a_single_value_has_an_axis(value):
    found = ticks(value, value)
    assert found[0] <= value <= found[-1]
    assert found[0] < found[-1]
    assert circles(svg([Panel("t", "x", (Line("a", ((3, value, 0.0),)),))]))


def test_marks_within_the_ends():
    assert ticks(0, 39, outside=False) == [0, 10, 20, 30]
    assert ticks(1, 39, outside=False) == [10, 20, 30]
