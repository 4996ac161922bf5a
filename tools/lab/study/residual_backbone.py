"""The study of backbones: VGG, plain and residual networks, pretrained alike, under one detector.

The claim of the paper's abstract in small: what residual learning is worth to a detector (Tables 7
and 8 compare ResNet-101 with VGG-16). Scores are in percent here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from backbones.classification.config import ClassificationConfig
from backbones.classification.load_and_export import export_backbone
from backbones.plots import make_panels, save_figure
from detection.config import DetectionConfig
from detection.evaluation.uncertainty import Difference, mean_difference
from engine.checkpoint import prepare_output
from engine.errors import UserError
from engine.files import write_file
from engine.run_files import BACKBONE_FILE
from tools.lab.planned_runs import run_status
from tools.lab.study.config import BackboneExpectationConfig, BackboneStudyConfig
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
from tools.lab.study.scoring import (
    Scores,
    Scoring,
    read_metrics_file,
    read_scores,
    train_and_score,
)
from tools.lab.study.training import (
    Run,
    chosen_seeds,
    count_parameters,
    curve_of,
    data_overrides,
    origins_table,
    override,
    planned_config,
)
from tools.lab.tables import markdown_table

SCORES = ("top1", "ap", "ap50")
NUM_CLASSES = 10
"""Classes of the classifier whose parameters are counted: those of Imagenette."""


@dataclass(frozen=True)
class BackboneRuns:
    """The two trainings of a backbone with one seed, and the evaluation of the detector."""

    backbone: str
    seed: int
    pretraining: Run
    detector: Run
    scoring: Scoring


@dataclass(frozen=True)
class Row:
    """Results of a backbone.

    scores: of each finished seed, by name, in percent. difference: of the detector's AP to that of
    the reference, mean over seeds, as a fraction; None for the reference, or if a run is missing.
    """

    backbone: str
    parameters: int
    num_runs: int
    scores: dict[str, list[float]]
    difference: Difference | None

    def mean(self, score: str) -> float | None:
        """Return a mean score over seeds; None if a run is not finished."""
        return complete_mean(self.scores[score], num_runs=self.num_runs)


@dataclass(frozen=True)
class BackboneReport:
    """Results of all runs that are finished so far."""

    rows: tuple[Row, ...]
    verdicts: tuple[Verdict[BackboneExpectationConfig], ...]
    reference: str

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings of the table."""
        scores = ("top-1 % of the classifier", "AP of the detector", "AP50")
        difference = f"AP minus that with {self.reference}, 95 % interval"
        return ("backbone", f"parameters with {NUM_CLASSES} classes", *scores, difference)

    def cells(self) -> list[tuple[str, ...]]:
        """Return the cells of each backbone, under `headings`."""
        return [
            (
                row.backbone,
                f"{row.parameters / 1e6:.2f} M",
                *(mean_and_spread(row.scores[name], num_runs=row.num_runs) for name in SCORES),
                "-" if row.difference is None else difference_text(row.difference),
            )
            for row in self.rows
        ]

    def table(self) -> Table:
        """Return the backbones and the expectations for the console."""
        title = "backbones of a detector"
        return results_table(self.headings, self.cells(), self.verdicts, title=title)


