"""Config files: YAML with `base` files and dotted overrides, validated by a pydantic schema.

Every mistake is a one-line `UserError`: where, key, expected, got, and the nearest valid key.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from engine.config_keys import RENAMED, unknown_key_message, with_current_names
from engine.config_overrides import read_override, task_override
from engine.errors import UserError
from engine.paths import open_file, resolved
from engine.schema import Config, expanded_path
from engine.text import printable
from engine.yaml_text import MAX_LENGTH, dump_yaml, parse_yaml

C = TypeVar("C", bound=Config)

MAX_ERRORS = 3
"""Errors shown in one message."""
MAX_BASES = 2
"""Files in a chain of `base` keys, besides the first."""
MAX_VALUE_LENGTH = 60
"""Characters of a value shown in a message."""
COMMAND_LINE = "command line"
DEFAULT = "default"
_UNSET = object()
_HINTS = {
    "string_type": "; in quotes it is text",
    "tuple_type": "; in brackets, [a, b], it is a list",
}
"""Hint about YAML syntax, by pydantic's error type."""


def load_config(
    path: Path | str, overrides: Sequence[str] = (), *, schemas: Mapping[str, type[C]]
) -> C:
    """Read a YAML file, its base files and overrides, and validate the result.

    Args:
        path: the file. Its key `base` may name another file, relative to it, whose values it
            overrides, or a list of files, of which a later one overrides an earlier one. A base may
            have bases too, in chains of at most MAX_BASES; no file comes twice.
        overrides: `a.b.c=value`, applied last. Values of text keys are taken literally, all
            others are YAML.
        schemas: schema for each value of the key `task`; the first one if the key is absent.

    Raises:
        UserError: a missing file, not a YAML mapping, too many bases, or a wrong key, type or
            value.
    """
    layers = _read_layers(Path(path))
    values: dict[str, Any] = {}
    for layer in reversed(layers.values()):  # the base first
        values = merged(values, with_current_names(layer)[0])
    return _validated(values, overrides, layers=layers, source=str(path), schemas=schemas)


def describe_config(path: Path | str, overrides: Sequence[str] = ()) -> str:
    """Return one log line with the config's files, the overrides, and keys with outdated names.

    Raises:
        UserError: a file cannot be read; as `load_config`.
    """
    layers = _read_layers(Path(path))
    changes = " ".join(_truncated(override) for override in overrides)
    found = {old for values in layers.values() for old in with_current_names(values)[1]}
    found |= {name for override in overrides if (name := override.partition("=")[0]) in RENAMED}
    renamed = "".join(f"; {old} is now called {RENAMED[old]}" for old in sorted(found))
    changed = f", with {changes}" if changes else ""
    return printable(f"config: {' over '.join(layers)}{changed}{renamed}")


