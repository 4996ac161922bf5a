"""Command `config`: print all config keys of a task, or the resolved values of a config file.

Usage: resdet config [CONFIG | TASK] [key=value ...]
"""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from detection.commands.config_files import find_config
from detection.commands.schemas import ALL_SCHEMAS
from engine.cli import CommandParser, split_arguments
from engine.errors import UserError


def main() -> None:
    """Parse the command line, then print the keys of a task or the values of a config."""
    parser = CommandParser(
        description="Print every key of a TASK with its type, default and meaning, or the resolved "
        "values of a CONFIG."
    )
    parser.add_argument(
        "positional",
        nargs="*",
        metavar="CONFIG | TASK | key=value",
        help=f"a YAML file or one of {', '.join(ALL_SCHEMAS)} (default: detection), then overrides",
    )
    names, overrides = split_arguments(parser.parse_intermixed_args().positional)
    if len(names) > 1:
        raise UserError(f"command line: expected one CONFIG or TASK, got {names[0]} and {names[1]}")
    name = names[0] if names else Path("detection")

    from engine.log import make_console

    show = make_console(width=160).print
    if str(name) in ALL_SCHEMAS and not overrides:
        from rich.table import Table

        table = Table("key", "type", "default", "meaning")
        for row in rows_of(ALL_SCHEMAS[str(name)]):
            table.add_row(*row)
        show(table, soft_wrap=False, markup=False)
        return

    from engine.config import dump_config, load_config, parse_config

    if str(name) in ALL_SCHEMAS:
        config = parse_config(
            {"task": str(name)}, overrides, schemas=ALL_SCHEMAS, source="command line"
        )
    else:
        config = load_config(find_config(name), overrides, schemas=ALL_SCHEMAS)
    show(dump_config(config), highlight=False, markup=False, end="")


def rows_of(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield (key, type, default, meaning) of every key; keys of a sub-config follow its own row."""
    for name, field in schema.model_fields.items():
        meaning = " ".join((field.description or "").split())
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
