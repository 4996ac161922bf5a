"""The sections on where AP is lost, and on the difference of two runs."""

from collections.abc import Mapping
from typing import Any

from detection.report.charts import Bar, bar_chart
from detection.report.markup import count, interval, number, percent, table
from detection.report.page import Section, side_by_side

Numbers = Mapping[str, Any]


def error_section(scores: Numbers, proposals: Numbers | None) -> Section:
    """Return TIDE's errors, the oracle ladder, and the recall of proposals if it is known."""
    found = scores["errors"]
    errors = found["errors"]
    bars = [Bar(name.replace("_", " "), each["lost_ap"]) for name, each in errors.items()]
    chart = bar_chart(bars, title="TIDE: AP50 that mending one kind of error gives, in points")
    rows = [
        (name.replace("_", " "), each["meaning"], count(each["count"]), percent(each["lost_ap"]))
        for name, each in errors.items()
    ]
    listed = table(("error", "what it is", "number", "AP50 lost"), rows, caption="Errors")
    ladder = scores["oracle_ladder"]
    rungs = bar_chart(
        [Bar(each["name"], each["ap"]) for each in ladder],
        title="Oracle ladder: AP with all mended up to here",
        top=1.0,
    )
    rows = [
        (each["name"], each["meaning"], percent(each["ap"]), percent(each["ap50"]))
        for each in ladder
    ]
    steps = table(("mended", "what it means", "AP", "AP50"), rows, caption="Rungs", sortable=False)
    parts = [side_by_side(chart, listed), side_by_side(rungs, steps)]
    if proposals is not None:
        parts.append(_proposals(proposals))
    lead = (
        "TIDE (Bolya et al. 2020): for each kind of error, how much AP at IoU 0.5 rises if it "
        "alone is mended. The gains do not add up. The last two bars are coarser: all wrong "
        "detections, and all objects without a detection. The oracle ladder mends one stage after "
        "the other, and keeps what is mended: the largest step shows where the pipeline loses most."
    )
    return Section("errors", "Where AP is lost", lead, "".join(parts))


def _proposals(proposals: Numbers) -> str:
    """Return the recall of proposals by size and number of proposals."""
    first = next(iter(proposals.values()))
    rows = [
        (
            size,
            count(first[size]["objects"]),
            *(
                percent(of[size][key])
                for of in proposals.values()
                for key in ("recall50", "recall")
            ),
        )
        for size in first
    ]
    headings = [f"{limit}: {what}" for limit in proposals for what in ("IoU 0.5", "0.5 to 0.95")]
    caption = "Objects with a proposal of the RPN, by number of proposals of an image, in percent"
    return table(("size", "objects", *headings), rows, caption=caption, sortable=False)


def comparison_section(difference: Numbers, names: tuple[str, str]) -> Section:
    """Return the paired difference of two runs.

    Args:
        difference: by metric, the value, the ends of the interval and the p-value.
        names: of this run and of the other one.
    """
    rows = []
    for key, each in difference.items():
        metric, _, name = key.partition("/")
        rows.append(
            (
                {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}[metric],
                name or "all classes",
                percent(each["value"]),
                interval(each["low"], each["high"]),
                number(each["p_value"], digits=3),
            )
        )
    headings = ("metric", "class", "difference", "95 % interval", "p-value")
    lead = (
        f"{names[0]} minus {names[1]}, in percent, on the same images, which are resampled 1,000 "
        "times for both together. An interval without 0 is a difference that other images would "
        "most likely show as well. Among many classes some p-values are small by chance."
    )
    body = table(headings, rows, caption="Differences")
    return Section("comparison", "Compared with another run", lead, body)
