"""Report of the study of plain and residual networks on CIFAR-10.

It reproduces section 4.2 of the paper: Figures 1, 6 and 7, and Table 6. Errors are in percent here,
as in the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.table import Table

from backbones.plots import make_panels, save_figure
from engine.checkpoint import prepare_output
from engine.files import write_file
from engine.log import RunLog
from tools.lab.planned_runs import run_status
from tools.lab.study.cifar_runs import TAIL_FRACTION, Measurement, Run, measure
from tools.lab.study.config import ExpectationConfig, ScaleConfig
from tools.lab.study.expectations import (
    Verdict,
    complete_mean,
    mean_and_spread,
    results_table,
    verdict_lines,
    verdict_on,
)
from tools.lab.study.responses import draw_responses, measure_responses
from tools.lab.study.training import count_parameters, origins_table, train_runs
from tools.lab.tables import markdown_table

HEADINGS = (
    "network",
    "parameters",
    "steps",
    "training error %",
    "test error %",
    "the paper's %",
    "verdict",
)
NUM_CLASSES = 10
FEW_EVALUATIONS = 20
"""Curves with fewer evaluations get a dot at each: a single one would draw no line."""


@dataclass(frozen=True)
class Row:
    """Results of one network.

    parameters: their number. steps: length of a run. num_runs: planned runs, one per seed.
    measured: results of the finished runs, in the order of the seeds; may be empty.
    """

    network: str
    parameters: int
    steps: int
    num_runs: int
    measured: tuple[Measurement, ...]

    def errors(self, kind: str) -> list[float]:
        """Return the `train` or `test` error of each finished run, in percent."""
        return [
            100 * (each.train_error if kind == "train" else each.test_error)
            for each in self.measured
        ]

    def mean(self, kind: str) -> float | None:
        """Return the mean error; None if a run is not finished."""
        return complete_mean(self.errors(kind), num_runs=self.num_runs)

    def mean_and_spread(self, kind: str) -> str:
        """Return "mean +- standard deviation"; it also counts the runs if some are missing."""
        return mean_and_spread(self.errors(kind), num_runs=self.num_runs)


@dataclass(frozen=True)
class StudyReport:
    """Results of the study, of all runs that are finished so far."""

    rows: tuple[Row, ...]
    verdicts: tuple[Verdict[ExpectationConfig], ...]
    paper_errors: dict[str, float]

    def cells(self) -> list[tuple[str, ...]]:
        """Return the cells of each network, under HEADINGS."""
        return [
            (
                row.network,
                f"{row.parameters / 1e6:.2f} M",
                str(row.steps),
                row.mean_and_spread("train"),
                row.mean_and_spread("test"),
                f"{self.paper_errors[row.network]:.2f}"
                if row.network in self.paper_errors
                else "-",
                self._verdict_on(row),
            )
            for row in self.rows
        ]

    def table(self) -> Table:
        """Return the networks and the expectations for the console."""
        title = "plain and residual nets on CIFAR-10"
        return results_table(HEADINGS, self.cells(), self.verdicts, title=title)

    def _verdict_on(self, row: Row) -> str:
        """Return the outcome of the comparison with the paper's error, or "-" if it has none."""
        if row.network not in self.paper_errors:
            return "-"
        # The last one: all_expectations() puts the comparisons with the paper at the end.
        *_, outcome = (
            verdict.outcome
            for verdict in self.verdicts
            if (verdict.expectation.network, verdict.expectation.error) == (row.network, "test")
        )
        return outcome


def run_study(
    scale: ScaleConfig,
    runs: Sequence[Run],
    *,
    output: Path,
    command: str,
    device: str | None = None,
) -> StudyReport:
    """Train the runs that are not done; write report.md, figure6.png and figure7.png.

    The report is rewritten after each run, so that an interrupted study has one too.

    Args:
        scale: the expected results.
        runs: the result of `plan_runs`.
        output: folder of the study.
        command: command line that the report names.
        device: as `--device`; None picks a GPU if there is one.

    Raises:
        UserError: the images are missing, or a folder holds a run of another config.
        DivergedError: too many non-finite steps in a row.
        InterruptedRunError: Ctrl-C or SIGTERM; the same call resumes.
    """
    prepare_output(output)
    write = partial(write_report, scale, runs, output=output, command=command)
    train_runs(runs, device=device, after_each=write)
    log = RunLog(None, is_main=True)
    responses: dict[str, dict[str, float]] = {}
    for run in runs:
        if run.network not in responses:  # only the first seed of each network
            log.note(f"layer responses of {run.name}")
            responses[run.network] = measure_responses(run.folder, device=device)
    draw_responses(responses, output / "figure7.png")
    return write()


