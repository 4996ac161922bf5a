"""Plot of a COCO file's statistics: one PNG with six panels."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backbones.plots import make_panels, plain_text, save_figure
from detection.datasets.statistics import MEDIUM_AREA, SMALL_AREA, Statistics
from engine.files import write_atomically

if TYPE_CHECKING:
    from backbones.plots import Axes

MAX_BARS = 25
"""Classes in the bar chart, those with the most objects."""
MAX_CELLS = 16
"""Classes in the co-occurrence matrix, those with the most images."""

_BINS = 40
_MAX_NAME = 16  # characters of a class name
_BLUE, _GREY = "#3b6ea8", "#999999"


def write_statistics_plot(path: Path, statistics: Statistics, *, title: str) -> None:
    """Write the PNG; see the module.

    Raises:
        UserError: the file cannot be written.
    """
    figure, panels = make_panels(6, columns=3, size=5.0)
    # inches: room for class names to the left of the bars and below the matrix
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left=1.5 / width, bottom=1.3 / height, top=1 - 0.9 / height)
    figure.subplots_adjust(wspace=0.3, hspace=0.25)
    classes, sides, aspects, counts, sizes, matrix = panels
    _draw_classes(classes, statistics)
    _draw_log_histogram(sides, statistics.sides, "object side (square root of the box), pixels")
    for limit, name in ((SMALL_AREA, "small"), (MEDIUM_AREA, "medium")):
        sides.axvline(limit**0.5, color=_GREY, linestyle="--", linewidth=1)
        place = (limit**0.5, 0.98)
        sides.annotate(
            f"{name} ", place, xycoords=("data", "axes fraction"), ha="right", va="top", fontsize=8
        )
    _draw_log_histogram(aspects, statistics.aspects, "object aspect (width / height)")
    _draw_objects_per_image(counts, statistics.objects_per_image)
    _draw_image_sizes(sizes, statistics)
    _draw_pairs(matrix, statistics)
    numbers = f"{statistics.images:,} images, {statistics.objects:,} objects"
    figure.suptitle(f"{plain_text(title)}: {numbers}, {len(statistics.classes)} classes")
    write_atomically(path, lambda file: save_figure(figure, file))


def _name(text: str) -> str:
    return plain_text(text if len(text) <= _MAX_NAME else f"{text[: _MAX_NAME - 2]}..")


def _draw_classes(axes: "Axes", statistics: Statistics) -> None:
    ordered = sorted(statistics.classes, key=lambda each: -each.objects)
    shown = ordered[:MAX_BARS][::-1]  # the largest on top
    values = [each.objects for each in shown]
    axes.barh(range(len(shown)), values, color=_BLUE)
    axes.set_yticks(range(len(shown)), [_name(each.name) for each in shown], fontsize=8)
    if max(values) > 100 * max(min(values), 1):
        axes.set_xscale("symlog", linthresh=1)
    for place, value in enumerate(values):
        axes.annotate(f" {value:,}", (value, place), va="center", fontsize=7)
    axes.margins(x=0.15, y=0.01)
    more = f", first {len(shown)} of {len(ordered)}" if len(ordered) > len(shown) else ""
    axes.set_title(f"objects by class{more}", fontsize=10)
    axes.grid(visible=False, axis="y")


def _draw_log_histogram(axes: "Axes", values: np.ndarray, title: str) -> None:
    """Draw a histogram of positive values over a logarithmic axis."""
    axes.set_title(title, fontsize=10)
    if not len(values):
        return
    low, high = values.min(), values.max()
    if low == high:  # equal values get a bin around them
        low, high = low / 2, high * 2
    axes.hist(values, bins=np.geomspace(low, high, _BINS + 1).tolist(), color=_BLUE)
    axes.set_xscale("log")
    # 1, 2 and 5 of each decade, as plain numbers
    ticks = [step * 10.0**power for power in range(-4, 6) for step in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(inside, [f"{tick:g}" for tick in inside])
    axes.set_xticks([], minor=True)
    axes.set_ylabel("objects", fontsize=8)


def _draw_objects_per_image(axes: "Axes", counts: np.ndarray) -> None:
    most = int(counts.max())
    # one bin a number where there are few, else bins of equal width
    width = max(1, -(-most // _BINS))
    axes.hist(counts, bins=(np.arange(0, most + width + 1, width) - 0.5).tolist(), color=_BLUE)
    axes.set_title("objects an image", fontsize=10)
    axes.set_ylabel("images", fontsize=8)


def _draw_image_sizes(axes: "Axes", statistics: Statistics) -> None:
    table = np.array(statistics.image_sizes, np.float64)
    area = 15 + 400 * table[:, 2] / table[:, 2].max()  # of a marker, in square points
    axes.scatter(table[:, 0], table[:, 1], s=area.tolist(), color=_BLUE, alpha=0.4, linewidths=0)
    axes.set(xlim=(0, 1.1 * table[:, 0].max()), ylim=(0, 1.1 * table[:, 1].max()))
    axes.set_xlabel("width, pixels", fontsize=8)
    axes.set_ylabel("height, pixels", fontsize=8)
    axes.set_title(f"image sizes, {len(table):,} in all", fontsize=10)


def _draw_pairs(axes: "Axes", statistics: Statistics) -> None:
    order = sorted(
        (label for label, each in enumerate(statistics.classes) if each.images),
        key=lambda label: -statistics.classes[label].images,
    )[:MAX_CELLS]
    place = {label: position for position, label in enumerate(order)}
    shares = np.eye(len(order))
    for pair in statistics.pairs:
        if pair.first in place and pair.second in place:
            for row, column in ((pair.first, pair.second), (pair.second, pair.first)):
                share = pair.images / statistics.classes[row].images
                shares[place[row], place[column]] = share
    names = [_name(statistics.classes[label].name) for label in order]
    if order:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(order)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(order)), names, fontsize=8)
    for row, column in np.ndindex(len(order), len(order)):
        share = float(shares[row, column])
        color = "white" if share > 0.5 else "black"
        if row != column and share >= 0.005:
            axes.annotate(
                f"{100 * share:.0f}",
                (column, row),
                ha="center",
                va="center",
                fontsize=7,
                color=color,
            )
    axes.set_title("% of the row's images that have the column's class", fontsize=10)
    axes.grid(visible=False)
