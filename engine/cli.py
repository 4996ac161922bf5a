"""What every command shares: how errors become one line and an exit code."""

import sys
from collections.abc import Callable
from typing import NoReturn

from engine.errors import DivergedError, InterruptedRunError, UserError


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
