"""A localizer's report: error by class, what part of it is class and box, and the worst images.

N images, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detection.localization.annotations import LocalizationAnnotations
from detection.localization.evaluation import IOU_THRESH, ImageResult
from detection.report.charts import Bar, bar_chart
from detection.report.detection_report import Progress, Report
from detection.report.gallery import Card, Gallery, Images, Shape, draw_galleries, read_annotated
from detection.report.image_scores import class_shares, class_table, share
from detection.report.markup import count, percent, plain
from detection.report.page import Section, tiles

NUM_WORST = 32
LISTED = 1000
"""Most images that report.json lists."""
IOU_EDGES = np.linspace(0, 1, 11)


def localization_report(
    results: Sequence[ImageResult], annotations: LocalizationAnnotations, *, progress: Progress
) -> Report:
    """Analyse a localizer's predictions.

    Args:
        results: of N images, at least one; an image's id is its row in the annotations.
        annotations: of the validation images.
        progress: shows how far the reading of images is.
    """
    results = sorted(results, key=lambda each: each.image_id)
    names = list(annotations.descriptions)
    ious = np.array([each.iou for each in results])
    baseline = np.array([each.baseline_iou for each in results])
    labels = np.array([each.label for each in results])
    worst = np.argsort(ious, kind="stable")
    worst = worst[ious[worst] < IOU_THRESH]
    numbers: dict[str, Any] = {
        "kind": "localization",
        "notes": [],
        "images": len(results),
        "accuracy": share(ious >= IOU_THRESH),
        "baseline_accuracy": share(baseline >= IOU_THRESH),
        "mean_iou": float(ious.mean()),
        "classes": class_shares(ious >= IOU_THRESH, labels, names),
        "iou_histogram": {"edges": IOU_EDGES, "images": np.histogram(ious, IOU_EDGES)[0]},
        "worst_images": {
            "count": len(worst),
            "first": [
                {
                    "file_name": str(annotations.paths[results[row].image_id]),
                    "iou": ious[row],
                    "class": names[labels[row]],
                }
                for row in worst[:LISTED].tolist()
            ],
        },
    }
    if results[0].is_correct:
        numbers["best_class"] = _parts_of_error(results, labels)
    cards = [_card(results[row], annotations) for row in worst[:NUM_WORST].tolist()]
    images = Images(
        lambda image: read_annotated(
            str(annotations.root), str(annotations.paths[image]), annotations.sizes[image].tolist()
        ),
        annotations.sizes,
    )
    gallery = draw_galleries(
        [Gallery("worst", cards, wide=True)],
        images,
        class_names=names,
        progress=lambda items, total: progress(items, total, "drawing examples"),
    )["worst"]
    numbers = plain(numbers)
    return Report(numbers, _sections(numbers, gallery, images.note()))


def _parts_of_error(results: Sequence[ImageResult], labels: np.ndarray) -> dict[str, Any]:
    """Return what is wrong with the box of the best class: the class, the box or both.

    `rows` of a result has the box of the annotated class first, then those of predicted classes.
    """
    class_right = np.array([each.rows[1][0] for each in results]) == labels
    all_right = np.array([each.is_correct[0] for each in results])
    box_given = np.array([each.iou for each in results]) >= IOU_THRESH
    return {
        "accuracy": share(all_right),
        "top5_accuracy": share(np.array([any(each.is_correct) for each in results])),
        "errors": {
            "class": float((~class_right & box_given).mean()),
            "box": float((class_right & ~all_right).mean()),
            "class and box": float((~class_right & ~box_given).mean()),
        },
    }


def _card(result: ImageResult, annotations: LocalizationAnnotations) -> Card:
    image, names = result.image_id, annotations.descriptions
    _, score, *box = result.rows[0]
    name = names[result.label]
    return Card(
        image,
        None,
        [Shape(tuple(each.tolist()), name) for each in annotations.boxes_of(image)],
        [Shape((box[0], box[1], box[2], box[3]), f"{name} {score:.2f}", focus=True)],
        f"{name}: IoU {result.iou:.2f}",
        (str(annotations.paths[image]),),
        frozenset((result.label,)),
    )


def _sections(numbers: dict[str, Any], gallery: str, note: str) -> list[Section]:
    def tile(name: str, each: dict[str, Any]) -> tuple[str, str, str]:
        ends = percent(each["low"]).text, percent(each["high"]).text
        return name, percent(each["value"]).text, " to ".join(ends)

    values = [tile("right, class given", numbers["accuracy"])]
    values.append(tile("right, by the mean box", numbers["baseline_accuracy"]))
    values.append(("mean IoU", percent(numbers["mean_iou"]).text, ""))
    found = numbers.get("best_class")
    if found:
        values.append(tile("right, best class", found["accuracy"]))
        values.append(tile("right, best of five", found["top5_accuracy"]))
    values.append(("images", count(numbers["images"]).text, ""))
    histogram = numbers["iou_histogram"]
    total = max(numbers["images"], 1)
    edges = histogram["edges"]
    bars = [
        Bar(f"{low:.1f} to {high:.1f}", images / total)
        for low, high, images in zip(edges[:-1], edges[1:], histogram["images"], strict=True)
    ]
    chart = bar_chart(bars, title="Images by IoU of the box, class given, in percent")
    parts = ""
    if found:
        parts = bar_chart(
            [Bar(name, value) for name, value in found["errors"].items()],
            title="What is wrong with the best class's box, in percent of the images",
        )
    lead = (
        f"A box is right at an IoU of {IOU_THRESH} or more with an object. “Class given” scores "
        "the box of the annotated class; 95 % intervals are from 1,000 resamples of the images."
    )
    no_class = "A classifier (evaluation.classifier) would tell errors of the class from the box's."
    return [
        Section("summary", "Summary", lead, tiles(values)),
        Section(
            "errors",
            "Class or box",
            "How far the boxes are off." if found else f"How far the boxes are off. {no_class}",
            f'<div class="grid-2"><div>{chart}</div><div>{parts}</div></div>',
        ),
        Section(
            "classes",
            "Accuracy by class",
            "With the class given: the box alone. A click on a heading sorts.",
            class_table(numbers["classes"], heading="right"),
        ),
        Section(
            "worst",
            "Worst images",
            f"{numbers['worst_images']['count']} boxes are wrong; those with the lowest IoU, the "
            f"annotation on the left. {note}",
            gallery,
        ),
    ]
