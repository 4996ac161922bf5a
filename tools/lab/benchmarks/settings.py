"""Settings of a benchmark run, and the description of a benchmark."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engine.errors import UserError

if TYPE_CHECKING:  # large packages, not imported for --help
    from engine.schema import Precision
    from tools.lab.benchmarks.measure import Row


@dataclass(frozen=True)
class Settings:
    """Options of a benchmark run, most of them from the command line.

    folder: an empty temporary folder for its files. log: prints a line. rounds: pairs of
    measurements; their median is reported. small: use sizes that take a second. model: the network
    to measure; None for all networks of the benchmark. precision: "fp32", "bf16", or None for both.
    output: an existing folder for files other than the table, such as traces; None keeps none.
    images: number of images of the benchmark that predicts on files; None for its own.
    """

    folder: Path
    log: Callable[[str], None]
    rounds: int = 5
    small: bool = False
    model: str | None = None
    precision: "Precision | None" = None
    output: Path | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"--rounds: expected at least 1, got {self.rounds}")
        if self.images is not None and self.images < 1:
            raise UserError(f"--images: expected at least 1, got {self.images}")

    def precisions(self) -> "list[Precision]":
        """Return the selected precision, or both."""
        return ["fp32", "bf16"] if self.precision is None else [self.precision]


@dataclass(frozen=True)
class Benchmark:
    """Description of a benchmark.

    function: "module.name" in this package. It is imported only to run, because that takes seconds.
    models: possible values of `Settings.model`; empty if there is no choice. precisions: whether it
        uses `Settings.precision`.
    on_gpu: whether it needs a CUDA device, except with `small`. on_coco128: whether it reads the
        coco128 images. requires: packages that it imports or compares with.
    """

    function: str
    models: Sequence[str] = ()
    precisions: bool = False
    on_gpu: bool = False
    on_coco128: bool = False
    requires: Sequence[str] = ()

    def run(self, settings: Settings) -> Sequence["Row"]:
        """Run the benchmark and return its rows."""
        module, _, name = self.function.rpartition(".")
        work = getattr(import_module(f"tools.lab.benchmarks.{module}"), name)
        return cast("Sequence[Row]", work(settings))

    def check_options(self, name: str, *, model: str | None, precision: str | None) -> None:
        """Check the --model and --precision of a benchmark; `name` is its name in messages.

        Raises:
            UserError: it has no such model, or no choice of precisions.
        """
        if model is not None and model not in self.models:
            expected = f"one of {', '.join(self.models)}" if self.models else "none"
            raise UserError(f"--model: expected {expected} for {name}, got {model}")
        if precision is not None and not self.precisions:
            raise UserError(f"--precision: expected none for {name}, got {precision}")

    def check_requirements(self, name: str, *, small: bool) -> None:
        """Check that packages, GPU and images exist; `name` is the benchmark's name in messages.

        Raises:
            UserError: a package, the GPU or the coco128 images are missing.
        """
        for package in self.requires:
            if find_spec(package) is None:  # finds a package without importing it
                raise UserError(
                    f"{name}: expected the package {package} to be installed; it was not found"
                )
        if self.on_coco128:
            from tools.lab.benchmarks.images import coco128

            coco128()
        if self.on_gpu and not small:
            import torch

            if not torch.cuda.is_available():
                raise UserError(f"{name}: expected a CUDA device, got none (--small needs none)")
