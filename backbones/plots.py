"""Plots with matplotlib: training curves of a run, and figures with several panels, as PNG files.

No other module imports matplotlib. It is imported only when the first figure is drawn, because a
training draws its first one seconds or days after its start.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from engine.errors import UserError
from engine.log import RunLog, read_metrics
from engine.paths import status_of
from engine.run_files import LOG_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes  # for annotations in modules that draw panels
    from matplotlib.figure import Figure

_COLUMNS = 8
_NO_LOSSES = (
    *("kind", "step", "lr", "grad_norm", "train_error"),
    *("images_per_second", "images_skipped", "data_wait"),
)
SCORES = (
    *("ap", "ap50", "ap75", "mask_ap", "lvis_ap", "mask_lvis_ap", "mask_ap50"),
    *("top1", "top5"),
    *("localization_accuracy", "mean_iou"),
)
"""Scores of an evaluation that are drawn over steps."""


def loss_names(names: Iterable[str]) -> list[str]:
    """Return those names of a training record in metrics.jsonl that are losses."""
    return [name for name in names if name not in _NO_LOSSES]


@contextmanager
def plot_when_training_ends(run_dir: Path, *, is_main: bool) -> Iterator[None]:
    """Plot a run's curves when its training ends, also by an error, if it logged anything.

    A failure to plot is logged and raises nothing.

    Args:
        run_dir: the run folder.
        is_main: whether this process writes files.
    """
    logged = run_dir / LOG_FILE
    before = status_of(logged)
    try:
        yield
    finally:
        after = status_of(logged)
        # an unchanged metrics.jsonl: this training logged nothing
        if is_main and after is not None and (before is None or before[:] != after[:]):
            try:
                plot_training_curves(run_dir)
            except (OSError, UserError) as error:
                log = RunLog(None, is_main=True)
                log.note(f"{run_dir / 'curves.png'}: cannot be written: {error}")


def plot_training_curves(run_dir: Path) -> Path:
    """Plot the losses, learning rate and scores in a run folder's metrics.jsonl, over steps.

    Returns:
        path of the plot, `curves.png` in the run folder.

    Raises:
        UserError: metrics.jsonl cannot be read.
        OSError: the plot cannot be written.
    """
    records, _ = read_metrics(run_dir / LOG_FILE)
    trained = [record for record in records if record["kind"] == "train"]
    scored = [record for record in records if record["kind"] == "eval"]
    figure, (losses, rate, scores) = make_panels(3, columns=3, size=4.0)
    _plot(losses, trained, loss_names(_keys(trained)), title="losses")
    _plot(rate, trained, ["lr"], title="learning rate")
    _plot(scores, scored, [name for name in SCORES if name in _keys(scored)], title="scores")
    for axes in (losses, rate, scores):
        axes.set_xlabel("step")
    path = run_dir / "curves.png"
    save_figure(figure, path)
    return path


def _keys(records: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record))


def _plot(
    axes: "Axes", records: Sequence[dict[str, Any]], names: Sequence[str], *, title: str
) -> None:
    steps = [record["step"] for record in records]
    marker = "o" if len(steps) < 20 else ""
    for name in names:
        # None: the record has no such key, or null for a number that does not exist (NaN)
        values = [record.get(name) for record in records]
        numbers = [math.nan if value is None else value for value in values]
        axes.plot(steps, numbers, label=name, linewidth=1.2, marker=marker, markersize=3)
    axes.set_title(title)
    if names and steps:
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "none logged", transform=axes.transAxes, ha="center")


def make_panels(
    count: int, *, columns: int = _COLUMNS, size: float = 2.0
) -> "tuple[Figure, list[Axes]]":
    """Return a figure and its `count` panels of `size` inches each.

    It does not use pyplot, which would keep every figure in memory.
    """
    from matplotlib.figure import Figure

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


def save_figure(figure: "Figure", file: Path | BinaryIO) -> None:
    """Write a figure as PNG. Characters that matplotlib's font lacks become boxes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_figure(file, dpi=100)


def plain_text(text: str) -> str:
    """Return text that matplotlib draws as it is: between two $ it would read a formula."""
    return text.replace("$", r"\$")
