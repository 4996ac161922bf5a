"""The repro.py command: list the paper's tables and figures, or run the CIFAR-10 depth study.

repro.py list, or repro.py run cifar-degradation --scale quick. Repeating a `run` command resumes an
interrupted training and skips finished ones.
"""

import shlex
import sys
from pathlib import Path

from engine.cli import CommandParser
from engine.errors import UserError
from tools.lab import REPOSITORY

REPRO = REPOSITORY / "configs" / "repro.yaml"


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(description="Reproduce the paper's tables and figures.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every table and figure: commands, cost, expected result")
    run = commands.add_parser("run", help="train the networks of a study and write its report")
    run.add_argument("study", choices=["cifar-degradation"])
    run.add_argument("--scale", default="quick", help="quick (default) or paper")
    run.add_argument("--seeds", type=int, nargs="+", help="default: the seeds of the scale")
    run.add_argument("--output", type=Path, help="default: runs/repro/cifar-degradation-SCALE")
    run.add_argument(
        "--data", help="folder that holds cifar-10-batches-py (default: data.root of the configs)"
    )
    run.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    return parser


def main() -> None:
    """Parse the command line, load configs/repro.yaml, then list the figures or run the study."""
    arguments = make_parser().parse_args()

    from engine.log import make_console
    from tools.lab.study.config import load_repro

    # wide enough that no command of the list is cut
    config, show = load_repro(REPRO), make_console(width=160).print
    if arguments.command == "list":
        show(config.figures_table(), soft_wrap=False)
        return
    scales = config.cifar_degradation
    if arguments.scale not in scales:
        raise UserError(f"--scale: expected {' or '.join(scales)}, got {arguments.scale}")

    from tools.lab.study.report import plan_table, run_study
    from tools.lab.study.runs import plan_runs

    scale = scales[arguments.scale]
    output = arguments.output or Path("runs/repro") / f"{arguments.study}-{arguments.scale}"
    runs = plan_runs(
        scale,
        configs=REPRO.parent,
        output=output,
        seeds=arguments.seeds,
        data=arguments.data,
    )
    show(plan_table(runs), soft_wrap=False)
    command = shlex.join(["python", "tools/repro.py", *sys.argv[1:]])
    report = run_study(scale, runs, output=output, command=command, device=arguments.device)
    show(report.table(), soft_wrap=False)
    show(f"report and figures: {output}")
