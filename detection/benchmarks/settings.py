"""What a benchmark is told."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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
    precision: str | None = None
