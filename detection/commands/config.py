"""Command `config`: list config keys, or print the resolved values of a config file.

Usage: resdet config [CONFIG | TASK] [key=value ...] [--search TEXT] [--list]
"""

import types
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from detection.commands.config_files import ALL_FOLDERS, CONFIGS, config_names, find_config
from detection.commands.schemas import ALL_SCHEMAS
from engine.cli import CommandParser, split_arguments
from engine.config_keys import key_elsewhere, key_paths
from engine.errors import UserError
from engine.paths import read_text
from engine.text import one_line

Row = tuple[str, str, str, str]
"""Key, type, default and meaning."""


def main() -> None:
    """Parse the command line, then print the keys of a task or the values of a config."""
    parser = CommandParser(
        description="Print every key of a TASK with its type, default and meaning, or the resolved "
        "values of a CONFIG as YAML, with a comment on each: a file, command line or default."
    )
    parser.add_argument(
        "positional",
        nargs="*",
        metavar="CONFIG | TASK | key=value",
        help="a YAML file, a name that --list prints, or one of "
        f"{', '.join(ALL_SCHEMAS)} (default: detection); then overrides",
    )
    parser.add_argument(
        "--search",
        metavar="TEXT",
        help="print only keys with these words in their name or meaning, of TASK or of all tasks",
    )
    parser.add_argument("--list", action="store_true", help="print the names of all configs")
    parsed = parser.parse_intermixed_args()
    names, overrides = split_arguments(parsed.positional)
    if len(names) > 1:
        raise UserError(f"command line: expected one CONFIG or TASK, got {names[0]} and {names[1]}")
    if parsed.list:
        _print_table(("config", "what it is"), map(_config_row, config_names(ALL_FOLDERS)))
    elif parsed.search is not None:
        _print_found(parsed.search, names, overrides)
    elif overrides or (names and str(names[0]) not in ALL_SCHEMAS):
        _print_values(names[0] if names else Path("detection"), overrides)
    else:
        task = str(names[0]) if names else "detection"
        _print_table(("key", "type", "default", "meaning"), rows_of(ALL_SCHEMAS[task]))


def _print_values(name: Path, overrides: list[str]) -> None:
    """Print the resolved values of a config file or a task as YAML, and what sets each."""
    from engine.config import dump_config, load_config, parse_config, value_origins
    from engine.log import make_console

    if str(name) in ALL_SCHEMAS:
        path, overrides = None, [f"task={name}", *overrides]
        config = parse_config({}, overrides, schemas=ALL_SCHEMAS, source="command line")
    else:
        path = find_config(name, others=ALL_SCHEMAS)
        config = load_config(path, overrides, schemas=ALL_SCHEMAS)
    text = dump_config(config, value_origins(config, path, overrides))
    make_console().print(text, highlight=False, markup=False, end="")


def _print_found(text: str, names: list[Path], overrides: list[str]) -> None:
    """Print the keys that a search finds, and the tasks that have them."""
    if overrides or (names and str(names[0]) not in ALL_SCHEMAS):
        got = overrides[0] if overrides else names[0]
        raise UserError(
            f"--search: expected one of {', '.join(ALL_SCHEMAS)}, or none to search all, got {got}"
        )
    tasks = [str(name) for name in names] or list(ALL_SCHEMAS)
    found = found_rows(text, tasks)
    titles = ("key", "type", "default", "meaning")
    if not found:
        hint = key_elsewhere(
            text, [path for task in tasks for path in key_paths(ALL_SCHEMAS[task])]
        )
        of = f" of {names[0]}" if names else ""
        raise UserError(
            f"--search: no key{of} has {text!r} in its name or meaning"
            f"{'' if hint is None else f'; {hint}'}"
        )
    if names:
        _print_table(titles, found)
        return
    which = ("all" if len(have) == len(tasks) else ", ".join(have) for have in found.values())
    _print_table((*titles, "tasks"), ((*row, have) for row, have in zip(found, which, strict=True)))


def found_rows(text: str, tasks: Sequence[str]) -> dict[Row, list[str]]:
    """Return the keys that have all words of `text` in their name or meaning, with their tasks.

    Case does not matter. Keys with a word in their name come first. A key whose type, default or
    meaning differs between tasks has several rows. Text without a word finds nothing.
    """
    words = text.lower().split()
    found: dict[Row, list[str]] = {}
    for task in tasks:
        for row in rows_of(ALL_SCHEMAS[task]):
            searched = f"{row[0]} {row[3]}".lower()
            if words and all(word in searched for word in words):
                found.setdefault(row, []).append(task)
    first = sorted(found, key=lambda row: not any(word in row[0] for word in words))
    return {row: found[row] for row in first}


def _config_row(name: str) -> tuple[str, str]:
    """Return the name of a config, and what the first paragraph of its header says."""
    lines = read_text(CONFIGS / f"{name}.yaml").splitlines()
    paragraph = takewhile(lambda line: line.startswith("# "), lines)
    return name, " ".join(line.removeprefix("# ") for line in paragraph)


def _print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Table

    from engine.log import make_console

    table = Table(*titles)
    table.columns[0].no_wrap = True  # keys are copied from the table
    for row in rows:
        table.add_row(*row)
    make_console(width=160).print(table, soft_wrap=False, markup=False)


def rows_of(schema: type[BaseModel], prefix: str = "") -> Iterator[Row]:
    """Yield (key, type, default, meaning) of every key; keys of a sub-config follow its own row."""
    for name, field in schema.model_fields.items():
        meaning = one_line(field.description or "")
        # sub-configs have no type or default of their own: their keys follow
        parts = _models_in(field.annotation)
        default = "" if parts and field.default is not None else _default_of(field)
        yield f"{prefix}{name}", "" if parts else _type_name(field.annotation), default, meaning
        for part in parts:
            yield from rows_of(part, f"{prefix}{name}.")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the config classes in a type: the type itself, or the members of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for member in get_args(annotation) for model in _models_in(member)]
    return []


def _type_name(annotation: Any) -> str:
    """Return a readable name of a type, in YAML's notation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:  # the values themselves
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(_type_name(member) for member in arguments)
    if origin is tuple:
        # tuple[int, ...] becomes [int, ...]
        members = [_type_name(member) for member in arguments if member is not Ellipsis]
        return f"[{', '.join(members)}{', ...' if Ellipsis in arguments else ''}]"
    if origin is dict:
        return f"{{{': '.join(_type_name(member) for member in arguments)}}}"
    if hasattr(annotation, "__metadata__"):  # a type with limits, such as PositiveInt
        return _type_name(annotation.__origin__)
    # int, bool, Path ...; other forms as Python prints them
    return getattr(annotation, "__name__", str(annotation))


def _default_of(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, tuple):  # YAML has lists, no tuples
        return str([list(each) if isinstance(each, tuple) else each for each in value])
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
