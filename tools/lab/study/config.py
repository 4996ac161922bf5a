"""Schema of configs/repro.yaml: the paper's tables and figures, and the scales of the study.

Errors are in percent, as in the paper; differences of two errors are in percentage points.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator
from rich.table import Table

from engine.config import load_config
from engine.schema import Config, PathText
from tools.lab.study.expectations import BoundConfig, check_names


class FigureConfig(Config):
    """A table or figure of the paper, or a later result, and the commands that reproduce it."""

    what: str
    """Number of the table or figure, and what it shows."""
    commands: Annotated[tuple[str, ...], Field(min_length=1)]
    """Commands in the order in which they are run, on runs of earlier rows too."""
    cost: str
    """Time on one GPU: measured, or an estimate with its arithmetic."""
    expected: str
    """Numbers of the paper, or what is expected in small."""
    tolerance: str
    """Allowed distance from the paper's numbers."""


class TrainingConfig(Config):
    """A training of a study: its config file, changes to it, and where its data lie."""

    config: PathText
    """Config file, relative to the folder of the file that holds this key."""
    overrides: tuple[str, ...] = ()
    """Changes to that config, each `a.b.c=value`."""
    data: dict[str, str] = Field(default_factory=dict)
    """Paths of its data, by config key, below the folder that `--data` names."""


class ExpectationConfig(BoundConfig):
    """A bound on the error of a network, or on the difference to the error of another one."""

    error: Literal["train", "test"]
    """The training error or the test error."""
    network: str
    """Network, by `model.backbone.kind`."""

    @property
    def name(self) -> str:
        """The network."""
        return self.network

    @property
    def subject(self) -> str:
        """Name of the bounded value, for the report."""
        difference = "" if self.above is None else f" minus that of {self.above}"
        name = {"train": "training error", "test": "test error"}[self.error]
        return f"{name} of {self.network}{difference}"


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
        check_names(self.expectations, self.networks, what="networks", more=self.paper_errors)
        return self

    def all_expectations(self) -> list[ExpectationConfig]:
        """Return `expectations`, followed by one for each of `paper_errors`."""
        errors = [
            ExpectationConfig(error="test", network=network, at_most=error + self.tolerance)
            for network, error in self.paper_errors.items()
        ]
        return [*self.expectations, *errors]


class BackboneExpectationConfig(BoundConfig):
    """A bound on a score with a backbone, or on the difference to the score with another one."""

    score: Literal["top1", "ap", "ap50"] = "ap"
    """Accuracy of the pretrained classifier, or a metric of the detector."""
    backbone: str
    """A backbone of the study."""

    @property
    def name(self) -> str:
        """The backbone."""
        return self.backbone

    @property
    def subject(self) -> str:
        """Name of the bounded value, for the report."""
        difference = "" if self.above is None else f" minus that with {self.above}"
        return f"{self.score} with {self.backbone}{difference}"


class BackboneStudyConfig(Config):
    """One scale of the study of backbones: pretrained alike, then under the same detector."""

    pretraining: TrainingConfig
    """Pretraining of a classifier, whose backbone the detector starts from."""
    detection: TrainingConfig
    """Training of the detector."""
    backbones: Annotated[dict[str, "BackboneConfig"], Field(min_length=1)]
    """The backbones, by `model.backbone.kind`, in the order of the report."""
    reference: str
    """Backbone that the others are compared with."""
    test: dict[str, str] = Field(default_factory=dict)
    """Data that the detectors are scored on, as `data` of a training; empty: validation images."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1)
    """Seeds; both trainings of every backbone are run once with each."""
    expectations: tuple[BackboneExpectationConfig, ...] = ()
    """Bounds on the results, in percent."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_names(self.expectations, self.backbones, what="backbones", more=[self.reference])
        return self


class BackboneConfig(Config):
    """What one backbone changes in the two trainings of the study of backbones."""

    pretraining: tuple[str, ...] = ()
    """Changes to the config of the pretraining, each `a.b.c=value`."""
    detection: tuple[str, ...] = ()
    """Changes to the config of the detector."""


class VariantExpectationConfig(BoundConfig):
    """A bound on the score of a row, or on the difference to the score of another row."""

    score: Literal["ap", "ap50", "ap75"] = "ap"
    """Metric."""
    row: str
    """A row of the study."""

    @property
    def name(self) -> str:
        """The row."""
        return self.row

    @property
    def subject(self) -> str:
        """Name of the bounded value, for the report."""
        difference = "" if self.above is None else f" minus that of {self.above}"
        return f"{self.score} of {self.row}{difference}"


class VariantRowConfig(Config):
    """A row of a study of variants: a detector as it is tested."""

    after: str | None = None
    """Earlier row that this one adds to, and is compared with; null only for the first row."""
    network: str | None = None
    """Network; null: that of `after`."""
    overrides: tuple[str, ...] = ()
    """Changes to the test-time config, besides those of `after`, each `a.b.c=value`."""
    ensemble: bool = False
    """Whether the detectors of all seeds are tested as one."""


class VariantsStudyConfig(Config):
    """One scale of a study of variants of a detector, trained and tested alike."""

    title: str
    """First line of the report."""
    compared: Literal["ap", "ap50", "ap75"] = "ap"
    """Score whose differences are reported."""
    training: TrainingConfig
    """Training of the detectors."""
    networks: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    """Changes to the config of the training, each `a.b.c=value`, by the name of the network."""
    rows: Annotated[dict[str, VariantRowConfig], Field(min_length=1)]
    """Rows of the table by name."""
    test: dict[str, str] = Field(default_factory=dict)
    """Data that the detectors are scored on, as `data` of a training; empty: validation images."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds; every network is trained once with each."""
    expectations: tuple[VariantExpectationConfig, ...] = ()
    """Bounds on the results, in percent."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        earlier: list[str] = []
        for name, row in self.rows.items():
            if (row.after is None) != (not earlier) or row.after not in (None, *earlier):
                expected = " or ".join(earlier) or "null in the first row"
                raise ValueError(f"rows.{name}.after: expected {expected}, got {row.after}")
            if row.network not in (None, *self.networks) or not (row.network or earlier):
                expected = " or ".join(self.networks)
                raise ValueError(f"rows.{name}.network: expected {expected}, got {row.network}")
            earlier.append(name)
        check_names(self.expectations, self.rows, what="rows")
        return self

    def evaluation_of(self, name: str) -> tuple[str, tuple[str, ...]]:
        """Return the network of a row, and its changes with those of the rows that it adds to."""
        row = self.rows[name]
        if row.after is None:
            assert row.network is not None
            return row.network, row.overrides
        network, overrides = self.evaluation_of(row.after)
        return row.network or network, (*overrides, *row.overrides)


class ReproConfig(Config):
    """The content of configs/repro.yaml."""

    figures: tuple[FigureConfig, ...]
    """Every table and figure of the paper, then later results."""
    cifar_degradation: dict[str, ScaleConfig]
    """Scales of the study of plain and residual networks on CIFAR-10, by name."""
    residual_backbone: dict[str, BackboneStudyConfig]
    """Scales of the study of backbones of detectors, by name."""
    detector_additions: dict[str, VariantsStudyConfig]
    """Scales of the study of a detector's additions (Table 9), by name."""
    cascade_stages: dict[str, VariantsStudyConfig]
    """Scales of the study of Cascade R-CNN's stages, by name."""
    strong_recipe: dict[str, VariantsStudyConfig]
    """Scales of the study of today's recipe, by name."""

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
