"""Pictures of a run: precision over recall for every class, and the course of the training.

K classes, T=10 IoU thresholds (0.5, 0.55, ... 0.95), R=101 recall thresholds (0, 0.01, ... 1).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

MAX_PANELS = 100
_COLUMNS = 8
_CURVES = {"IoU 0.5": 0, "IoU 0.75": 5, "IoU 0.9": 8}
_SUMMARY = ("ap", "ap50", "ap75")


def write_pr_curves(path: Path, precision: np.ndarray, class_names: Sequence[str]) -> None:
    """Draw a panel for each class, at three IoU thresholds, into a PNG.

    Args:
        path: the picture.
        precision: (T, R, K), NaN for a class without objects; such a class gets no panel. Of more
            than `MAX_PANELS` classes the first are drawn.
        class_names: K names.
    """
    known = [k for k in range(len(class_names)) if not np.isnan(precision[0, 0, k])]
    drawn = known[:MAX_PANELS]
    figure, panels = _panels(len(drawn))
    for axes, k in zip(panels, drawn, strict=True):
        recall = np.linspace(0, 1, precision.shape[1])
        for width, (label, threshold) in zip((3, 2, 1), _CURVES.items(), strict=True):
            axes.plot(recall, precision[threshold, :, k], label=label, linewidth=width)
        title = f"{class_names[k]}  AP {100 * precision[..., k].mean():.1f}"
        axes.set_title(_plain(title), fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
    absent = len(class_names) - len(known)
    figure.suptitle(
        f"precision over recall: {len(drawn)} of {len(class_names)} classes, "
        f"{absent} without objects"
    )
    if panels:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower right", ncols=3, fontsize=9)
    _save(figure, path)


def write_curves(run_dir: Path) -> Path:
    """Draw what a run folder's metrics.jsonl holds: losses, learning rate and AP over steps.

    Returns:
        the picture, `curves.png` in the run folder.
    """
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    trained = [record for record in records if record["kind"] == "train"]
    scored = [record for record in records if record["kind"] == "eval"]
    figure, (losses, rate, scores) = _panels(3, columns=3, size=4.0)
    names = [name for name in _keys(trained) if name == "loss" or name.startswith(("rpn", "roi"))]
    _draw(losses, trained, names, title="losses")
    _draw(rate, trained, ["lr"], title="learning rate")
    _draw(scores, scored, [name for name in _SUMMARY if name in _keys(scored)], title="AP")
    for axes in (losses, rate, scores):
        axes.set_xlabel("step")
    path = run_dir / "curves.png"
    _save(figure, path)
    return path


def _keys(records: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record))


def _draw(
    axes: Axes, records: Sequence[dict[str, Any]], names: Sequence[str], *, title: str
) -> None:
    steps = [record["step"] for record in records]
    marker = "o" if len(steps) < 20 else ""
    for name in names:
        values = [record.get(name) for record in records]  # null: a number that does not exist
        numbers = [math.nan if value is None else value for value in values]
        axes.plot(steps, numbers, label=name, linewidth=1.2, marker=marker, markersize=3)
    axes.set_title(title)
    if names and steps:
        axes.legend()


def _panels(count: int, *, columns: int = _COLUMNS, size: float = 2.0) -> tuple[Figure, list[Axes]]:
    """Return a figure and its `count` panels of `size` inches; pyplot would keep every figure."""
    columns = min(columns, max(count, 3))
    rows = max(1, math.ceil(count / columns))
    width, height = size * columns, size * rows + 1
    figure = Figure(figsize=(width, height))
    # margins in inches; matplotlib's own layouts take twice as long as the drawing
    figure.subplots_adjust(
        left=0.6 / width, right=1 - 0.2 / width, bottom=0.8 / height, top=1 - 0.7 / height
    )
    figure.subplots_adjust(wspace=0.25, hspace=0.35)
    panels = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=7)
    return figure, panels


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # a pair of them would be read as a formula


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_figure(path, dpi=100)
