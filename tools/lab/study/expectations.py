"""Expected results of a study: bounds, their verdicts, and means with their spread over seeds."""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, Self, TypeVar

from pydantic import model_validator
from rich.table import Table

from detection.evaluation.uncertainty import RESAMPLES, Difference, spread
from engine.schema import Config
from tools.lab.tables import console_table

RESAMPLING = (
    f"Its interval is that of {RESAMPLES} resamples of these images, the same for all runs, and",
    "does not cover the seeds.",
)
"""Lines of a report on the intervals of differences."""
E = TypeVar("E", bound="BoundConfig")


class BoundConfig(Config, ABC):
    """A lower or an upper bound on a value, in percent or percentage points."""

    at_least: float | None = None
    """Lower bound, inclusive."""
    at_most: float | None = None
    """Upper bound, inclusive; exactly one of the two bounds is given."""
    above: str | None = None
    """What to subtract the value of, by name; null: no subtraction."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("expected either at_least or at_most, got both or none")
        return self

    @property
    @abstractmethod
    def name(self) -> str:
        """What the value belongs to: a network, a backbone or a row."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """Name of the bounded value, for the report."""

    @property
    def bound(self) -> str:
        """The bound, for the report."""
        if self.at_least is not None:
            return f"at least {self.at_least:.2f}"
        return f"at most {self.at_most:.2f}"

    def holds(self, value: float) -> bool:
        """Return whether a value is within the bound; False for NaN."""
        lowest = float("-inf") if self.at_least is None else self.at_least
        highest = float("inf") if self.at_most is None else self.at_most
        return lowest <= value <= highest


def check_names(
    expectations: Iterable[BoundConfig],
    known: Collection[str],
    *,
    what: str,
    more: Iterable[str] = (),
) -> None:
    """Raise ValueError if expectations name something that is not one of `known`.

    what: the key of `known`. more: further names to check, the first ones.
    """
    pairs = [(each.name, each.above or each.name) for each in expectations]
    for name in (*more, *chain.from_iterable(pairs)):
        if name not in known:
            raise ValueError(f"expected one of {what} ({', '.join(known)}), got {name}")


@dataclass(frozen=True)
class Verdict(Generic[E]):
    """An expectation and the measured value, which is None if a run is missing."""

    expectation: E
    value: float | None

    @property
    def outcome(self) -> str:
        """PASS, FAIL or "not run"."""
        if self.value is None:
            return "not run"
        return "PASS" if self.expectation.holds(self.value) else "FAIL"

    def line(self) -> str:
        """Return subject, bound, measured value and outcome."""
        text = f"{self.expectation.subject}: wanted {self.expectation.bound}"
        measured = "" if self.value is None else f", measured {self.value:.2f}"
        return f"{text}{measured}: {self.outcome}"


def verdict_on(expectation: E, values: Mapping[str, float | None]) -> Verdict[E]:
    """Compare a value, or its difference to that of `expectation.above`, with an expectation.

    Args:
        expectation: the bound.
        values: by the names that it can have; None if a run is missing.
    """
    value = values[expectation.name]
    if expectation.above is not None and value is not None:
        other = values[expectation.above]
        # a difference needs both values
        value = None if other is None else value - other
    return Verdict(expectation, value)


def verdict_lines(verdicts: Sequence[Verdict[E]]) -> list[str]:
    """Return the lines of a report: a list of verdicts and an empty line, or nothing."""
    return [*(f"- {verdict.line()}" for verdict in verdicts), *([""] if verdicts else [])]


def results_table(
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    verdicts: Sequence[Verdict[E]],
    *,
    title: str,
) -> Table:
    """Return the results and the verdicts below them, for the console."""
    caption = "\n".join(verdict.line() for verdict in verdicts)
    return console_table(headings, cells, title=title, caption=caption)


def complete_mean(values: Sequence[float], *, num_runs: int) -> float | None:
    """Return the mean of the finished runs' values; None if a run is missing."""
    return statistics.fmean(values) if len(values) == num_runs else None


def mean_and_spread(values: Sequence[float], *, num_runs: int) -> str:
    """Return "mean +- standard deviation" of some values; "not run" without any.

    Args:
        values: of the finished runs.
        num_runs: planned runs; the text counts the runs if some are missing.
    """
    if not values:
        return "not run"
    mean, std, count = spread(values)
    deviation = f"+- {std:.2f}" if count > 1 else "(one seed)"
    missing = f", {count} of {num_runs} runs" if count < num_runs else ""
    return f"{mean:.2f} {deviation}{missing}"


def difference_text(difference: Difference) -> str:
    """Return a difference with its 95 % interval, in percentage points."""
    value, low, high = (100 * each for each in (difference.value, difference.low, difference.high))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"
