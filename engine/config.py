"""Config files: YAML with one base and dotted overrides, checked against the task's schema.

Every mistake is a `UserError` of one line: where, key, expected, got, and the nearest right name.
"""

import difflib
import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from engine.errors import UserError
from engine.schema import Config

C = TypeVar("C", bound=Config)

MAX_ERRORS = 3
MAX_VALUE_LENGTH = 60
_UNSET = object()

# YAML 1.2's core types. YAML 1.1, PyYAML's own, reads 1e-2 as text, `no` as false, 010 as 8.
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  as PyYAML declares it

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that is given twice; PyYAML would take the last one in silence."""
        seen = []
        for key, _ in node.value:
            if key.value in seen:
                problem = f"key {key.value} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  as PyYAML declares it


for _kind in (_Loader, _Dumper):
    for _tag, (_pattern, _first) in _SCALARS.items():
        _kind.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"({_pattern})$"), _first
        )


def load_config(
    path: Path | str, overrides: Sequence[str] = (), *, schemas: Mapping[str, type[C]]
) -> C:
    """Read a YAML file, its base and the overrides, and check the result.

    Args:
        path: the file. Its key `base` may name one file, relative to it, that is read first.
        overrides: `a.b.c=value`, the value in YAML; applied last.
        schemas: schema for each value of the key `task`; the first one when the key is absent.

    Raises:
        UserError: missing file, no YAML mapping, chained base, or a wrong key, type or value.
    """
    path = Path(path)
    values = _read_yaml(path)
    layers = {"command line": apply_overrides({}, overrides), str(path): values}
    base = values.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: base: expected one file name, got {_show(base)}")
        base_path = path.parent / base
        base_values = _read_yaml(base_path)
        if "base" in base_values:
            raise UserError(f"{path}: base: expected a file without a base of its own, got {base}")
        layers[str(base_path)] = base_values
        values = _merge(base_values, values)
    return _validate(apply_overrides(values, overrides), str(path), layers, schemas)


def parse_config(values: Mapping[str, Any], *, schemas: Mapping[str, type[C]], source: str) -> C:
    """Check values that are already a mapping, as a checkpoint holds them.

    Args:
        values: keys and values as in a YAML file, without `base`.
        schemas: schema for each value of the key `task`; the first one when the key is absent.
        source: where the values come from, for messages.

    Raises:
        UserError: a wrong key, type or value.
    """
    return _validate(values, source, {}, schemas)


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `values` with `a.b.c=value` overrides; a mapping is merged, all else replaced.

    Raises:
        UserError: an override without `=`, or whose value is not YAML.
    """
    result = dict(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise UserError(f"command line: expected key=value, got {override}")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise UserError(
                f"command line: {key}: expected a YAML value (quote text with special "
                f"characters), got {_show(text)}: {_problem(error)}"
            ) from error
        for name in reversed(names):
            value = {name: value}
        result = _merge(result, value)
    return result


def dump_config(config: Config) -> str:
    """Return the whole config, defaults included, as YAML that loads to an equal config."""
    values = config.model_dump(mode="json")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def differences(old: Config, new: Config) -> list[str]:
    """Return one line `optim.lr: 0.02 -> 0.01` for each value that differs; none when equal."""
    return list(_compare(old.model_dump(mode="json"), new.model_dump(mode="json"), ""))


def _compare(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _compare(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {_show(before)} -> {_show(after)}"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected YAML text, got bytes that are not UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {_problem(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys, got {_show(values)}")
    return values


def _problem(error: yaml.YAMLError) -> str:
    """Return what is wrong, and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return f"{getattr(error, 'problem', None) or 'unreadable'}{place}"


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict):
            below = merged.get(key)
            merged[key] = _merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _validate(
    values: Mapping[str, Any],
    source: str,
    layers: Mapping[str, Mapping[str, Any]],
    schemas: Mapping[str, type[C]],
) -> C:
    """Check `values`; a message names the first of `layers` that sets the key, else `source`."""
    task = values.get("task", next(iter(schemas)))
    if not isinstance(task, str) or task not in schemas:
        origin = _origin(layers, ["task"]) or source
        raise UserError(f"{origin}: task: expected {' or '.join(schemas)}, got {_show(task)}")
    schema = schemas[task]
    try:
        # As JSON, strict means what it should for YAML too: a list is a tuple and 1 is a float,
        # while "1" is no number and true is no 1.
        return schema.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        found = error.errors()
    lines = []
    for item in found[:MAX_ERRORS]:
        location = [str(part) for part in item["loc"]]
        origin = _origin(layers, location) or source
        text = _explain(schema, item["type"], location, item["msg"], item["input"])
        lines.append(": ".join(part for part in (origin, ".".join(location), text) if part))
    more = len(found) - MAX_ERRORS
    raise UserError("; ".join(lines) + (f"; and {more} more" if more > 0 else ""))


def _origin(layers: Mapping[str, Mapping[str, Any]], location: Sequence[str]) -> str | None:
    """Return the name of the first layer that sets the key at `location`."""
    for name, values in layers.items():
        inner: Any = values
        for part in location:
            if isinstance(inner, dict):
                inner = inner.get(part, _UNSET)
        if location and inner is not _UNSET:
            return name
    return None


def _explain(
    schema: type[BaseModel], kind: str, location: Sequence[str], message: str, value: Any
) -> str:
    if kind == "extra_forbidden":
        return _nearest(schema, location)
    if kind == "missing":
        return "expected a value, got none"
    if kind == "value_error":  # raised by a validator of ours: says expected and got itself
        return message.removeprefix("Value error, ")
    # pydantic speaks of JSON, the user writes YAML
    text = message.replace("Input should be", "expected").replace("an object", "a mapping of keys")
    return f"{text.replace('valid array', 'list')}, got {_show(value)}"


def _nearest(schema: type[BaseModel], location: Sequence[str]) -> str:
    """Say which key is nearest: by spelling at that place, else by name anywhere."""
    *parents, wrong = location
    here: type[BaseModel] | None = schema
    for name in parents:
        if here and not name.isdecimal():  # a place in a list of models
            here = _submodel(here, name)
    names = list(here.model_fields) if here else []
    prefix = ".".join([*parents, ""])
    near = [prefix + name for name in difflib.get_close_matches(wrong, names, n=1)]
    near = near or [path for path in _paths(schema, "") if path.split(".")[-1] == wrong]
    if near:
        return f"unknown key; nearest: {' or '.join(near)}"
    return f"unknown key; known here: {', '.join(names)}"


def _submodel(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model in a field `X`, `X | None` or `tuple[X, ...]`; None for plain values."""
    annotation = model.model_fields[name].annotation if name in model.model_fields else None
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name in model.model_fields:
        yield prefix + name
        inner = _submodel(model, name)
        if inner:
            yield from _paths(inner, f"{prefix}{name}.")


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}..."
