"""Charts: valid SVG, values in their place, nothing drawn for what is undefined."""

import math
import xml.etree.ElementTree as ET

import pytest

from detection.report.charts import Bar, Line, bar_chart, heat_map, line_chart, reliability_chart

EVIL = "<script>alert(1)</script>\"'&"


def parsed(figure: str) -> ET.Element:
    assert "nan" not in figure
    return ET.fromstring(figure)


def with_class(figure: ET.Element, name: str) -> list[ET.Element]:
    return [each for each in figure.iter() if name in each.get("class", "").split()]


def test_bars_are_as_long_as_their_values() -> None:
    bars = [Bar("a", 1.0, 0.5, 1.0), Bar(EVIL, 0.25), Bar("none", math.nan), Bar("no", None)]
    figure = parsed(bar_chart(bars, title=EVIL))
    first, second = with_class(figure, "bar")
    assert float(first.get("width", "")) == pytest.approx(4 * float(second.get("width", "")))
    assert len(with_class(figure, "whisker")) == 1
    assert EVIL in "".join(figure.itertext())
    parsed(bar_chart([], title="empty"))
    parsed(bar_chart([Bar("zero", 0.0)], title="zero"))


def test_lines_break_where_there_is_no_value() -> None:
    line = Line("a", [0, 1, 2, 3, 4], [0.0, 0.5, None, math.nan, 1.0])
    figure = parsed(line_chart([line, Line("b", [], [])], title="t", x_name="x"))
    drawn = with_class(figure, "line")[0].get("d", "")
    assert (drawn.count("M"), drawn.count("L")) == (2, 1)
    parsed(line_chart([Line("flat", [1, 1], [2, 2])], title="t", x_name="x"))


def test_matrix_has_a_cell_for_each_pair() -> None:
    figure = parsed(heat_map([[3, 1], [0, 0]], ["a", EVIL], ["a", EVIL], title="t"))
    assert len(with_class(figure, "cell")) == 4
    right, wrong = with_class(figure, "right"), with_class(figure, "wrong")
    assert (len(right), len(wrong)) == (1, 1)
    assert float(right[0].get("fill-opacity", "")) > float(wrong[0].get("fill-opacity", ""))
    parsed(heat_map([], [], [], title="empty"))


def test_reliability_has_no_column_for_an_empty_bin() -> None:
    figure = parsed(reliability_chart([0.2, None], [0.5, math.nan], [4, 0], title="t"))
    assert len(with_class(figure, "bar")) == 1
