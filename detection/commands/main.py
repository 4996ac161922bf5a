"""Console script `resdet`, with one subcommand for each command of this package."""

from typing import NoReturn

from detection.commands.subcommands import run_subcommand
from engine.cli import run_command

COMMANDS = {
    "train": ("detection.commands.train", "train a detector or localizer"),
    "eval": ("detection.commands.evaluate", "evaluate a trained model, or a COCO results file"),
    "pretrain": ("detection.commands.pretrain", "train a classifier as a backbone for detectors"),
    "predict": ("detection.commands.predict", "detect objects in images"),
    "export": ("detection.commands.export", "write a model to a file that runs on its own"),
    "report": ("detection.commands.report", "write a page on why the score is what it is"),
    "compare": ("detection.commands.compare", "print the scores of several runs in one table"),
    "config": ("detection.commands.config", "print all config keys, or the values of a config"),
    "data": ("detection.commands.data", "check, show, split, merge, convert or download data"),
}
"""For each subcommand, the module with its `main`, and a description."""


def main() -> None:
    """Run the subcommand given on the command line."""
    run_subcommand("resdet", COMMANDS)


def run() -> NoReturn:
    """Run `main` and exit with its exit code; the entry point of the console script."""
    run_command(main)
