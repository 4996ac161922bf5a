"""A study of variants of a detector: trained and tested alike, each with its difference to another.

The additions of Table 9, the stages of Cascade R-CNN, and today's recipe are such studies. Scores
are in percent here, differences of `Difference` are fractions.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from detection.config import DetectionConfig
from detection.evaluation.uncertainty import Difference, mean_difference
from engine.checkpoint import prepare_output
from engine.errors import UserError
from engine.files import write_file
from tools.lab.study.config import VariantExpectationConfig, VariantsStudyConfig
from tools.lab.study.expectations import (
    RESAMPLING,
    Verdict,
    complete_mean,
    difference_text,
    mean_and_spread,
    results_table,
    verdict_lines,
    verdict_on,
)
from tools.lab.study.scoring import Scores, Scoring, read_scores, train_and_score
from tools.lab.study.training import (
    Run,
    chosen_seeds,
    data_overrides,
    origins_table,
    planned_config,
)
from tools.lab.tables import markdown_table

SCORES = ("ap", "ap50", "ap75", "mask_ap")
"""Metrics that the table can have."""
HEADINGS = dict(zip(SCORES, ("AP", "AP50", "AP75", "mask AP"), strict=True))


@dataclass(frozen=True)
class PlannedRow:
    """A row of the table: one evaluation for each seed, or one of all seeds as an ensemble.

    after: the row that it is compared with; None for the first one.
    """

    name: str
    after: str | None
    is_ensemble: bool
    scorings: tuple[Scoring, ...]


@dataclass(frozen=True)
class VariantsPlan:
    """The trainings of a scale in the order in which they are run, and the rows of the table."""

    seeds: tuple[int, ...]
    trainings: tuple[Run, ...]
    rows: tuple[PlannedRow, ...]


@dataclass(frozen=True)
class Row:
    """Results of a row.

    scored: of its evaluations, None for those that are not done. step, total: compared score minus
    that of the row that it is compared with, and minus that of the first row, None if a run is
    missing.
    step_by_seed: the first of the two for each seed; empty for an ensemble.
    """

    planned: PlannedRow
    scored: tuple[Scores | None, ...]
    step: Difference | None
    total: Difference | None
    step_by_seed: tuple[Difference | None, ...]

    def values(self, score: str) -> list[float]:
        """Return a score of each finished evaluation, in percent."""
        return [each.percent(score) for each in self.scored if each is not None]

    def mean(self, score: str) -> float | None:
        """Return a mean score over seeds; None if an evaluation is not done."""
        return complete_mean(self.values(score), num_runs=len(self.scored))

    def score_text(self, score: str) -> str:
        """Return mean and spread of a score, or the one number of an ensemble."""
        values = self.values(score)
        if self.planned.is_ensemble and values:
            return f"{values[0]:.2f}"
        return mean_and_spread(values, num_runs=len(self.scored))


@dataclass(frozen=True)
class VariantsReport:
    """Results of everything that is finished so far."""

    scale: VariantsStudyConfig
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict[VariantExpectationConfig], ...]

    @property
    def compared(self) -> str:
        """Name of the score whose differences are given."""
        return HEADINGS[self.scale.compared]

    @property
    def scores(self) -> list[str]:
        """Scores of the table: that of masks only if all evaluated detectors have masks."""
        found = [each.metrics for row in self.rows for each in row.scored if each]
        has_masks = bool(found) and all("mask_ap" in metrics for metrics in found)
        return [name for name in SCORES if has_masks or name != "mask_ap"]

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings of the table."""
        name = self.compared
        differences = (f"{name} minus that of", "difference, 95 % interval", "p")
        scores = (HEADINGS[score] for score in self.scores)
        return ("detector", *scores, *differences, f"{name} minus the first row's", "img/s")

    def cells(self) -> list[tuple[str, ...]]:
        """Return the cells of each row, under `headings`."""
        lines = []
        for row in self.rows:
            speeds = [each.images_per_second for each in row.scored if each is not None]
            lines.append(
                (
                    row.planned.name,
                    *(row.score_text(name) for name in self.scores),
                    row.planned.after or "-",
                    "-" if row.step is None else difference_text(row.step),
                    "-" if row.step is None else f"{row.step.p_value:.3f}",
                    "-" if row.total is None else difference_text(row.total),
                    f"{statistics.fmean(speeds):.2f}" if speeds else "-",
                )
            )
        return lines

    def table(self) -> Table:
        """Return the rows and the expectations for the console."""
        return results_table(self.headings, self.cells(), self.verdicts, title=self.scale.title)


