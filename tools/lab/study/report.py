"""Report of the study of plain and residual networks on CIFAR-10.

It reproduces section 4.2 of the paper: Figures 1, 6 and 7, and Table 6. Errors are in percent here,
as in the paper.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from backbones.classification.model import build_network
from backbones.plots import make_panels, save_figure
from engine.checkpoint import prepare_output
from engine.files import write_file
from engine.log import RunLog
from tools.lab.planned_runs import run_status
from tools.lab.study.config import ExpectationConfig, ScaleConfig
from tools.lab.study.responses import draw_responses, measure_responses
from tools.lab.study.runs import TAIL_FRACTION, Measurement, Run, measure, train_run
from tools.lab.tables import console_table, markdown_table

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
        errors = self.errors(kind)
        return statistics.fmean(errors) if len(errors) == self.num_runs else None

    def mean_and_spread(self, kind: str) -> str:
        """Return "mean +- standard deviation"; it also counts the runs if some are missing."""
        errors = self.errors(kind)
        if not errors:
            return "not run"
        spread = f"+- {statistics.stdev(errors):.2f}" if len(errors) > 1 else "(one seed)"
        missing = f", {len(errors)} of {self.num_runs} runs" if len(errors) < self.num_runs else ""
        return f"{statistics.fmean(errors):.2f} {spread}{missing}"


@dataclass(frozen=True)
class Verdict:
    """An expectation and the measured value, which is None if a run is missing."""

    expectation: ExpectationConfig
    value: float | None

    @property
    def outcome(self) -> str:
        """PASS, FAIL or "not run"."""
        if self.value is None:
            return "not run"
        return "PASS" if self.expectation.holds(self.value) else "FAIL"

    def line(self) -> str:
        """Return subject, bound, measured value and outcome."""
        text = f"{self.expectation.subject}: wanted {self.expectation.bound}"
        measured = "" if self.value is None else f", measured {self.value:.2f}"
        return f"{text}{measured}: {self.outcome}"


@dataclass(frozen=True)
class StudyReport:
    """Results of the study, of all runs that are finished so far."""

    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
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
        lines = "\n".join(verdict.line() for verdict in self.verdicts)
        title = "plain and residual nets on CIFAR-10"
        return console_table(HEADINGS, self.cells(), title=title, caption=lines)

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
    log = RunLog(None, is_main=True)
    left = [run for run in runs if run_status(run) != "done"]
    prepare_output(output)
    for number, run in enumerate(left, start=1):
        log.note(f"run {number} of {len(left)}: {run.name}")
        train_run(run, device=device)
        write_report(scale, runs, output=output, command=command)
    responses: dict[str, dict[str, float]] = {}
    for run in runs:
        if run.network not in responses:  # only the first seed of each network
            log.note(f"layer responses of {run.name}")
            responses[run.network] = measure_responses(run.folder, device=device)
    draw_responses(responses, output / "figure7.png")
    return write_report(scale, runs, output=output, command=command)


def plan_table(runs: Sequence[Run]) -> Table:
    """Return each run and its status, for the console.

    Raises:
        UserError: a folder holds a run of another config.
    """
    rows = [(run.name, str(run.config.loop.max_steps), run_status(run)) for run in runs]
    done = sum(status == "done" for _, _, status in rows)
    title = f"{done} runs done, {len(runs) - done} left"
    return console_table(("run", "steps", "state"), rows, title=title)


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
        rows.append(Row(network, _count_parameters(own[0]), steps, len(own), found))
    report = StudyReport(tuple(rows), check_expectations(scale, rows), scale.paper_errors)
    prepare_output(output)
    text = _markdown(report, measured, runs, command=command)
    write_file(output / "report.md", text)
    _draw_curves(rows, output / "figure6.png")
    return report


def check_expectations(scale: ScaleConfig, rows: Sequence[Row]) -> tuple[Verdict, ...]:
    """Compare mean errors over seeds with every expectation of a scale."""
    by_network = {row.network: row for row in rows}
    verdicts = []
    for expectation in scale.all_expectations():
        value = by_network[expectation.network].mean(expectation.error)
        if expectation.above is not None and value is not None:
            other = by_network[expectation.above].mean(expectation.error)
            # a difference needs both networks
            value = None if other is None else value - other
        verdicts.append(Verdict(expectation, value))
    return tuple(verdicts)


def _count_parameters(run: Run) -> int:
    backbone = run.config.model.backbone
    with torch.device("meta"):  # counts parameters without allocating them
        network = build_network(
            backbone.kind,
            num_classes=NUM_CLASSES,
            norm=backbone.norm,
            shortcut=backbone.shortcut,
        )
    return sum(parameter.numel() for parameter in network.parameters())


def _markdown(
    report: StudyReport, measured: dict[str, Measurement], runs: Sequence[Run], *, command: str
) -> str:
    lines = ["# Plain and residual nets on CIFAR-10", ""]
    lines.append(markdown_table(HEADINGS, report.cells()))
    lines += ["", *(f"- {verdict.line()}" for verdict in report.verdicts)]
    if report.verdicts:
        lines.append("")
    lines += [
        f"Training error: mean over the last {TAIL_FRACTION:.0%} of a run's log lines, on the",
        "augmented minibatches of training. Test error: top-1 error of the final evaluation.",
        "Spread: standard deviation over seeds. Verdicts compare means over seeds. Seconds:",
        "training time from the logged speed, without evaluations and checkpoints.",
        "",
        f"Command: `{command}`",
        "",
    ]
    origins = []
    for run in runs:
        found = measured.get(run.name)
        cells = ("not run", "-") if found is None else (f"{found.seconds:.1f}", found.origin)
        origins.append((run.name, *cells))
    headings = ("run", "seconds of training", "machine, torch and commit")
    return "\n".join([*lines, markdown_table(headings, origins), ""])


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
