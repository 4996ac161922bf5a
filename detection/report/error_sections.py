"""The sections on where AP is lost, and on the difference of two runs."""

from collections.abc import Mapping
from typing import Any

from detection.report.charts import Bar, bar_chart
from detection.report.markup import count, interval, number, percent, table
from detection.report.page import Section, side_by_side

Numbers = Mapping[str, Any]


def error_section(scores: Numbers) -> Section:
    """Return TIDE's errors, and the oracle ladder where there is one."""
    found = scores["errors"]
    errors = found["errors"]
    bars = [Bar(name.replace("_", " "), each["lost_ap"]) for name, each in errors.items()]
    chart = bar_chart(bars, title="AP50 that mending each kind of error gives, in points")
    rows = [
        (name.replace("_", " "), each["meaning"], count(each["count"]), percent(each["lost_ap"]))
        for name, each in errors.items()
    ]
    listed = table(("error", "what it is", "number", "AP50 lost"), rows, caption="Errors")
    lead = (
        "TIDE (Bolya et al. 2020): for each kind of error, how much AP at IoU 0.5 rises if it alone "
        "is mended. The gains do not add up. The last two bars are coarser: all wrong detections, "
        "and all objects without a detection."
    )
    return Section("errors", "Where AP is lost", lead, side_by_side(chart, listed))


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