def plan_runs(
    scale: BackboneStudyConfig,
    *,
    configs: Path,
    output: Path,
    seeds: Sequence[int] | None = None,
    data: str | None = None,
) -> list[BackboneRuns]:
    """Return the runs of a scale, ordered by seed, then by backbone.

    Args:
        scale: backbones, trainings and seeds.
        configs: folder that the paths of configs are relative to.
        output: parent of the run folders.
        seeds: replaces the seeds of the scale.
        data: folder that holds the data sets; None is `data`.

    Raises:
        UserError: a config file is missing or invalid, or is not of the task that is meant.
    """
    folder = data or "data"
    planned = []
    for seed in chosen_seeds(scale.seeds, seeds):
        for backbone, changes in scale.backbones.items():
            common = [f"model.backbone.kind={backbone}", f"seed={seed}"]
            pretraining = Run(
                planned_config(
                    scale.pretraining,
                    [*common, *changes.pretraining],
                    configs=configs,
                    data=folder,
                ),
                output / f"{backbone}-pretraining-seed{seed}",
            )
            weights = override("model.backbone.weights", pretraining.folder / BACKBONE_FILE)
            overrides = [*common, *changes.detection, weights]
            tested = tuple(data_overrides(scale.test, data=folder))
            config, scored = (
                planned_config(scale.detection, [*overrides, *some], configs=configs, data=folder)
                for some in ((), tested)
            )
            detector = Run(config, output / f"{backbone}-detector-seed{seed}")
            _check_tasks(pretraining, detector)
            annotations = Path(scored.data.val.annotations)  # type: ignore[attr-defined]
            scoring = Scoring((detector,), tested, annotations, detector.folder / "test")
            planned.append(BackboneRuns(backbone, seed, pretraining, detector, scoring))
    return planned


def trainings_of(planned: Sequence[BackboneRuns]) -> list[Run]:
    """Return all trainings in the order in which they are run."""
    return [run for each in planned for run in (each.pretraining, each.detector)]


def run_study(
    scale: BackboneStudyConfig,
    planned: Sequence[BackboneRuns],
    *,
    output: Path,
    command: str,
    device: str | None = None,
) -> BackboneReport:
    """Train and evaluate what is not done; write report.md and curves.png.

    The report is rewritten after each training, so that an interrupted study has one too.

    Args:
        scale: the reference and the expected results.
        planned: the result of `plan_runs`.
        output: folder of the study.
        command: command line that the report names.
        device: as `--device`; None picks a GPU if there is one.

    Raises:
        UserError: data are missing, or a folder holds a run of another config.
        DivergedError: too many non-finite steps in a row.
        InterruptedRunError: Ctrl-C or SIGTERM; the same call resumes.
    """
    prepare_output(output)
    write = partial(write_report, scale, planned, output=output, command=command)
    pretrainings = {each.detector.name: each.pretraining for each in planned}

    def export(run: Run) -> None:
        if run.name in pretrainings:  # a detector: it starts from the exported backbone
            pretrained = pretrainings[run.name].folder
            metrics = read_metrics_file(pretrained)
            export_backbone(pretrained, metrics=metrics, device=device)

    return train_and_score(
        trainings_of(planned),
        [each.scoring for each in planned],
        write=write,
        device=device,
        before_each=export,
    )


def write_report(
    scale: BackboneStudyConfig, planned: Sequence[BackboneRuns], *, output: Path, command: str
) -> BackboneReport:
    """Write report.md and curves.png from what is done; the rest is "not run".

    Args:
        scale: the reference and the expected results.
        planned: the result of `plan_runs`.
        output: folder of the study.
        command: command line that the report names.

    Raises:
        UserError: a folder holds a run of another config, or a file of a run is damaged.
    """
    scored = {
        (each.backbone, each.seed): found
        for each in planned
        if (found := read_scores(each.scoring)) is not None
    }
    rows = tuple(
        _row(backbone, planned, scored, reference=scale.reference)
        for backbone in dict.fromkeys(each.backbone for each in planned)
    )
    verdicts = check_expectations(scale, rows)
    report = BackboneReport(rows, verdicts, scale.reference)
    prepare_output(output)
    _draw_curves(planned, output / "curves.png")
    write_file(output / "report.md", _markdown(report, planned, scored, command=command))
    return report


def check_expectations(
    scale: BackboneStudyConfig, rows: Sequence[Row]
) -> tuple[Verdict[BackboneExpectationConfig], ...]:
    """Compare mean scores over seeds with every expectation of a scale."""
    return tuple(
        verdict_on(each, {row.backbone: row.mean(each.score) for row in rows})
        for each in scale.expectations
    )


