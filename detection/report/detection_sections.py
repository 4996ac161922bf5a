"""The sections of a detector's report, from the numbers of report.json and the galleries."""

from collections.abc import Mapping, Sequence
from typing import Any

from detection.evaluation.coco_ap import SUMMARY
from detection.report.charts import Bar, Line, bar_chart, heat_map, line_chart, reliability_chart
from detection.report.markup import Cell, count, escaped, interval, number, percent, table
from detection.report.page import Section, filtered, side_by_side, tiles

MAX_CURVES = 100
"""Most classes with a chart of their own, those with the most objects."""
MAX_MATRIX = 30
"""Most classes of the confusion matrix, those with the most objects."""

Numbers = Mapping[str, Any]
_TITLES = {
    **{"ap": "AP", "ap50": "AP at IoU 0.5", "ap75": "AP at IoU 0.75", "ap_small": "AP small"},
    **{"ap_medium": "AP medium", "ap_large": "AP large", "ar1": "AR, 1 detection"},
    **{"ar10": "AR, 10 detections", "ar100": "AR, 100 detections", "ar_small": "AR small"},
    **{"ar_medium": "AR medium", "ar_large": "AR large"},
}
_PARTS = {
    "size": "Area of the object, in pixels",
    "aspect": "Width : height",
    "objects_in_image": "Objects in the image",
    "overlap": "Largest IoU with another object",
    "position": "Place in the image",
    "brightness": "Mean pixel value of the image",
}


def summary_section(numbers: Numbers) -> Section:
    """Return COCO's twelve numbers of boxes, and of masks if there are any."""
    kinds = {name: numbers[name] for name in ("boxes", "masks") if name in numbers}
    body = ""
    for kind, scores in kinds.items():
        values = [
            (_TITLES[key], percent(scores["summary"][key]).text, _range(scores, key))
            for key in SUMMARY
        ]
        body += (f"<h3>{kind.capitalize()}</h3>" if len(kinds) > 1 else "") + tiles(values)
    first = next(iter(kinds.values()))
    counts, at = first["counts"], first["at_score_thresh"]
    rows = [
        (name.replace("_", " "), count(counts[name]))
        for name in ("images", "images_with_detections", "objects", "crowd_regions", "detections")
    ]
    rows += [(f"{name} at the score threshold", count(at[name])) for name in at]
    rows.append(("score threshold", number(first["score_thresh"], digits=3)))
    body += table(("", "number"), rows, caption="What was scored", sortable=False)
    notes = "".join(f'<p class="note">{escaped(line)}</p>' for line in numbers["notes"])
    lead = (
        "COCO's twelve numbers, in percent. AP is the mean over ten IoU thresholds from 0.5 to "
        "0.95 and over the classes; AR is the recall with so many detections of an image. "
    )
    if "intervals" in first:
        lead += "Ranges are 95 % intervals, from 1,000 resamples of the images. "
    lead += (
        "The score threshold of all counts below is the one with the highest F1 of all classes "
        "together, at IoU 0.5."
    )
    return Section("summary", "Summary", lead, body + notes)


def class_section(scores: Numbers) -> Section:
    """Return the table of AP by class."""
    by_name = scores.get("intervals", {})
    rows = []
    for each in scores["classes"]:
        found = by_name.get(f"ap/{each['name']}", {})
        rows.append(
            (
                each["name"],
                count(each["objects"]),
                count(each["detections"]),
                percent(each["ap"]),
                interval(found.get("low"), found.get("high")),
                percent(each["ap50"]),
                percent(each["ap75"]),
                number(each["scores"]["best_threshold"]),
                percent(each["scores"]["best_f1"]),
                percent(each["scores"]["precision_there"]),
                percent(each["scores"]["recall_there"]),
            )
        )
    headings = [
        *("class", "objects", "detections", "AP", "95 % interval", "AP50", "AP75"),
        *("best score", "F1 there", "precision", "recall"),
    ]
    lead = (
        "A click on a heading sorts. The best score is the threshold with the highest F1 of the "
        "class at IoU 0.5; the last three columns are F1, precision and recall there, in percent. "
        "A wide interval means that the class has too few objects for a firm number."
    )
    body = table(headings, rows, caption=f"{len(rows)} classes, in percent")
    return Section("classes", "AP by class", lead, body)


