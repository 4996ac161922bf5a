"""Command-line parsing that all commands share, and errors as one line and an exit code."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import InterruptedRunError, StoppedError, UserError
from engine.paths import exists, is_file, names_in, resolved
from engine.run_files import CONFIG_FILE
from engine.text import escape_unencodable_output, one_line, printable, shortened

_OVERRIDE = re.compile(r"[\w.]+=")
"""Start of a `key=value` override; a path may contain "=" too."""

_RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Environment variables in which torchrun and Slurm count the restarts of a job."""

SPIN_COUNT = 6000
"""Spin count of OpenMP's threads (GOMP_SPINCOUNT): polls for work before a thread sleeps.

libgomp's default of 300,000 blocks a core for milliseconds. Other processes lose that time; if
there are many, so does the thread that all others wait for. `benchmark.py busy` measures it."""


class CommandParser(argparse.ArgumentParser):
    """An argument parser with one-line errors, and paths that may start with `~/`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        """Raise UserError, which `run_command` prints, instead of printing the usage."""
        raise UserError(f"command line: {message}; see {self.prog} --help")


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split positional arguments into paths and `key=value` overrides.

    An argument with "=" is a path if it exists: users name folders after settings (`lr=0.01`).

    Returns:
        The paths, and the overrides, each in the given order.
    """
    overrides = [argument for argument in arguments if _is_override(argument)]
    return [Path(argument) for argument in arguments if argument not in overrides], overrides


def _is_override(argument: str) -> bool:
    if "=" not in argument:
        return False
    try:
        return not exists(argument)
    except UserError:  # for example too long for a path; reading the path reports it
        return _OVERRIDE.match(argument) is not None


def _path(text: str) -> Path:
    """Return a path argument with `~/` expanded: the shell does not in `--output=~/run`."""
    path = Path(text)
    if not text.startswith("~/") or exists(path):
        return path
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: no home folder is known") from error


def command_line(script: str, subcommand: str) -> str:
    """Return the command line of another command, called like this one.

    Args:
        script: its file name in tools/, without `.py`.
        subcommand: its name in the installed `resdet`.
    """
    installed = Path(sys.argv[0]).name.startswith("resdet")
    return f"resdet {subcommand}" if installed else f"python tools/{script}.py"


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0 done, 2 user error, other codes as in engine.errors.

    Unexpected system errors, such as a full disk under a redirected stdout, and a full GPU also
    give one line and exit code 2.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))  # read when torch is loaded
    # A notebook sets a backend for its plots. Where it is absent, matplotlib cannot be imported.
    os.environ.pop("MPLBACKEND", None)
    escape_unencodable_output()
    try:
        main()
        sys.stdout.flush()
        sys.exit(0)
    except (UserError, StoppedError) as error:
        kind = "error" if isinstance(error, UserError) else "stopped"
        sys.stderr.write(f"{kind}: {printable(shortened(str(error)))}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("stopped: interrupted\n")
        sys.exit(InterruptedRunError.exit_code)
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        sys.exit(UserError.exit_code)
    except RuntimeError as error:
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        advice = "choose a smaller loop.batch_size or smaller images"
        sys.stderr.write(f"error: {printable(shortened(one_line(error)))}; {advice}\n")
        sys.exit(UserError.exit_code)
    except OSError as error:
        what = "" if error.filename is None else f"{error.filename}: "
        sys.stderr.write(f"error: {printable(f'{what}{error.strerror or error}')}\n")
        sys.exit(UserError.exit_code)
    finally:
        _flush()


def _flush() -> None:
    """Flush stdout; drop its content if that fails.

    Otherwise Python would flush again at exit and print its own error.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class TrainingArguments:
    """Parsed arguments of a training command.

    config: the YAML file. overrides: `key=value` changes to it. output: the run folder.
    resume: resume from the newest checkpoint in it. auto_resume: resume if the folder has a
    checkpoint of the same config; set by `--auto-resume`, or after a restart by torchrun or Slurm.
    device: as `--device`; None picks a GPU if there is one. is_main: whether this is the only
    process, or rank 0 of those that torchrun started.
    """

    config: Path
    overrides: list[str]
    output: Path
    resume: bool
    auto_resume: bool
    device: str | None
    is_main: bool


def parse_training(description: str, *, default: Path) -> TrainingArguments:
    """Parse `sys.argv` of a training command.

    Args:
        description: first line of `--help`.
        default: the config if none is given. A resumed run without CONFIG uses the config.yaml of
            its run folder instead.

    Raises:
        UserError: two configs, a run folder that contains the working directory, or `--resume`
            without a checkpoint.
    """
    parser = CommandParser(description=description)
    parser.add_argument(
        "positional",
        nargs="*",
        metavar="CONFIG | key=value",
        help="a YAML file or the name of an installed config (default: the demo's), and overrides "
        "such as optim.lr=0.01",
    )
    parser.add_argument("--output", type=Path, help="run folder (default: runs/<name of CONFIG>)")
    parser.add_argument("--resume", action="store_true", help="resume from the newest checkpoint")
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="resume if the run folder has a checkpoint of this config, otherwise start; this is "
        "the default after a restart by torchrun --max-restarts or Slurm",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parsed = parser.parse_intermixed_args()
    files, overrides = split_arguments(parsed.positional)
    if len(files) > 1:
        raise UserError(f"command line: expected one config, got {files[0]} and {files[1]}")
    config = files[0] if files else default
    output = parsed.output or Path("runs") / config.stem
    if resolved(".").is_relative_to(resolved(output)):
        raise UserError(
            f"--output: expected a folder for this run only, got {resolved(output)}, which "
            "contains the working directory"
        )
    if parsed.resume and not files and is_file(output / CONFIG_FILE):
        config = output / CONFIG_FILE
    if parsed.resume and not names_in(output / "checkpoints", "step_*.pt"):
        raise UserError(f"--resume: expected checkpoints in {output / 'checkpoints'}, got none")

    from engine.distributed import is_main_process  # imported late: it loads torch

    restarts = (os.environ.get(name, "0") for name in _RESTARTS)
    return TrainingArguments(
        config=config,
        overrides=overrides,
        output=output,
        resume=parsed.resume,
        auto_resume=parsed.auto_resume or any(count != "0" for count in restarts),
        device=parsed.device,
        is_main=is_main_process(),
    )
