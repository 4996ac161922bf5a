"""What configs/repro.yaml holds: the paper's tables and figures, and the scales of the study.

Errors are in percent, as the paper prints them, and bounds between two errors in percent points.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator
from rich.table import Table

from engine.config import load_config
from engine.schema import Config, PathText


class FigureConfig(Config):
    """A table or figure of the paper, and how it is made again."""

    what: str
    """Its number, and what it shows."""
    commands: tuple[str, ...]
    """Commands in their order; none: not built yet."""
    cost: str
    """Time on one GPU: measured, or an estimate with its arithmetic."""
    expected: str
    """The paper's numbers."""
    tolerance: str
    """How far from them a run may end."""


class ExpectationConfig(Config):
    """A bound on a network's error, or on how far it lies above another's."""

    error: Literal["train", "test"]
    """Which error."""
    network: str
    """Whose error."""
    above: str | None = None
    """Network whose error is subtracted; none: nothing is."""
    at_least: float | None = None
    """Lower bound."""
    at_most: float | None = None
    """Upper bound; this or the other, not both."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("expected at_least or at_most, got both or none")
        return self

    @property
    def subject(self) -> str:
        """What is bounded, in words."""
        difference = "" if self.above is None else f" minus that of {self.above}"
        name = {"train": "training error", "test": "test error"}[self.error]
        return f"{name} of {self.network}{difference}"

    @property
    def wanted(self) -> str:
        """The bound, in words."""
        if self.at_least is not None:
            return f"at least {self.at_least:.2f}"
        return f"at most {self.at_most:.2f}"

    def holds(self, value: float) -> bool:
        """Whether a value is within the bound; a bound itself is."""
        lowest = float("-inf") if self.at_least is None else self.at_least
        highest = float("inf") if self.at_most is None else self.at_most
        return lowest <= value <= highest


class ScaleConfig(Config):
    """How much of the study is run, and what must come out."""

    networks: Annotated[dict[str, PathText], Field(min_length=1)]
    """Config file, relative to this one, of each network (`model.backbone.kind`), in order."""
    overrides: tuple[str, ...] = ()
    """Changes to all of these configs, `a.b.c=value`."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0,)
    """A run of each network for each of them."""
    paper_errors: dict[str, PositiveFloat] = Field(default_factory=dict)
    """The paper's test error, of the networks that it gives one for."""
    tolerance: NonNegativeFloat = 0.4
    """How far above the paper's a test error may end."""
    expectations: tuple[ExpectationConfig, ...] = ()
    """What must come out besides."""

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
        """Return the expectations, and one for each of the paper's test errors."""
        errors = [
            ExpectationConfig(error="test", network=network, at_most=error + self.tolerance)
            for network, error in self.paper_errors.items()
        ]
        return [*self.expectations, *errors]


class ReproConfig(Config):
    """The whole file."""

    figures: tuple[FigureConfig, ...]
    """Every table and figure of the paper."""
    cifar_degradation: dict[str, ScaleConfig]
    """Scales of the study of plain and residual nets on CIFAR-10, by name."""

    def figures_table(self) -> Table:
        """Return every table and figure for the console; no command is cut short."""
        table = Table(title="the paper's tables and figures", show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        for each in self.figures:
            table.add_row("what", each.what)
            table.add_row("commands", "\n".join(each.commands) or "not built yet")
            table.add_row("on one GPU", each.cost)
            table.add_row("expected", each.expected)
            table.add_row("tolerance", each.tolerance, end_section=True)
        return table


def load_repro(path: Path) -> ReproConfig:
    """Read and check configs/repro.yaml.

    Raises:
        UserError: a missing file, or a wrong key, type or value.
    """
    return load_config(path, schemas={"repro": ReproConfig})
