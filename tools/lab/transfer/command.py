"""The transfer.py command: train all four tasks from one backbone and from random weights.

transfer.py BACKBONE [key=value ...] [--output DIR]. Runs four short trainings with the backbone
and four from random weights, and writes one table and one image. Repeating the command resumes an
interrupted training and skips finished ones.
"""

from pathlib import Path

from engine.cli import CommandParser, split_arguments
from engine.errors import UserError
from tools.lab import REPOSITORY

TRANSFER = REPOSITORY / "configs" / "transfer.yaml"


def main() -> None:
    """Parse the command line, plan and train the runs, and print the table."""
    parser = CommandParser(description="Compare a backbone with random weights on all four tasks.")
    parser.add_argument(
        "positional",
        nargs="+",
        metavar="BACKBONE | key=value",
        help="a weights file, then overrides of all configs, or of one: detection.loop.max_steps=9",
    )
    parser.add_argument(
        "--config", type=Path, default=TRANSFER, help="default: configs/transfer.yaml"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/transfer"), help="default: %(default)s"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    arguments = parser.parse_intermixed_args()
    files, overrides = split_arguments(arguments.positional)
    if len(files) != 1:
        raise UserError(f"command line: expected one BACKBONE, got {len(files)}")

    from engine.log import make_console
    from tools.lab.transfer.trials import plan_trials, run_trials

    (backbone,), output = files, arguments.output
    trials = plan_trials(arguments.config, backbone, output=output, overrides=overrides)
    table = run_trials(trials, output=output, backbone=backbone, device=arguments.device)
    show = make_console().print
    show(table, soft_wrap=False)
    show(f"report and image: {output}")
