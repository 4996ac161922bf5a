"""What a benchmark is told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from engine.errors import UserError

T = TypeVar("T")
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """The command line of a benchmark.

    folder: empty, for its files; removed afterwards. say: prints a line. rounds: pairs of
    measurements of which the median is taken. small: sizes that take a second. model: which
    network, None for all that the benchmark knows. precision: "fp32", "bf16", or None for both.
    """

    folder: Path
    say: Callable[[str], None]
    rounds: int = 5
    small: bool = False
    model: str | None = None
    precision: Precision | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"--rounds: expected at least 1, got {self.rounds}")

    def chosen(self, cases: Mapping[str, T]) -> list[T]:
        """Return the case that `model` names, or all.

        Raises:
            UserError: the benchmark does not know it.
        """
        if self.model is None:
            return list(cases.values())
        if self.model not in cases:
            raise UserError(f"--model: expected one of {', '.join(cases)}, got {self.model}")
        return [cases[self.model]]

    def precisions(self) -> list[Precision]:
        """Return the one that was asked for, or both."""
        return ["fp32", "bf16"] if self.precision is None else [self.precision]