def _check_tasks(pretraining: Run, detector: Run) -> None:
    """Raise UserError unless the configs are of a classifier and a detector."""
    for run, schema in ((pretraining, ClassificationConfig), (detector, DetectionConfig)):
        if not isinstance(run.config, schema):
            expected, got = schema.model_fields["task"].default, run.config.task
            raise UserError(f"{run.name}: task: expected {expected}, got {got}")


def _row(
    backbone: str,
    planned: Sequence[BackboneRuns],
    scored: dict[tuple[str, int], Scores],
    *,
    reference: str,
) -> Row:
    """Return the results of a backbone's finished runs."""
    own = [each for each in planned if each.backbone == backbone]
    pretrained = [each for each in own if run_status(each.pretraining) == "done"]
    tested = [scored[backbone, each.seed] for each in own if (backbone, each.seed) in scored]
    scores = {
        "top1": [100 * curve_of(each.pretraining, "eval", "top1")[-1][1] for each in pretrained],
        **{name: [each.percent(name) for each in tested] for name in ("ap", "ap50")},
    }
    others = [scored[key] for each in own if (key := (reference, each.seed)) in scored]
    difference = None
    if backbone != reference and len(tested) == len(others) == len(own):
        groups = ([each.matches for each in group] for group in (others, tested))
        difference = mean_difference(*groups)["ap"]
    parameters = count_parameters(own[0].pretraining.config, num_classes=NUM_CLASSES)
    return Row(backbone, parameters, len(own), scores, difference)


def _markdown(
    report: BackboneReport,
    planned: Sequence[BackboneRuns],
    scored: dict[tuple[str, int], Scores],
    *,
    command: str,
) -> str:
    lines = ["# Backbones of a detector, pretrained alike", ""]
    lines += [markdown_table(report.headings, report.cells()), "", "![curves](curves.png)", ""]
    lines += verdict_lines(report.verdicts)
    steps = [run.config.loop.max_steps for run in trainings_of(planned)[:2]]
    images = next((len(each.matches.image_ids) for each in scored.values()), 0)
    lines += [
        f"Pretraining: {steps[0]} steps. Detector: {steps[1]} steps; AP on the test images"
        f"{f' ({images})' if images else ''}.",
        "Spread: standard deviation over seeds. Difference: that of the mean AP over seeds.",
        *RESAMPLING,
        "Verdicts compare means over seeds. Seconds: training time by the logged speed, without",
        "evaluations and checkpoints.",
        "",
        "| backbone | seed | top-1 % | AP | AP50 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in planned:
        found = scored.get((each.backbone, each.seed))
        done = run_status(each.pretraining) == "done"
        top1 = f"{100 * curve_of(each.pretraining, 'eval', 'top1')[-1][1]:.2f}" if done else "-"
        aps = ["-", "-"] if found is None else [f"{found.percent(x):.2f}" for x in SCORES[1:]]
        lines.append(f"| {' | '.join([each.backbone, str(each.seed), top1, *aps])} |")
    table = origins_table(trainings_of(planned))
    return "\n".join([*lines, "", f"Command: `{command}`", "", table, ""])


def _draw_curves(planned: Sequence[BackboneRuns], path: Path) -> None:
    """Draw the validation scores of both trainings over steps: a colour each backbone."""
    figure, (accuracy, precision) = make_panels(2, columns=2, size=5.0)
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(p.backbone for p in planned))}
    for each in planned:
        parts = ((accuracy, each.pretraining, "top1"), (precision, each.detector, "ap"))
        for axes, run, key in parts:
            if run_status(run) != "done":
                continue
            curve = curve_of(run, "eval", key)
            axes.plot(
                [step for step, _ in curve],
                [100 * value for _, value in curve],
                color=colors[each.backbone],
                marker="o",
                markersize=3,
                label=each.backbone if each.seed == planned[0].seed else None,
            )
    for axes, title in ((accuracy, "pretraining: top-1 (%)"), (precision, "detector: AP (%)")):
        axes.set_title(f"{title} on validation images")
        axes.set_xlabel("step")
        if axes.lines:
            axes.legend()
    save_figure(figure, path)