def parse_config(
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    schemas: Mapping[str, type[C]],
    source: str,
) -> C:
    """Validate a config that is already a mapping, as stored in a checkpoint.

    Args:
        values: keys and values as in a YAML file, without `base`.
        overrides: as for `load_config`.
        schemas: schema for each value of the key `task`; the first one if the key is absent.
        source: where the values come from, for messages.

    Raises:
        UserError: not a mapping, or a wrong key, type or value.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: expected a mapping of keys, got {_format_value(values)}")
    return _validated(values, overrides, layers={}, source=source, schemas=schemas)


def dump_config(config: Config, comments: Mapping[str, str] | None = None) -> str:
    """Return the whole config, including defaults, as YAML that loads to an equal config.

    comments: by dotted key, such as its `value_origins`; written behind the values.
    """
    return dump_yaml(config.model_dump(mode="json"), comments or {})


def value_origins(
    config: Config, path: Path | str | None, overrides: Sequence[str] = ()
) -> dict[str, str]:
    """Return what sets each value of a config: a file, COMMAND_LINE or DEFAULT.

    Args:
        config: what `load_config` returned for the other two arguments.
        path: the file; None if there is none.
        overrides: changes to it.

    Returns:
        By dotted key. A list is one value, as is a section without keys.

    Raises:
        UserError: a file cannot be read; as `load_config`.
    """
    written: dict[str, Any] = {}
    for override in overrides:
        change = read_override(override, schema=type(config))
        written = merged(written, with_current_names(change)[0])
    files = {} if path is None else _read_layers(Path(path))
    layers = {COMMAND_LINE: written}
    layers |= {name: with_current_names(values)[0] for name, values in files.items()}
    keys = _leaves(config.model_dump(mode="json"), ())
    return {".".join(key): _set_by(layers, key) for key in keys}


def _leaves(values: Mapping[str, Any], prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the key of each value that is not a section with keys of its own."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*prefix, name))
        else:
            yield (*prefix, name)


def _set_by(layers: Mapping[str, Mapping[str, Any]], key: Sequence[str]) -> str:
    """Return the first layer that sets a value, DEFAULT if none does."""
    for name, values in layers.items():
        inner: Any = values
        for part in key:
            if not isinstance(inner, dict):  # it sets the section as a whole, such as `neck: null`
                return DEFAULT
            inner = inner.get(part, _UNSET)
            if inner is _UNSET:
                break
        else:
            return name
    return DEFAULT


def differences(old: Config, new: Config) -> list[str]:
    """Return a line `optim.lr: 0.02 -> 0.01` for each differing value; [] if there is none."""
    return list(_compare(old.model_dump(mode="json"), new.model_dump(mode="json"), ""))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated with `over`; mappings are merged recursively, other values replaced."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, dict):
            current = result.get(key)
            result[key] = merged(current if isinstance(current, dict) else {}, value)
        else:
            result[key] = value
    return result


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _compare(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {_format_value(before)} -> {_format_value(after)}"


def _read_layers(path: Path) -> dict[str, dict[str, Any]]:
    """Return the values of a config and its base files, by file name.

    Each overrides all that come after it: the config is first, then its last base with that one's
    bases, and so on.
    """
    layers: dict[str, dict[str, Any]] = {}
    _add_layers(layers, path, named_by=[])
    return layers


def _add_layers(layers: dict[str, dict[str, Any]], path: Path, *, named_by: Sequence[Path]) -> None:
    """Add a file and its bases to `layers`; `named_by` is the chain of files that leads to it."""
    values = _read_file(path, named_by=[str(each) for each in named_by])
    bases = _base_paths(values.pop("base", None), path)
    layers[str(path)] = values
    above = [*named_by, path]
    for base in reversed(bases):
        chain = " -> ".join(str(each) for each in (*above, base))
        if resolved(base) in map(resolved, above):
            raise UserError(f"{chain}: base: expected a chain of files, got a cycle")
        if len(above) > MAX_BASES:
            raise UserError(f"{chain}: base: expected a chain of at most {MAX_BASES} base files")
        # which of its values would hold, those of the file itself or of one that overrides it?
        if resolved(base) in (resolved(Path(name)) for name in layers):
            raise UserError(f"{chain}: base: expected each file once, got this one again")
        _add_layers(layers, base, named_by=above)


def _base_paths(value: Any, path: Path) -> list[Path]:
    """Return the files that the key `base` of `path` names; [] if it is None."""
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{path}: base: expected a file name or a list of them, got {_format_value(value)}"
        )
    try:
        return [path.parent / expanded_path(name) for name in names]
    except UserError as error:
        raise UserError(f"{path}: base: {error}") from error


def _read_file(path: Path, *, named_by: Sequence[str]) -> dict[str, Any]:
    chain = " -> ".join([*named_by, str(path)])
    try:
        with open_file(path) as file:
            data = file.read(4 * MAX_LENGTH + 1)  # UTF-8 has at most 4 bytes per character
        values = parse_yaml(data.decode("utf-8-sig"), source=chain)
    except UnicodeDecodeError as error:
        raise UserError(f"{chain}: expected YAML text, got bytes that are not UTF-8") from error
    except UserError as error:
        if not named_by or str(error).startswith(chain):
            raise
        raise UserError(f"{named_by[-1]}: base: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{chain}: expected a mapping of keys, got {_format_value(values)}")
    return values


def _validated(
    values: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    layers: Mapping[str, Mapping[str, Any]],
    source: str,
    schemas: Mapping[str, type[C]],
) -> C:
    """Validate `values` with `overrides`.

    Messages name the layer (a file or the command line) that sets the key, otherwise `source`.
    """
    schema = schemas[_task(values, overrides, layers=layers, source=source, schemas=schemas)]
    values, _ = with_current_names(values)
    written: dict[str, Any] = {}
    for override in overrides:
        change = read_override(override, schema=schema)
        change, _ = with_current_names(change)
        values, written = merged(values, change), merged(written, change)
    text = _as_json(values, source=source)
    try:
        # pydantic's strict mode for JSON fits YAML: it accepts a list as a tuple and 1 as a float,
        # but neither "1" as a number nor true as 1. For Python values it would reject the lists.
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
    lines = []
    for item in found[:MAX_ERRORS]:  # one message part per error: layer, key, problem
        location = [str(part) for part in item["loc"]]
        origin = _origin({COMMAND_LINE: written, **layers}, location) or source
        explained = _explain(schema, item["type"], location, item["msg"], item["input"])
        key = ".".join(_truncated(part) for part in location)
        lines.append(": ".join(part for part in (origin, key, explained) if part))
    more = len(found) - MAX_ERRORS
    raise UserError(printable("; ".join(lines) + (f"; and {more} more" if more > 0 else "")))


def _task(
    values: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    layers: Mapping[str, Mapping[str, Any]],
    source: str,
    schemas: Mapping[str, type[C]],
) -> str:
    task, origin = values.get("task", next(iter(schemas))), _origin(layers, ["task"]) or source
    for override in overrides:
        chosen = task_override(override)
        if chosen is not None:
            task, origin = chosen, COMMAND_LINE
    if not isinstance(task, str) or task not in schemas:
        raise UserError(
            f"{origin}: task: expected {' or '.join(schemas)}, got {_format_value(task)}"
        )
    return task


def _as_json(values: Mapping[str, Any], *, source: str) -> str:
    """Return the values as JSON.

    Raises:
        UserError: values of a foreign checkpoint are not JSON, or contain themselves.
    """
    try:
        text = json.dumps(values, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: expected only text and numbers, got: {error}") from error
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = printable(text[max(0, error.start - MAX_VALUE_LENGTH) : error.end])
        raise UserError(
            f"{source}: expected text and file names in UTF-8, got other bytes: {near}"
        ) from error
    return text


def _origin(layers: Mapping[str, Mapping[str, Any]], location: Sequence[str]) -> str | None:
    """Return the name of the first layer that sets the key at `location`; None if none does."""
    for name, values in layers.items():
        inner: Any = values
        for part in location:
            if isinstance(inner, dict):
                inner = inner.get(part, _UNSET)
        if location and inner is not _UNSET:
            return name
    return None


def _explain(schema: type[C], kind: str, location: Sequence[str], message: str, value: Any) -> str:
    if kind == "extra_forbidden":
        return unknown_key_message(schema, [part[:MAX_VALUE_LENGTH] for part in location], value)
    if kind == "missing":
        return "expected a value, got none"
    if kind == "value_error":  # from our own validators, which write "expected ..., got ..."
        return message.removeprefix("Value error, ")
    # pydantic uses JSON's terms, but the user writes YAML
    text = message.replace("Input should be", "expected").replace("an object", "a mapping of keys")
    return (
        f"{text.replace('valid array', 'list')}, got {_format_value(value)}{_HINTS.get(kind, '')}"
    )


def _format_value(value: Any) -> str:
    return _truncated(printable(json.dumps(value, ensure_ascii=False, default=str)))


def _truncated(text: str) -> str:
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}..."
