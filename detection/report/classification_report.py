"""A classifier's report: accuracy by class, confusion, calibration and the worst images.

N images, K classes, T best labels of an image.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from backbones.classification.metrics import PredictionRecords
from detection.evaluation.calibration import reliability
from detection.report.charts import heat_map, reliability_chart
from detection.report.detection_report import Progress, Report
from detection.report.gallery import Card, Gallery, Images, draw_galleries
from detection.report.image_scores import class_shares, class_table, share
from detection.report.markup import count, escaped, number, percent, plain, table
from detection.report.page import Section, side_by_side, tiles

NUM_WORST = 48
MAX_MATRIX = 30
"""Most classes of the drawn confusion matrix: those with the most errors."""
MAX_PAIRS = 100
LISTED = 1000
"""Most images that report.json lists."""


def classification_report(
    records: PredictionRecords,
    class_names: Sequence[str],
    *,
    file_name: Callable[[int], str],
    load: Callable[[int], np.ndarray],
    progress: Progress,
) -> Report:
    """Analyse a classifier's predictions.

    Args:
        records: of N images, at least one.
        class_names: K names.
        file_name: function from an image id to its name.
        load: function from an image id to its pixels.
        progress: shows how far the reading of images is.
    """
    right = records.best == records.labels[:, None]  # (N, T)
    names, num_classes = list(class_names), len(class_names)
    cells = records.labels * num_classes + records.best[:, 0]
    matrix = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    wrong = np.flatnonzero(~right[:, 0])
    worst = wrong[np.argsort(-records.losses[wrong], kind="stable")]
    numbers: dict[str, Any] = {
        "kind": "classification",
        "notes": [],
        "images": len(records.labels),
        "top1": share(right[:, 0]),
        "top5": share(right.any(axis=1)),
        "log_loss": float(records.losses.mean(dtype=np.float64)),
        "classes": class_shares(right[:, 0], records.labels, names),
        "confusion": {
            "classes": names,
            "matrix": matrix,
            "worst": [
                {"annotated": names[i], "predicted": names[j], "count": int(matrix[i, j])}
                for i, j in _worst_pairs(matrix)
            ],
        },
        "calibration": asdict(reliability(records.confidences, right[:, 0], num_bins=15)),
        "worst_images": {
            "count": len(worst),
            "first": [
                {
                    "file_name": file_name(int(records.image_ids[row])),
                    "annotated": names[records.labels[row]],
                    "predicted": names[records.best[row, 0]],
                    "confidence": float(records.confidences[row]),
                    "loss": float(records.losses[row]),
                }
                for row in worst[:LISTED].tolist()
            ],
        },
    }
    cards = [_card(records, row, names, file_name) for row in worst[:NUM_WORST].tolist()]
    images = Images(load, np.zeros((int(records.image_ids.max()) + 1, 2), np.int64))
    gallery = draw_galleries(
        [Gallery("worst", cards, one_view=True)],
        images,
        class_names=names,
        progress=lambda items, total: progress(items, total, "drawing examples"),
    )["worst"]
    numbers = plain(numbers)
    sections = [
        _summary(numbers),
        Section(
            "classes",
            "Accuracy by class",
            "A click on a heading sorts. The intervals are 95 % bootstrap intervals.",
            class_table(numbers["classes"], heading="top-1"),
        ),
        _confusion(numbers["confusion"], matrix),
        _calibration(numbers["calibration"]),
        Section(
            "worst",
            "Worst images",
            f"{len(worst)} images are classified wrongly; those with the highest loss, which are "
            f"often labelled wrongly or show several classes. {images.note()}",
            gallery,
        ),
    ]
    return Report(numbers, sections)


def _worst_pairs(matrix: np.ndarray) -> list[tuple[int, int]]:
    errors = matrix * ~np.eye(len(matrix), dtype=np.bool_)
    places = np.argsort(-errors, axis=None, kind="stable")[:MAX_PAIRS]
    rows, columns = np.unravel_index(places, errors.shape)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(i, j) for i, j in pairs if errors[i, j]]


def _card(
    records: PredictionRecords, row: int, names: Sequence[str], file_name: Callable[[int], str]
) -> Card:
    label, predicted = int(records.labels[row]), int(records.best[row, 0])
    image = int(records.image_ids[row])
    return Card(
        image,
        None,
        (),
        (),
        f"{names[predicted]} {records.confidences[row]:.2f}",
        (f"annotated as {names[label]}, loss {records.losses[row]:.1f}", file_name(image)),
        frozenset((label, predicted)),
    )


def _summary(numbers: dict[str, Any]) -> Section:
    values = []
    for key, name in (("top1", "top-1 accuracy"), ("top5", "top-5 accuracy")):
        each = numbers[key]
        low, high = percent(each["low"]).text, percent(each["high"]).text
        values.append((name, percent(each["value"]).text, f"{low} to {high}"))
    values.append(("calibration error", percent(numbers["calibration"]["error"]).text, ""))
    values.append(("log loss, nats", number(numbers["log_loss"], digits=3).text, ""))
    values.append(("images", count(numbers["images"]).text, ""))
    lead = "In percent, with 95 % intervals from 1,000 resamples of the images."
    return Section("summary", "Summary", lead, tiles(values))


def _confusion(found: dict[str, Any], matrix: np.ndarray) -> Section:
    names = found["classes"]
    errors = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    some = np.sort(np.argsort(-errors, kind="stable")[:MAX_MATRIX])
    shown = [names[k] for k in some.tolist()]
    title = "Annotated (rows) and predicted (columns)"
    chart = heat_map(matrix[np.ix_(some, some)].tolist(), shown, shown, title=title)
    if left_out := len(names) - len(some):
        note = f"The {len(some)} classes with the most errors; {left_out} more are in report.json."
        chart += f'<p class="note">{escaped(note)}</p>'
    rows = [(each["annotated"], each["predicted"], count(each["count"])) for each in found["worst"]]
    pairs = table(("annotated", "predicted", "images"), rows, caption="Most frequent errors")
    lead = "Which classes are taken for which; a shade is the share of its row."
    return Section("confusion", "Confusion", lead, side_by_side(chart, pairs))


def _calibration(found: dict[str, Any]) -> Section:
    chart = reliability_chart(
        found["mean_score"],
        found["fraction_right"],
        found["count"],
        title=f"Right images by confidence; calibration error {percent(found['error']).text} %",
    )
    lead = (
        "How many images of a confidence are right. Columns below the dashed line mean that the "
        "network is too sure."
    )
    return Section("calibration", "Calibration", lead, chart)
