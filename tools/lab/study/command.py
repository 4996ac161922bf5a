"""The paper's tables and figures: repro.py list, or repro.py run cifar-degradation --scale quick.

A run that was interrupted goes on by the same command, and one that is done is not trained again.
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
    parser = CommandParser(description="Make the paper's tables and figures again.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every table and figure: commands, cost, what to expect")
    run = commands.add_parser("run", help="train and report a study")
    run.add_argument("study", choices=["cifar-degradation"])
    run.add_argument("--scale", default="quick", help="quick (default) or paper")
    run.add_argument("--seeds", type=int, nargs="+", help="default: those of the scale")
    run.add_argument("--output", type=Path, help="default: runs/repro/cifar-degradation-SCALE")
    run.add_argument("--data", help="folder of cifar-10-batches-py (default: the configs')")
    run.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU when there is one)")
    return parser


def main() -> None:
    """Parse, load the file, then list or run."""
    arguments = make_parser().parse_args()

    from engine.log import make_console
    from tools.lab.study.config import load_repro

    config, show = load_repro(REPRO), make_console(width=160).print  # commands whole
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
    more = {"output": output, "seeds": arguments.seeds, "data": arguments.data}
    runs = plan_runs(scale, configs=REPRO.parent, **more)
    show(plan_table(runs), soft_wrap=False)
    command = shlex.join(["python", "tools/repro.py", *sys.argv[1:]])
    report = run_study(scale, runs, output=output, command=command, device=arguments.device)
    show(report.table(), soft_wrap=False)
    show(f"report and figures: {output}")