def write_report(
    scale: ScaleConfig, runs: Sequence[Run], *, output: Path, command: str
) -> StudyReport:
    """Write report.md and figure6.png from the runs that are done; the others are "not run".

    Args:
        scale: the expected results.
        runs: the result of `plan_runs`.
        output: folder of the study.
        command: command line that the report names.

    Raises:
        UserError: a folder holds a run of another config, or a log is damaged.
    """
    measured = {run.name: measure(run) for run in runs if run_status(run) == "done"}
    rows = []
    # dict.fromkeys: each network once, in the order of the runs
    for network in dict.fromkeys(run.network for run in runs):
        own = [run for run in runs if run.network == network]
        found = tuple(measured[run.name] for run in own if run.name in measured)
        steps = own[0].config.loop.max_steps
        rows.append(
            Row(
                network,
                count_parameters(own[0].config, num_classes=NUM_CLASSES),
                steps,
                len(own),
                found,
            )
        )
    report = StudyReport(tuple(rows), check_expectations(scale, rows), scale.paper_errors)
    prepare_output(output)
    text = _markdown(report, runs, command=command)
    write_file(output / "report.md", text)
    _draw_curves(rows, output / "figure6.png")
    return report


def check_expectations(
    scale: ScaleConfig, rows: Sequence[Row]
) -> tuple[Verdict[ExpectationConfig], ...]:
    """Compare mean errors over seeds with every expectation of a scale."""
    return tuple(
        verdict_on(each, {row.network: row.mean(each.error) for row in rows})
        for each in scale.all_expectations()
    )


def _markdown(report: StudyReport, runs: Sequence[Run], *, command: str) -> str:
    lines = ["# Plain and residual nets on CIFAR-10", ""]
    lines.append(markdown_table(HEADINGS, report.cells()))
    lines += [
        "",
        *verdict_lines(report.verdicts),
        f"Training error: mean over the last {TAIL_FRACTION:.0%} of a run's log lines, on the",
        "augmented minibatches of training. Test error: top-1 error of the final evaluation.",
        "Spread: standard deviation over seeds. Verdicts compare means over seeds. Seconds:",
        "training time from the logged speed, without evaluations and checkpoints.",
        "",
        f"Command: `{command}`",
        "",
    ]
    return "\n".join([*lines, origins_table(runs), ""])


def _draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw Figures 1 and 6: plain networks on the left, residual networks on the right.

    Only the first finished run of each network is drawn.
    """
    figure, panels = make_panels(2, columns=2, size=5.0)
    plain, residual = panels
    for row in rows:
        axes = plain if "plain" in row.network else residual
        for run in row.measured[:1]:
            steps, errors = _percent(run.test_curve)
            (bold,) = axes.plot(steps, errors, label=row.network, linewidth=2.0)
            if len(steps) < FEW_EVALUATIONS:
                bold.set_marker("o")
            steps, errors = _percent(run.train_curve)
            axes.plot(steps, errors, linestyle="--", linewidth=0.8, color=bold.get_color())
    # both panels share the scale of the error, so that they can be compared
    top = max(axes.get_ylim()[1] for axes in panels)
    for axes, title in zip(panels, ("plain", "residual"), strict=True):
        axes.set_title(f"{title}: test error bold, training error dashed")
        axes.set_xlabel("step")
        axes.set_ylabel("error (%)")
        axes.set_ylim(0, top)
        if axes.lines:
            axes.legend()
    save_figure(figure, path)


def _percent(curve: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Return steps and errors in percent."""
    return [step for step, _ in curve], [100 * error for _, error in curve]
