"""What every command shares: its words, and how errors become one line and an exit code."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from engine.errors import DisagreementError, DivergedError, InterruptedRunError, UserError

SPIN_COUNT = 3000
"""How often a thread of OpenMP looks whether there is work before it sleeps, in commands. libgomp's
own 300,000 keep cores, for milliseconds each, from those who have work: other processes and, where
these are many, the thread that all wait for. Measured by `benchmark.py busy` (docs/LOG.md)."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"command line: {message}; {self.prog} --help tells more")


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Tell the paths on a command line from its `key=value` overrides.

    A path may hold "=" where it exists: folders are called after settings.
    """
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    return [Path(word) for word in words if word not in overrides], overrides


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0 done, 2 a mistake of the user's, others as engine.errors says."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))  # read when torch is loaded
    try:
        main()
    except (UserError, DivergedError, DisagreementError, InterruptedRunError) as error:
        sys.stderr.write(f"{'error' if isinstance(error, UserError) else 'stopped'}: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("stopped: interrupted\n")
        sys.exit(InterruptedRunError.exit_code)
    sys.exit(0)


@dataclass(frozen=True)
class TrainingWords:
    """The command line of a training: CONFIG, `key=value` ..., `--output`, `--resume`, `--device`.

    is_main: whether this is the only process, or the first of those that torchrun started.
    """

    config: Path
    overrides: list[str]
    output: Path
    resume: bool
    device: str | None
    is_main: bool


def parse_training(description: str, *, default: Path) -> TrainingWords:
    """Read the command line of a training; without CONFIG it trains `default`.

    A resumed run without CONFIG takes the config that lies in its folder.

    Raises:
        UserError: two configs, a run folder around the working directory, or `--resume` without a
            checkpoint to resume from.
    """
    parser = CommandParser(description=description)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value",
        help="a YAML file (default: the demo's), then changes to it such as optim.lr=0.01",
    )
    parser.add_argument("--output", type=Path, help="run folder (default: runs/<name of CONFIG>)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU when there is one)")
    arguments = parser.parse_intermixed_args()
    files, overrides = split_words(arguments.words)
    if len(files) > 1:
        raise UserError(f"command line: expected one config, got {files[0]} and {files[1]}")
    config = files[0] if files else default
    output = arguments.output or Path("runs") / config.stem
    if Path.cwd().is_relative_to(output.resolve()):
        raise UserError(f"--output: expected a folder for this run alone, got {output.resolve()}")
    if arguments.resume and not files and (output / "config.yaml").is_file():
        config = output / "config.yaml"
    if arguments.resume and not list(output.glob("checkpoints/step_*.pt")):
        raise UserError(f"--resume: expected checkpoints in {output / 'checkpoints'}, got none")
    is_main = os.environ.get("RANK", "0") == "0"  # torchrun's; the processes meet in fit
    return TrainingWords(config, overrides, output, arguments.resume, arguments.device, is_main)