def plan_study(
    scale: VariantsStudyConfig,
    *,
    configs: Path,
    output: Path,
    seeds: Sequence[int] | None = None,
    data: str | None = None,
) -> VariantsPlan:
    """Return the trainings and evaluations of a scale.

    Args:
        scale: networks, rows and seeds.
        configs: folder that the path of the config is relative to.
        output: parent of the run folders and of the evaluations.
        seeds: replaces the seeds of the scale.
        data: folder that holds the data sets; None is `data`.

    Raises:
        UserError: a config file is missing, an override is wrong, or the task is another one.
    """
    folder = data or "data"
    chosen = chosen_seeds(scale.seeds, seeds)
    tested = tuple(data_overrides(scale.test, data=folder))
    config_of = partial(planned_config, scale.training, configs=configs, data=folder)
    runs: dict[tuple[str, int], Run] = {}
    for seed in chosen:
        for network, overrides in scale.networks.items():
            config = config_of([*overrides, f"seed={seed}"])
            if not isinstance(config, DetectionConfig):
                got = config.model_dump()["task"]
                raise UserError(f"{network}: task: expected detection or segmentation, got {got}")
            runs[network, seed] = Run(config, output / f"{network}-seed{seed}")
    rows = []
    for number, (name, row) in enumerate(scale.rows.items(), start=1):
        network, changes = scale.evaluation_of(name)
        # checks the overrides before anything is trained
        scored = config_of([*scale.networks[network], *tested, *changes])
        assert isinstance(scored, DetectionConfig)
        own = [runs[network, seed] for seed in chosen]
        safe_name = "".join(letter if letter.isalnum() else "_" for letter in name)
        place = output / "evaluations" / f"{number}_{safe_name}"
        groups = (
            {f"seeds{'_'.join(map(str, chosen))}": tuple(own)}
            if row.ensemble
            else {f"seed{seed}": (run,) for seed, run in zip(chosen, own, strict=True)}
        )
        scorings = tuple(
            Scoring(group, (*tested, *changes), Path(scored.data.val.annotations), place / label)
            for label, group in groups.items()
        )
        rows.append(PlannedRow(name, row.after, row.ensemble, scorings))
    return VariantsPlan(chosen, tuple(runs.values()), tuple(rows))


def run_study(
    scale: VariantsStudyConfig,
    plan: VariantsPlan,
    *,
    output: Path,
    command: str,
    device: str | None = None,
) -> VariantsReport:
    """Train and evaluate what is not done; write report.md.

    The report is rewritten after each training, so that an interrupted study has one too.

    Args:
        scale: the expected results.
        plan: the result of `plan_study`.
        output: folder of the study.
        command: command line that the report names.
        device: as `--device`; None picks a GPU if there is one.

    Raises:
        UserError: data are missing, or a folder holds a run of another config.
        DivergedError: too many non-finite steps in a row.
        InterruptedRunError: Ctrl-C or SIGTERM; the same call resumes.
    """
    prepare_output(output)
    write = partial(write_report, scale, plan, output=output, command=command)

    scorings = [scoring for row in plan.rows for scoring in row.scorings]
    return train_and_score(plan.trainings, scorings, write=write, device=device)


def write_report(
    scale: VariantsStudyConfig, plan: VariantsPlan, *, output: Path, command: str
) -> VariantsReport:
    """Write report.md from what is done; the rest is "not run".

    Args:
        scale: the expected results.
        plan: the result of `plan_study`.
        output: folder of the study.
        command: command line that the report names.

    Raises:
        UserError: a folder holds a run of another config, or a file of a run is damaged.
    """
    scored = {row.name: tuple(map(read_scores, row.scorings)) for row in plan.rows}
    first = plan.rows[0].name
    rows = tuple(_row(row, scored, first=first, compared=scale.compared) for row in plan.rows)
    report = VariantsReport(scale, plan.seeds, rows, check_expectations(scale, rows))
    prepare_output(output)
    write_file(output / "report.md", _markdown(report, plan, command=command))
    return report


