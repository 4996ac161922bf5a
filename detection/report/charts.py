"""Charts as inline SVG: bars, lines, a reliability diagram and a heat map.

The unit of all lengths is about a pixel where a chart is 400 pixels wide. Colours are those of the
page's style sheet, which has a light and a dark scheme.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from detection.report.markup import escaped

WIDTH = 400
LINE_COLORS = 6
"""Colours of lines in the style sheet, `s0` to `s5`; a chart of more lines uses them again."""
_LABELS = 128  # width of the names of bars
_ROW = 22
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 38  # around the plot of a line chart
_HEIGHT = 240
_LEGEND = 17
_IN_ROW = 3  # lines of a legend in one row
_WRITTEN = 16  # most classes of a heat map whose cells hold their number


class Bar(NamedTuple):
    """A bar: its name, its value, and the ends of an interval, if it has one."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None


class Line(NamedTuple):
    """A line through points; None or NaN interrupts it. dashed: for a reference."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    dashed: bool = False


def bar_chart(bars: Sequence[Bar], *, title: str, top: float | None = None) -> str:
    """Return horizontal bars of shares, written in percent.

    Args:
        bars: may be empty.
        title: for readers who hear the page, and above the chart.
        top: value of the right end; None: the largest one.
    """
    ends = [max(bar.value or 0, bar.high or 0) for bar in bars]
    top = top or max(ends, default=0) or 1
    room = WIDTH - _LABELS - 48
    parts = []
    for place, bar in enumerate(bars):
        y = place * _ROW
        parts.append(_text(_LABELS - 6, y + 15, _short(bar.name, 20), anchor="end", full=bar.name))
        if bar.value is None or not _is_number(bar.value):
            parts.append(_text(_LABELS + 4, y + 15, "-"))
            continue
        length = room * min(max(bar.value, 0) / top, 1)
        parts.append(
            f'<rect class="bar" x="{_LABELS}" y="{y + 4}" width="{length:.1f}" height="14"/>'
        )
        end = length
        if bar.low is not None and bar.high is not None:
            low, high = (_LABELS + room * min(max(v, 0) / top, 1) for v in (bar.low, bar.high))
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {y + 11}H{high:.1f}'
                f'M{low:.1f} {y + 7}v8M{high:.1f} {y + 7}v8"/>'
            )
            end = max(length, high - _LABELS)
        parts.append(_text(_LABELS + end + 5, y + 15, f"{100 * bar.value:.1f}"))
    return _figure(title, parts, height=max(_ROW, len(bars) * _ROW))


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Return lines over a common axis; without `x_range` or `y_range` the axis fits the lines."""
    drawn = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if _is_number(y)]
    x_range = x_range or _range_of([x for x, _ in drawn])
    y_range = y_range or _range_of([y for _, y in drawn if y is not None])
    top = _TOP + _LEGEND * -(-len(lines) // _IN_ROW)
    parts = _axes(x_range, y_range, x_name=x_name, top=top)
    for place, line in enumerate(lines):
        style = f"line s{place % LINE_COLORS}" + (" dashed" if line.dashed else "")
        path = _path(line, x_range, y_range, top=top)
        parts.append(f'<path class="{style}" d="{path}"/>')
    parts += _legend(lines)
    return _figure(title, parts, height=_HEIGHT + top - _TOP)


def reliability_chart(
    mean_scores: Sequence[float | None],
    fractions: Sequence[float | None],
    counts: Sequence[int],
    *,
    title: str,
) -> str:
    """Return a column for each bin of scores: how many of its predictions are right."""
    parts = _axes((0, 1), (0, 1), x_name="score", top=_TOP)
    num = len(counts)
    plot, height = WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    for place, (score, fraction, number) in enumerate(
        zip(mean_scores, fractions, counts, strict=True)
    ):
        if not _is_number(fraction) or fraction is None or score is None:
            continue
        x, tall = _LEFT + plot * place / num + 1, height * fraction
        hint = f"{number} predictions, mean score {score:.2f}, right {100 * fraction:.1f} %"
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{_TOP + height - tall:.1f}" '
            f'width="{plot / num - 2:.1f}" height="{tall:.1f}"><title>{hint}</title></rect>'
        )
    parts.append(
        f'<path class="line s1 dashed" d="M{_LEFT} {_TOP + height}L{_LEFT + plot} {_TOP}"/>'
    )
    return _figure(title, parts, height=_HEIGHT)