def confusion_section(scores: Numbers) -> Section:
    """Return the confusion matrix of the most frequent classes, and the worst pairs."""
    found = scores["confusion"]
    names, matrix = found["classes"], found["matrix"]
    objects = [each["objects"] for each in scores["classes"]]
    some = sorted(sorted(range(len(names)), key=lambda k: -objects[k])[:MAX_MATRIX])
    background = len(names)
    left_out = len(names) - len(some)
    places = [*some, background]
    counts = [[int(matrix[i][j]) for j in places] for i in places]
    shown = [names[k] for k in some]
    title = "Annotated (rows) and predicted (columns)"
    chart = heat_map(counts, [*shown, "background"], [*shown, "missed"], title=title)
    if left_out:
        chart += f'<p class="note">The {len(some)} classes with the most objects; {left_out} more '
        chart += "are in the table and in report.json.</p>"
    rows = [(each["annotated"], each["predicted"], count(each["count"])) for each in found["worst"]]
    pairs = table(("annotated", "predicted", "number"), rows, caption="Most frequent errors")
    lead = (
        f"At a score of {found['score_thresh']:.3f} or more and IoU {found['iou_thresh']:g}. An "
        "object and a detection are paired whatever their classes, the same class first. A shade "
        "is the share of its row; the last column counts missed objects, the last row detections "
        "of background."
    )
    return Section("confusion", "Confusion", lead, side_by_side(chart, pairs))


def score_section(scores: Numbers) -> Section:
    """Return precision, recall and F1 over the score, of all classes and of each."""
    pooled = scores["scores"]
    thresholds = pooled["threshold"]
    best = sorted(scores["classes"], key=lambda each: -each["objects"])[:MAX_CURVES]
    chosen = sorted((each for each in best if each["objects"]), key=lambda each: each["name"])
    items = "".join(
        f'<div data-keys="{place}">{_score_chart(each["scores"], thresholds, each["name"])}</div>'
        for place, each in enumerate(chosen)
    )
    options = [(str(place), each["name"]) for place, each in enumerate(chosen)]
    single = filtered("curves", options, items, name="Class", all_of=None) if chosen else ""
    lead = (
        "Precision, recall and F1 of the detections with at least a score, at IoU 0.5: read off "
        "the threshold that gives the balance that you need."
    )
    chart = _score_chart(pooled, thresholds, "all classes together")
    return Section("scores", "Score threshold", lead, side_by_side(chart, single))


def _score_chart(curve: Numbers, thresholds: Sequence[float], name: str) -> str:
    lines = [Line(key, thresholds, curve[key]) for key in ("precision", "recall")]
    lines.append(Line("F1", thresholds, curve["f1"]))
    best = number(curve["best_threshold"], digits=3).text
    title = f"{name}: best F1 {percent(curve['best_f1']).text} at {best}"
    return line_chart(lines, title=title, x_name="score threshold", x_range=(0, 1), y_range=(0, 1))


def calibration_section(scores: Numbers) -> Section:
    """Return the reliability diagram."""
    found = scores["calibration"]
    error = percent(found["error"]).text
    chart = reliability_chart(
        found["mean_score"],
        found["fraction_right"],
        found["count"],
        title=f"Right detections by score; calibration error {error} %",
    )
    edges = found["edges"]
    rows = [
        (f"{low:.1f} to {high:.1f}", count(number_), number(score), percent(right))
        for low, high, number_, score, right in zip(
            edges[:-1],
            edges[1:],
            found["count"],
            found["mean_score"],
            found["fraction_right"],
            strict=True,
        )
    ]
    bins = table(
        ("score", "detections", "mean score", "right, %"), rows, caption="Bins", sortable=False
    )
    lead = (
        "How many detections of a score are right at IoU 0.5. On the dashed line a score of 0.8 "
        "means right in 80 of 100 cases; columns below it mean that scores promise too much. The "
        "error is the mean distance, weighted by the number of detections."
    )
    return Section("calibration", "Calibration", lead, side_by_side(chart, bins))


