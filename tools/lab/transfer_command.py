"""What a backbone is worth for each task: transfer.py BACKBONE [key=value ...] [--output DIR].

Four short trainings on it and four from random weights, one table and one image. The same command
goes on where it was interrupted.
"""

from pathlib import Path

from engine.cli import CommandParser, split_arguments
from engine.errors import UserError

TRANSFER = Path(__file__).resolve().parents[2] / "configs" / "transfer.yaml"


def main() -> None:
    """Parse, plan, train, show the table."""
    parser = CommandParser(description="Try one backbone on all four tasks.")
    parser.add_argument(
        "words",
        nargs="+",
        metavar="BACKBONE | key=value",
        help="file of weights, then changes to all configs, or to one: detection.loop.max_steps=9",
    )
    parser.add_argument("--config", type=Path, default=TRANSFER, help="default: the demo's trials")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/transfer"), help="default: %(default)s"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU when there is one)")
    arguments = parser.parse_intermixed_args()
    files, overrides = split_arguments(arguments.words)
    if len(files) != 1:
        raise UserError(f"command line: expected one BACKBONE, got {len(files)}")

    from engine.log import make_console
    from tools.lab.transfer import plan_trials, run_trials

    (backbone,), output = files, arguments.output
    trials = plan_trials(arguments.config, backbone, output=output, overrides=overrides)
    table = run_trials(trials, output=output, backbone=backbone, device=arguments.device)
    show = make_console().print
    show(table, soft_wrap=False)
    show(f"report and image: {output}")