def heat_map(
    counts: Sequence[Sequence[int]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
) -> str:
    """Return a matrix, each cell as dark as its share of its row.

    Args:
        counts: R rows of C numbers.
        rows: R names.
        columns: C names.
        title: for readers who hear the page, and above the chart.
    """
    left, top = 96.0, 84.0
    # 40 for the last slanted name
    side = min((WIDTH - left - 40) / max(len(columns), 1), 44)
    is_written = len(columns) <= _WRITTEN
    font = min(11, max(5, side * 0.8))
    parts = []
    for place, name in enumerate(columns):
        x, y = left + (place + 0.6) * side, top - 5
        parts.append(
            f'<text transform="translate({x:.1f} {y})rotate(-55)" font-size="{font:.1f}">'
            f"<title>{escaped(name)}</title>{escaped(_short(name, 16))}</text>"
        )
    for i, (row, name) in enumerate(zip(counts, rows, strict=True)):
        y, total = top + i * side, sum(row)
        parts.append(
            f'<text x="{left - 5}" y="{y + side / 2 + font / 3:.1f}" text-anchor="end" '
            f'font-size="{font:.1f}"><title>{escaped(name)}</title>'
            f"{escaped(_short(name, 16))}</text>"
        )
        for j, value in enumerate(row):
            share, x = (value / total if total else 0), left + j * side
            hint = f"{name} as {columns[j]}: {value} ({100 * share:.0f} %)"
            # the diagonal in the colour of what is right
            kind = "right" if i == j and name == columns[j] else "wrong"
            parts.append(
                f'<g><title>{escaped(hint)}</title><rect class="cell" x="{x:.1f}" y="{y:.1f}" '
                f'width="{side:.1f}" height="{side:.1f}"/>'
            )
            if value:
                parts.append(
                    f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" '
                    f'height="{side:.1f}" fill-opacity="{0.08 + 0.92 * share:.2f}"/>'
                )
            if value and is_written:
                strong = ' class="on"' if share > 0.6 else ""
                size = min(font, 1.7 * side / max(len(str(value)), 1))
                parts.append(
                    f'<text{strong} x="{x + side / 2:.1f}" y="{y + side / 2 + size / 3:.1f}" '
                    f'text-anchor="middle" font-size="{size:.1f}">{value}</text>'
                )
            parts.append("</g>")
    return _figure(title, parts, height=top + side * len(rows) + 4)


def _axes(
    x_range: tuple[float, float], y_range: tuple[float, float], *, x_name: str, top: float
) -> list[str]:
    """Return grid lines with their numbers, four steps an axis."""
    right, bottom = WIDTH - _RIGHT, top + _HEIGHT - _TOP - _BOTTOM
    parts = []
    for step in range(5):
        share = step / 4
        x, y = _LEFT + share * (right - _LEFT), bottom - share * (bottom - top)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}M{x:.1f} {top}V{bottom}"/>')
        x_value = x_range[0] + share * (x_range[1] - x_range[0])
        y_value = y_range[0] + share * (y_range[1] - y_range[0])
        parts.append(_text(x, bottom + 14, _tick(x_value), anchor="middle"))
        parts.append(_text(_LEFT - 5, y + 4, _tick(y_value), anchor="end"))
    parts.append(_text((_LEFT + right) / 2, bottom + 30, x_name, anchor="middle"))
    return parts


def _path(
    line: Line, x_range: tuple[float, float], y_range: tuple[float, float], *, top: float
) -> str:
    wide, tall = WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    commands, pen = [], "M"
    for x, y in zip(line.x, line.y, strict=True):
        if not _is_number(y) or y is None:
            pen = "M"
            continue
        across = _LEFT + wide * _share(x, x_range)
        down = top + tall * (1 - _share(y, y_range))
        commands.append(f"{pen}{across:.1f} {down:.1f}")
        pen = "L"
    return "".join(commands)


def _legend(lines: Sequence[Line]) -> list[str]:
    room = (WIDTH - _LEFT - _RIGHT) / _IN_ROW
    parts = []
    for place, line in enumerate(lines):
        x, y = _LEFT + place % _IN_ROW * room, place // _IN_ROW * _LEGEND
        dashed = " dashed" if line.dashed else ""
        parts.append(f'<path class="line s{place % LINE_COLORS}{dashed}" d="M{x:.0f} {y + 9}h16"/>')
        parts.append(_text(x + 20, y + 13, _short(line.name, 15), full=line.name))
    return parts


def _figure(title: str, parts: Sequence[str], *, height: float) -> str:
    name = escaped(title)
    return (
        f'<figure class="chart"><figcaption>{name}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{name}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", full: str = "") -> str:
    hint = f"<title>{escaped(full)}</title>" if full and full != text else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{hint}{escaped(text)}</text>'


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _tick(value: float) -> str:
    if abs(value) >= 10000:
        return f"{value / 1000:.4g}k"
    if 0 < abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _range_of(values: Sequence[float]) -> tuple[float, float]:
    """Return a range that holds all values and is not empty; it starts at 0 if that is near."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if 0 < low < high / 2:
        low = 0.0
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _share(value: float, limits: tuple[float, float]) -> float:
    return min(max((value - limits[0]) / (limits[1] - limits[0]), 0), 1)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