def part_section(scores: Numbers) -> Section:
    """Return AP and recall by attributes of objects and images."""
    blocks = []
    for key, title in _PARTS.items():
        parts = scores["parts"].get(key)
        if not parts:
            continue
        value = "ap" if parts[0]["ap"] is not None or key != "overlap" else "found"
        what = "AP" if value == "ap" else "found at IoU 0.5"
        chart = bar_chart(
            [Bar(part["name"], part[value]) for part in parts], title=f"{title}: {what}", top=1.0
        )
        rows = [
            (
                part["name"],
                count(part["objects"]),
                *(percent(part[name]) for name in ("ap", "ap50", "found", "found_thresh")),
            )
            for part in parts
        ]
        headings = ("", "objects", "AP", "AP50", "found", "found, score")
        blocks.append(chart + table(headings, rows, caption="in percent", sortable=False))
    lead = (
        "AP over the objects of one range; the others, and their detections, are ignored. “found” "
        "is the share with a detection of their class at IoU 0.5, “found, score” with one of at "
        "least the score threshold. Aspect and place of a wrong detection are those of its box."
    )
    return Section("parts", "AP by size, shape and place", lead, side_by_side(*blocks))


def gallery_sections(galleries: Mapping[str, str], examples: Numbers, note: str) -> list[Section]:
    """Return the sections of examples, each with the annotations beside the detections.

    Args:
        galleries: HTML by key.
        examples: their numbers.
        note: what is said of the images, below every lead.
    """
    thresh, confident = examples["score_thresh"], examples["label_error_score_thresh"]
    key = (
        '<p class="note key">Left: annotations <i class="gt" style="border-color:var(--gt)"></i>, '
        'right: detections <i style="border-color:var(--det)"></i>, of at least a score of '
        f'{thresh:.3f}; what it is about <i style="border-color:var(--focus)"></i>, crowd regions '
        f"dashed. {escaped(note)}</p>"
    )
    labels = ""
    for gallery, name, title in (
        ("missing", "missing_annotations", "A confident detection where there is no annotation"),
        ("other-class", "other_class", "A confident detection of another class on an annotation"),
        ("duplicates", "duplicate_annotations", "Annotations that overlap nearly fully"),
        ("unseen", "unseen_annotations", "Annotations that no detection overlaps at all"),
    ):
        labels += f"<h3>{title}: {examples[name]['count']}</h3>{galleries[gallery]}"
    return [
        Section(
            "worst",
            "Worst images",
            "The images with the most errors: wrong detections and missed objects at IoU 0.5.",
            key + galleries["worst"],
        ),
        Section(
            "wrong",
            "Confident false positives",
            f"{examples['false_positives']['count']} detections match no object of their "
            "class; those with the highest scores of every class.",
            key + galleries["wrong"],
        ),
        Section(
            "missed",
            "Missed objects",
            f"{examples['missed_objects']['count']} objects are not found; the largest of every "
            "class.",
            key + galleries["missed"],
        ),
        Section(
            "labels",
            "Likely label errors",
            f"Candidates to check, from detections with a score of {confident:.3f} or more and "
            "from the annotations. Not every one is an error: look before you change a label.",
            key + labels,
        ),
    ]


def _range(scores: Numbers, key: str) -> str:
    found = scores.get("intervals", {}).get(key)
    cell: Cell = interval(found["low"], found["high"]) if found else Cell("-", None)
    return cell.text if cell.value is not None else ""
