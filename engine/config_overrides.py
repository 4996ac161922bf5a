"""Command-line overrides of config keys: `a.b.c=value`.

The schema decides how a value is parsed. Values of text keys are taken literally, so `set #2`,
`1e3` and `&x` are plain text; all other values are YAML.
"""

import json
from contextlib import suppress
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from engine.errors import UserError
from engine.text import printable
from engine.yaml_text import MAX_DEPTH, parse_yaml

_NOTHING = ("", "~", "null", "Null", "NULL")
_MAX_SHOWN = 60


class _Kind(NamedTuple):
    """Type of a key: free text, a choice of given texts, a list of either, or other (YAML)."""

    base: Literal["text", "choice", "list", "other"]
    optional: bool = False


def read_override(override: str, *, schema: type[BaseModel]) -> dict[str, Any]:
    """Return `a.b.c=value` as {a: {b: {c: value}}}.

    Quoted text is unquoted as YAML or JSON would, so that quotes added by shells and programs work.
    For optional keys, `null`, `~` and an empty value are None.

    Args:
        override: as on the command line.
        schema: of the whole config.

    Raises:
        UserError: no `=`, no key, or a value that is not valid YAML where YAML is expected.
    """
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names) or len(names) > MAX_DEPTH:
        shown = printable(override[:_MAX_SHOWN])
        raise UserError(f"command line: expected key=value, got {shown}")
    value = _read(text, _kind_at(schema, names), key=key.strip()[:_MAX_SHOWN])
    for name in reversed(names):
        value = {name: value}
    return dict(value)


def task_override(override: str) -> str | None:
    """Return the value of an override of `task`; None if it sets another key."""
    key, equals, text = override.partition("=")
    return _unquoted(text.strip()) if equals and key.strip() == "task" else None


def _read(text: str, kind: _Kind, *, key: str) -> Any:
    bare = text.strip()
    if kind.optional and bare in _NOTHING:
        return None
    if kind.base == "choice":
        return _unquoted(bare)
    if kind.base == "text":
        unquoted = _unquoted(bare)
        return text if unquoted == bare else unquoted
    try:
        scalars: Literal["text", "typed"] = "text" if kind.base == "list" else "typed"
        return parse_yaml(text, source=f"command line: {key}", scalars=scalars)
    except UserError as error:
        raise UserError(f"{error}, got {printable(text[:_MAX_SHOWN])}") from error


def _unquoted(text: str) -> str:
    """Return the content of quoted text; other text is returned unchanged."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "\"'":
        return text
    if text[0] == '"':
        with suppress(ValueError):  # YAML, tried next, has more escapes than JSON
            return str(json.loads(text))
    try:
        value = parse_yaml(text, source="")
    except UserError:
        return text
    return value if isinstance(value, str) else text


def _kind_at(schema: type[BaseModel], names: list[str]) -> _Kind:
    """Return the type of the key at a dotted path; `other` if it does not exist."""
    annotation: Any = schema
    for name in names:
        plain, _ = _plain(annotation)
        if isinstance(plain, type) and issubclass(plain, BaseModel) and name in plain.model_fields:
            annotation = plain.model_fields[name].annotation
        elif get_origin(plain) is dict:
            annotation = get_args(plain)[1]
        else:
            return _Kind("other")
    return _kind_of(annotation)


def _kind_of(annotation: Any) -> _Kind:
    plain, optional = _plain(annotation)
    if plain is str:
        return _Kind("text", optional)
    if get_origin(plain) is Literal and all(isinstance(choice, str) for choice in get_args(plain)):
        return _Kind("choice", optional)
    if get_origin(plain) in (tuple, list):
        element = _kind_of(get_args(plain)[0]).base
        return _Kind("list" if element in ("text", "choice") else "other", optional)
    return _Kind("other", optional)


def _plain(annotation: Any) -> tuple[Any, bool]:
    """Return a type without `Annotated` and without `None`, and whether it included None."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    kinds = get_args(annotation)
    if type(None) not in kinds or len(kinds) != 2:  # neither `X | None` nor `Optional[X]`
        return annotation, False
    (other,) = (kind for kind in kinds if kind is not type(None))
    return _plain(other)[0], True
