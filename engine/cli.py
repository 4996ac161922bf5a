"""What every command shares: its words, and how errors become one line and an exit code."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from engine.errors import DivergedError, InterruptedRunError, UserError


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Tell the paths on a command line from its `key=value` overrides."""
    paths = [Path(word) for word in words if "=" not in word]
    return paths, [word for word in words if "=" in word]


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command and exit: 0 done, 2 a mistake of the user's, 3 diverged, 130 interrupted."""
    try:
        main()
    except (UserError, DivergedError, InterruptedRunError) as error:
        sys.stderr.write(f"{'error' if isinstance(error, UserError) else 'stopped'}: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("stopped: interrupted\n")
        sys.exit(InterruptedRunError.exit_code)
    sys.exit(0)
