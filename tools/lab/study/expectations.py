"""Expected results of a study: bounds, their verdicts, and means with their spread over seeds."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from pydantic import model_validator

from detection.evaluation.uncertainty import RESAMPLES, Difference, spread
from engine.schema import Config

RESAMPLING = (
    f"Its interval is that of {RESAMPLES} resamples of the test images, the same for all runs, and",
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


def check_names(names: Iterable[str], known: Collection[str], *, what: str) -> None:
    """Raise ValueError for a name that is not one of `known`; `what` is their key."""
    for name in names:
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


def verdict_on(expectation: E, name: str, values: Mapping[str, float | None]) -> Verdict[E]:
    """Compare a value, or its difference to that of `expectation.above`, with an expectation.

    Args:
        expectation: the bound.
        name: what it bounds the value of.
        values: by name; None if a run is missing.
    """
    value = values[name]
    if expectation.above is not None and value is not None:
        other = values[expectation.above]
        # a difference needs both values
        value = None if other is None else value - other
    return Verdict(expectation, value)


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
