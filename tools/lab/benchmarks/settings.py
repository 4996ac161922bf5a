"""What a benchmark is told, and what it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engine.errors import UserError

if TYPE_CHECKING:  # large packages, which a command's --help does without
    from engine.schema import Precision
    from tools.lab.benchmarks.measure import Row


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
    precision: "Precision | None" = None
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"--rounds: expected at least 1, got {self.rounds}")

    def precisions(self) -> "list[Precision]":
        """Return the one that was asked for, or both."""
        return ["fp32", "bf16"] if self.precision is None else [self.precision]


@dataclass(frozen=True)
class Benchmark:
    """Measures some rows.

    function: of this package, "module.name"; it and what it imports, seconds, are loaded to be run.
    models: names that `Settings.model` may have; none where there is no choice. precisions: whether
    `Settings.precision` is looked at. on_gpu: whether it needs a CUDA device, but when small.
    on_coco128: whether it reads the folder of real images. needs: packages that it measures
        against, or reads with.
    """

    function: str
    models: Sequence[str] = ()
    precisions: bool = False
    on_gpu: bool = False
    on_coco128: bool = False
    needs: Sequence[str] = ()

    def run(self, settings: Settings) -> Sequence["Row"]:
        """Measure."""
        module, _, name = self.function.rpartition(".")
        work = getattr(import_module(f"tools.lab.benchmarks.{module}"), name)
        return cast("Sequence[Row]", work(settings))

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

    def look_for_needs(self, name: str, *, small: bool) -> None:
        """Look for what this benchmark, called `name`, takes from outside, before anything starts.

        Raises:
            UserError: a package, the GPU or the folder of real images is not there.
        """
        for package in self.needs:
            if find_spec(package) is None:
                raise UserError(f"{name}: expected the package {package}, got none installed")
        if self.on_coco128:
            from tools.lab.benchmarks.images import coco128

            coco128()
        if self.on_gpu and not small:
            import torch

            if not torch.cuda.is_available():
                raise UserError(f"{name}: expected a CUDA device, got none (--small needs none)")
