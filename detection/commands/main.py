"""Console script `resdet`, with one subcommand for each command of this package."""

import sys
from importlib import import_module
from typing import NoReturn

from engine.cli import run_command
from engine.errors import UserError

COMMANDS = {
    "train": ("detection.commands.train", "train a detector or localizer"),
    "eval": ("detection.commands.evaluate", "evaluate a trained model, or a COCO results file"),
    "pretrain": ("detection.commands.pretrain", "train a classifier as a backbone for detectors"),
    "predict": ("detection.commands.predict", "detect objects in images"),
    "compare": ("detection.commands.compare", "print the scores of several runs in one table"),
    "config": ("detection.commands.config", "print all config keys, or the values of a config"),
    "data": ("detection.commands.data", "download data sets, or convert them to COCO JSON"),
}
"""For each subcommand, the module with its `main`, and a description."""


def help_text() -> str:
    """Return the text of `resdet --help`."""
    rows = [f"  {name:<9} {description}" for name, (_, description) in COMMANDS.items()]
    more = "Run `resdet COMMAND --help` for the options of a command."
    return "\n".join(["usage: resdet COMMAND ...", "", *rows, "", more])


def main() -> None:
    """Run the subcommand given on the command line.

    Raises:
        UserError: the subcommand does not exist.
    """
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(help_text() + "\n")
        return
    if name not in COMMANDS:
        raise UserError(f"resdet: expected one of {', '.join(COMMANDS)}, got {name}")
    # each command parses sys.argv itself; the first entry is the program name in its messages
    sys.argv = [f"resdet {name}", *rest]
    import_module(COMMANDS[name][0]).main()


def run() -> NoReturn:
    """Run `main` and exit with its exit code; the entry point of the console script."""
    run_command(main)
