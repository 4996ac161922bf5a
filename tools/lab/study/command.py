"""The repro.py command: list the paper's tables and figures, or run one of the studies.

repro.py list, or repro.py run cifar-degradation --scale quick. Repeating a `run` command resumes an
interrupted training and skips finished ones.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli import CommandParser
from engine.errors import UserError
from tools.lab import REPOSITORY

if TYPE_CHECKING:
    from tools.lab.study.config import ReproConfig
    from tools.lab.study.training import Run

REPRO = REPOSITORY / "configs" / "repro.yaml"
VARIANTS = ("detector-additions", "cascade-stages", "strong-recipe")
STUDIES = ("cifar-degradation", "residual-backbone", *VARIANTS)


@dataclass(frozen=True)
class Study:
    """A study: its scales by name, and functions of a scale.

    plan: returns what is to be run. trainings: the trainings of a plan. run: trains what is not
    done, writes the report and returns it.
    """

    scales: dict[str, Any]
    plan: Callable[..., Any]
    trainings: "Callable[[Any], Sequence[Run]]"
    run: Callable[..., Any]


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(description="Reproduce the paper's tables and figures.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every table and figure: commands, cost, expected result")
    run = commands.add_parser("run", help="train the networks of a study and write its report")
    run.add_argument("study", choices=STUDIES)
    run.add_argument("--scale", default="quick", help="default: quick")
    run.add_argument("--seeds", type=int, nargs="+", help="default: the seeds of the scale")
    run.add_argument("--output", type=Path, help="default: runs/repro/STUDY-SCALE")
    run.add_argument(
        "--data",
        help="cifar-degradation: folder that holds cifar-10-batches-py (default: data.root of the "
        "configs); others: folder that holds the data sets (default: data)",
    )
    run.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    return parser


def main() -> None:
    """Parse the command line, load configs/repro.yaml, then list the figures or run a study."""
    arguments = make_parser().parse_args()

    from engine.log import make_console
    from tools.lab.study.config import load_repro

    # wide enough that no command of the list is cut
    config, show = load_repro(REPRO), make_console(width=160).print
    if arguments.command == "list":
        show(config.figures_table(), soft_wrap=False)
        return
    study = _study(arguments.study, config)
    if arguments.scale not in study.scales:
        expected = " or ".join(study.scales)
        raise UserError(f"--scale: expected {expected}, got {arguments.scale}")

    from tools.lab.study.training import plan_table

    scale = study.scales[arguments.scale]
    output = arguments.output or Path("runs/repro") / f"{arguments.study}-{arguments.scale}"
    plan = study.plan(
        scale,
        configs=REPRO.parent,
        output=output,
        seeds=arguments.seeds,
        data=arguments.data,
    )
    show(plan_table(study.trainings(plan)), soft_wrap=False)
    command = shlex.join(["python", "tools/repro.py", *sys.argv[1:]])
    report = study.run(scale, plan, output=output, command=command, device=arguments.device)
    show(report.table(), soft_wrap=False)
    show(f"report and figures: {output}")


def _study(name: str, config: "ReproConfig") -> Study:
    """Return one of STUDIES; imports only what it needs."""
    if name == "residual-backbone":
        from tools.lab.study import residual_backbone

        return Study(
            config.residual_backbone,
            residual_backbone.plan_runs,
            residual_backbone.trainings_of,
            residual_backbone.run_study,
        )
    if name in VARIANTS:
        from tools.lab.study import variants

        return Study(
            getattr(config, name.replace("-", "_")),
            variants.plan_study,
            lambda plan: plan.trainings,
            variants.run_study,
        )
    from tools.lab.study import cifar_report, cifar_runs

    return Study(config.cifar_degradation, cifar_runs.plan_runs, list, cifar_report.run_study)
