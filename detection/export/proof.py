"""Proof of an exported file: it is run on images and compared with the model it was made from."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from detection.export.model import Arrays, Differences, ExportedModel

Runner = Callable[[Arrays], Arrays]
"""Runs a file: outputs by name for inputs by name."""
BATCHES = (1, 3)
"""Numbers of images that a file with a dynamic batch is proved with."""


@dataclass(frozen=True)
class ProofRow:
    """The comparison for one batch: number of images, their (height, width), differences."""

    batch: int
    size: tuple[int, int]
    differences: Differences


def prove(
    run: Runner, model: ExportedModel, images: Iterable[np.ndarray], *, batch: int | None
) -> Iterator[ProofRow]:
    """Yield the comparison of a file with its model for each image.

    Args:
        run: runs the file.
        model: the model.
        images: (H, W, 3) uint8 RGB, of several sizes.
        batch: images in a batch of the file; None: any number, and `BATCHES` are tried in turn. The
            other images of a batch are flipped copies.
    """
    for number, image in enumerate(images):
        count = BATCHES[number % len(BATCHES)] if batch is None else batch
        flipped = (image, image[:, ::-1], image[::-1], image[::-1, ::-1])
        stacked = np.stack([flipped[row % len(flipped)] for row in range(count)])
        outputs = run(model.inputs(stacked))
        size = (image.shape[0], image.shape[1])
        yield ProofRow(count, size, model.differences(stacked, outputs))


def proof_table(rows: Sequence[ProofRow], title: str, *, with_limits: bool) -> Table:
    """Return a table of the comparisons, with the allowed differences in the last row."""
    table = Table(title=title, min_width=len(title))
    names = list(rows[0].differences.values)
    for column in ("images", "compared", *names):
        table.add_column(column, justify="right")
    for row in rows:
        height, width = row.size
        shown = row.differences
        values = [_formatted(shown.values[name]) for name in names]
        table.add_row(f"{row.batch} x {height} x {width}", str(shown.count), *values)
    if with_limits:
        limits = rows[0].differences.limits
        table.add_row("limit", "", *(_formatted(limits[name]) for name in names))
    return table


def _formatted(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1e}"
