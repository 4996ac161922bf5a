"""What a benchmark is told, and what it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import UserError
from engine.measure import Row

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """The command line of a benchmark.

    folder: empty, for its files; removed afterwards. say: prints a line. rounds: pairs of
    measurements of which the median is taken. small: sizes that take a second. model: which
    network, None for all that the benchmark knows. precision: "fp32", "bf16", or None for both.
    output: an existing folder for what is worth keeping besides the table; None keeps nothing.
    """

    folder: Path
    say: Callable[[str], None]
    rounds: int = 5
    small: bool = False
    model: str | None = None
    precision: Precision | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"--rounds: expected at least 1, got {self.rounds}")

    def precisions(self) -> list[Precision]:
        """Return the one that was asked for, or both."""
        return ["fp32", "bf16"] if self.precision is None else [self.precision]


@dataclass(frozen=True)
class Benchmark:
    """Measures some rows.

    models: names that `Settings.model` may have; none where there is no choice. precisions: whether
    `Settings.precision` is looked at. on_gpu: whether it needs a CUDA device, but when small.
    """

    run: Callable[[Settings], Sequence[Row]]
    models: Sequence[str] = ()
    precisions: bool = False
    on_gpu: bool = False

    def check(self, name: str, *, model: str | None, precision: str | None) -> None:
        """Refuse a choice that this benchmark, called `name`, does not have.

        Raises:
            UserError: it has no such model, or no precisions.
        """
        if model is not None and model not in self.models:
            expected = f"one of {', '.join(self.models)}" if self.models else "none"
            raise UserError(f"--model: expected {expected} for {name}, got {model}")
        if precision is not None and not self.precisions:
            raise UserError(f"--precision: expected none for {name}, got {precision}")
