"""The console script `resdet`: one subcommand for each command of this package."""

import sys
from importlib import import_module
from typing import NoReturn

from engine.cli import run_command
from engine.errors import UserError

COMMANDS = {
    "train": ("detection.commands.train", "train a detector or localizer"),
    "eval": ("detection.commands.evaluate", "score a trained model, or a COCO results file"),
    "pretrain": ("detection.commands.pretrain", "train a classifier: a backbone for detectors"),
    "predict": ("detection.commands.predict", "find objects in images"),
    "compare": ("detection.commands.compare", "print the scores of runs side by side"),
    "config": ("detection.commands.config", "print every key, or the values of a config"),
    "data": ("detection.commands.data", "download data sets, or convert them to COCO JSON"),
}
"""Name: the module with its `main`, and what it does."""


def help_text() -> str:
    """Return what `resdet --help` prints."""
    rows = [f"  {name:<9} {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        ["usage: resdet COMMAND ...", "", *rows, "", "resdet COMMAND --help describes a command."]
    )


def main() -> None:
    """Run the subcommand that the command line names.

    Raises:
        UserError: there is no such subcommand.
    """
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(help_text() + "\n")
        return
    if name not in COMMANDS:
        raise UserError(f"resdet: expected one of {', '.join(COMMANDS)}, got {name}")
    sys.argv = [f"resdet {name}", *rest]
    import_module(COMMANDS[name][0]).main()


def run() -> NoReturn:
    """Run `main` and exit, as the console script does."""
    run_command(main)
