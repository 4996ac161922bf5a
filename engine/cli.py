"""What every command shares: its words, and how errors become one line and an exit code."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import DisagreementError, DivergedError, InterruptedRunError, UserError
from engine.paths import exists, is_file, names_in, resolved
from engine.text import escape_unencodable_output, printable, shortened

_OVERRIDE = re.compile(r"[\w.]+=")
"""How an override begins, where a path may hold "=" too."""

_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Environment variables that say how often torchrun or Slurm has started this job again."""

SPIN_COUNT = 6000
"""How often a thread of OpenMP looks whether there is work before it sleeps, in commands. libgomp's
own 300,000 keep cores, for milliseconds each, from those who have work: other processes and, where
these are many, the thread that all wait for. `benchmark.py busy` measures it."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are; its paths may begin with `~/`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"command line: {message}; {self.prog} --help tells more")


def split_arguments(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Tell the paths on a command line from its `key=value` overrides.

    A path may hold "=" where it exists: folders are called after settings.
    """
    overrides = [word for word in words if _is_override(word)]
    return [Path(word) for word in words if word not in overrides], overrides


def _is_override(word: str) -> bool:
    if "=" not in word:
        return False
    try:
        return not exists(word)
    except UserError:  # too long for a path, say; whoever reads the path will tell
        return _OVERRIDE.match(word) is not None


def _path(text: str) -> Path:
    """Return a path of the command line: the shell leaves `~` alone in `--output=~/run`."""
    path = Path(text)
    if not text.startswith("~/") or exists(path):
        return path
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: no home folder is known") from error


def command_line(script: str, subcommand: str) -> str:
    """Return how another command is called, in the way in which this one was."""
    installed = Path(sys.argv[0]).name.startswith("resdet")
    return f"resdet {subcommand}" if installed else f"python tools/{script}.py"


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0 done, 2 a mistake of the user's, others as engine.errors says.

    What the system refuses where nobody expected it, such as a full disk under the console's file,
    is one line with exit code 2 too.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))  # read when torch is loaded
    escape_unencodable_output()
    try:
        main()
        sys.stdout.flush()
        sys.exit(0)
    except (UserError, DivergedError, DisagreementError, InterruptedRunError) as error:
        kind = "error" if isinstance(error, UserError) else "stopped"
        sys.stderr.write(f"{kind}: {printable(shortened(str(error)))}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("stopped: interrupted\n")
        sys.exit(InterruptedRunError.exit_code)
    except BrokenPipeError:  # whoever read the output, such as `head`, has had enough
        sys.exit(UserError.exit_code)
    except OSError as error:
        what = "" if error.filename is None else f"{error.filename}: "
        sys.stderr.write(f"error: {printable(f'{what}{error.strerror or error}')}\n")
        sys.exit(UserError.exit_code)
    finally:
        _flush()


def _flush() -> None:
    """Write out what the console still has to get; what it does not take is dropped.

    Python would try once more at its end, and complain in lines of its own.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class TrainingArguments:
    """The command line of a training: CONFIG, `key=value` ..., `--output`, `--resume`, `--device`.

    auto_resume: go on where the folder has a checkpoint of the same config: asked for, or started
    again by torchrun or Slurm. is_main: whether this is the only process, or the first of those
    that torchrun started.
    """

    config: Path
    overrides: list[str]
    output: Path
    resume: bool
    auto_resume: bool
    device: str | None
    is_main: bool


def parse_training(description: str, *, default: Path) -> TrainingArguments:
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
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="go on where DIR has a checkpoint of this config, else start; so does a run that "
        "torchrun --max-restarts or Slurm starts again",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU when there is one)")
    arguments = parser.parse_intermixed_args()
    files, overrides = split_arguments(arguments.words)
    if len(files) > 1:
        raise UserError(f"command line: expected one config, got {files[0]} and {files[1]}")
    config = files[0] if files else default
    output = arguments.output or Path("runs") / config.stem
    if resolved(".").is_relative_to(resolved(output)):
        raise UserError(f"--output: expected a folder for this run alone, got {resolved(output)}")
    if arguments.resume and not files and is_file(output / "config.yaml"):
        config = output / "config.yaml"
    if arguments.resume and not names_in(output / "checkpoints", "step_*.pt"):
        raise UserError(f"--resume: expected checkpoints in {output / 'checkpoints'}, got none")

    from engine.distributed import is_main_process  # after the words are checked: it loads torch

    restarts = (os.environ.get(name, "0") for name in _RESTARTS)
    return TrainingArguments(
        config=config,
        overrides=overrides,
        output=output,
        resume=arguments.resume,
        auto_resume=arguments.auto_resume or any(count != "0" for count in restarts),
        device=arguments.device,
        is_main=is_main_process(),
    )