def check_expectations(
    scale: VariantsStudyConfig, rows: Sequence[Row]
) -> tuple[Verdict[VariantExpectationConfig], ...]:
    """Compare mean scores over seeds with every expectation of a scale."""
    return tuple(
        verdict_on(each, {row.planned.name: row.mean(each.score) for row in rows})
        for each in scale.expectations
    )


def _row(
    planned: PlannedRow,
    scored: dict[str, tuple[Scores | None, ...]],
    *,
    first: str,
    compared: str,
) -> Row:
    """Return the results of a row, and its differences to the rows that it is compared with.

    first: name of the first row. compared: the score.
    """
    difference = partial(_difference, score=compared)
    own = scored[planned.name]
    if planned.after is None:
        return Row(planned, own, None, None, ())
    before = scored[planned.after]
    by_seed: tuple[Difference | None, ...] = ()
    if len(own) == len(before) and not planned.is_ensemble:
        by_seed = tuple(difference([a], [b]) for a, b in zip(before, own, strict=True))
    return Row(planned, own, difference(before, own), difference(scored[first], own), by_seed)


def _difference(
    before: Sequence[Scores | None], after: Sequence[Scores | None], *, score: str
) -> Difference | None:
    """Return the difference of a mean score of two groups, None if an evaluation is missing."""
    groups = [[each.matches for each in group if each is not None] for group in (before, after)]
    if [len(group) for group in groups] != [len(before), len(after)]:
        return None
    return mean_difference(*groups)[score]


def _markdown(report: VariantsReport, plan: VariantsPlan, *, command: str) -> str:
    lines = [f"# {report.scale.title}", ""]
    lines += [markdown_table(report.headings, report.cells()), ""]
    lines += verdict_lines(report.verdicts)
    lines += _notes(report, plan)
    lines += ["", "The same differences for each seed alone:", ""]
    headings = ("detector", *(f"seed {seed}" for seed in report.seeds))
    steps = []
    for row in report.rows:
        texts = ["-" if each is None else difference_text(each) for each in row.step_by_seed]
        if texts:
            steps.append((row.planned.name, *texts))
    lines += [markdown_table(headings, steps), "", f"Command: `{command}`", ""]
    lines += ["Test-time settings of each row:", ""]
    lines += [f"- {row.name}: {_settings(row)}" for row in plan.rows]
    training = report.scale.training
    changes = _quoted(training.overrides)
    lines += ["", f"Settings of each training, besides {training.config} with {changes}:", ""]
    lines += [f"- {name}: {_quoted(own)}" for name, own in report.scale.networks.items()]
    return "\n".join([*lines, "", origins_table(plan.trainings), ""])


def _notes(report: VariantsReport, plan: VariantsPlan) -> list[str]:
    """Return the lines below the table that say what its numbers are."""
    images = {len(each.matches.image_ids) for row in report.rows for each in row.scored if each}
    which = "test" if report.scale.test else "validation"
    count = f" ({images.pop()})" if images else ""
    steps = sorted({run.config.loop.max_steps for run in plan.trainings})
    ensemble = "An ensemble joins the detectors of all seeds, and has one number."
    return [
        f"Training: {' or '.join(map(str, steps))} steps; seeds {', '.join(map(str, plan.seeds))}. "
        f"Scores: on the {which} images{count}, in percent,",
        "mean and standard deviation over seeds.",
        *([ensemble] if any(row.is_ensemble for row in plan.rows) else []),
        "",
        "Each row has the test-time settings of the one that it is compared with, and its own. A",
        f"difference is that of the mean {report.compared} over seeds.",
        *RESAMPLING,
        "img/s: images per second of an evaluation, scoring included.",
    ]


def _settings(row: PlannedRow) -> str:
    """Return the networks of a row and its overrides of `evaluation`."""
    scoring = row.scorings[0]
    own = [each for each in scoring.overrides if not each.startswith("data.")]
    names = (
        [run.name for run in scoring.runs]
        if row.is_ensemble
        else [scoring.runs[0].name.rsplit("-seed", 1)[0]]
    )
    return " ".join([*names, *([_quoted(own)] if own else [])])


def _quoted(overrides: Sequence[str]) -> str:
    """Return overrides as code, or "none"."""
    return " ".join(f"`{each}`" for each in overrides) or "none"
