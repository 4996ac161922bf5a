"""Dispatch of a command line to one of several subcommands, each a module with its own `main`."""

import sys
from collections.abc import Mapping
from importlib import import_module

from engine.errors import UserError

Subcommands = Mapping[str, tuple[str, str]]
"""For each subcommand, the module with its `main`, and a description."""


def help_text(program: str, commands: Subcommands) -> str:
    """Return the text of `PROGRAM --help`: one line for each subcommand."""
    width = max(map(len, commands))
    rows = [f"  {name:<{width}}  {description}" for name, (_, description) in commands.items()]
    more = f"Run `{program} COMMAND --help` for the options of a command."
    return "\n".join([f"usage: {program} COMMAND ...", "", *rows, "", more])


def run_subcommand(program: str, commands: Subcommands) -> None:
    """Run the subcommand that `sys.argv` names, or print the help text.

    Args:
        program: name of the command in messages, such as `resdet`.
        commands: the subcommands.

    Raises:
        UserError: the subcommand does not exist.
    """
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(help_text(program, commands) + "\n")
        return
    if name not in commands:
        raise UserError(f"{program}: expected one of {', '.join(commands)}, got {name}")
    # each subcommand parses sys.argv itself; the first entry is the program name in its messages
    sys.argv = [f"{program} {name}", *rest]
    import_module(commands[name][0]).main()
