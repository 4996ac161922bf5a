"""Schema of configs/repro.yaml: the paper's tables and figures, and the scales of the study.

Errors are in percent, as in the paper; differences of two errors are in percentage points.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator
from rich.table import Table

from engine.config import load_config
from engine.schema import Config, PathText


class FigureConfig(Config):
    """A table or figure of the paper, and the commands that reproduce it."""

    what: str
    """Number of the table or figure, and what it shows."""
    commands: Annotated[tuple[str, ...], Field(min_length=1)]
    """Commands in the order in which they are run, on runs of earlier rows too."""
    cost: str
    """Time on one GPU: measured, or an estimate with its arithmetic."""
    expected: str
    """Numbers of the paper."""
    tolerance: str
    """Allowed distance from the paper's numbers."""


class ExpectationConfig(Config):
    """A bound on the error of a network, or on the difference to the error of another one."""

    error: Literal["train", "test"]
    """The training error or the test error."""
    network: str
    """Network, by `model.backbone.kind`."""
    above: str | None = None
    """Network to subtract the error of; null: no subtraction."""
    at_least: float | None = None
    """Lower bound, inclusive."""
    at_most: float | None = None
    """Upper bound, inclusive; exactly one of the two bounds is given."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("expected either at_least or at_most, got both or none")
        return self

    @property
    def subject(self) -> str:
        """Name of the bounded value, for the report."""
        difference = "" if self.above is None else f" minus that of {self.above}"
        name = {"train": "training error", "test": "test error"}[self.error]
        return f"{name} of {self.network}{difference}"

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


class ScaleConfig(Config):
    """One scale of the study: its networks, seeds and expected results."""

    networks: Annotated[dict[str, PathText], Field(min_length=1)]
    """Config file of each network, by `model.backbone.kind`, in the order of the report.

    Paths are relative to the folder of the file that holds this key.
    """
    overrides: tuple[str, ...] = ()
    """Changes to all of these configs, each `a.b.c=value`."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    """Seeds; every network is trained once with each."""
    paper_errors: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Test error in the paper, of the networks that it reports."""
    tolerance: NonNegativeFloat = 0.4
    """Percentage points that a test error may exceed the paper's by."""
    expectations: tuple[ExpectationConfig, ...] = ()
    """Further bounds on the results."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        pairs = [(each.network, each.above or each.network) for each in self.expectations]
        named = [*self.paper_errors, *(name for pair in pairs for name in pair)]
        for name in named:
            if name not in self.networks:
                raise ValueError(
                    f"expected one of networks ({', '.join(self.networks)}), got {name}"
                )
        return self

    def all_expectations(self) -> list[ExpectationConfig]:
        """Return `expectations`, followed by one for each of `paper_errors`."""
        errors = [
            ExpectationConfig(error="test", network=network, at_most=error + self.tolerance)
            for network, error in self.paper_errors.items()
        ]
        return [*self.expectations, *errors]


class ReproConfig(Config):
    """The content of configs/repro.yaml."""

    figures: tuple[FigureConfig, ...]
    """Every table and figure of the paper."""
    cifar_degradation: dict[str, ScaleConfig]
    """Scales of the study of plain and residual networks on CIFAR-10, by name."""

    def figures_table(self) -> Table:
        """Return every table and figure for the console; long commands are wrapped, not cut."""
        table = Table(title="the paper's tables and figures", show_header=False)
        table.add_column()
        table.add_column(overflow="fold")  # wraps a command that has no spaces to break at
        for each in self.figures:
            table.add_row("what", each.what)
            table.add_row("commands", "\n".join(each.commands))
            table.add_row("on one GPU", each.cost)
            table.add_row("expected", each.expected)
            table.add_row("tolerance", each.tolerance, end_section=True)
        return table


def load_repro(path: Path) -> ReproConfig:
    """Read and check configs/repro.yaml.

    Raises:
        UserError: the file is missing, or a key, type or value is wrong.
    """
    return load_config(path, schemas={"repro": ReproConfig})
