"""Metadata of weights files: the run's config, class names and category ids, read with checks.

A weights file may come from anybody, so its metadata is checked like user input: a mistake gives a
one-line error. A config from a file also must not write: a path in it is written to only if the
command line names that path.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from backbones.config import DemoConfig
from engine.config import parse_config
from engine.config_overrides import read_override
from engine.errors import UserError
from engine.paths import exists, resolved
from engine.schema import RunConfig

C = TypeVar("C", bound=RunConfig)

# Keys of `data` that make a run write files. Each has the value that disables writing, and the key
# that names where files are written.
_WRITING: dict[str, tuple[Any, str]] = {
    "demo": (None, "data.demo.root"),
    "download": (False, "data.root"),
    "cache": (False, "data.val.annotations"),
}
_MAX_SHOWN = 60  # characters of a wrong value in an error message


def read_saved_config(
    metadata: Mapping[str, str],
    overrides: Sequence[str],
    *,
    schemas: Mapping[str, type[RunConfig]],
    kind: type[C],
    source: Path | str,
) -> C:
    """Return the config in a file's metadata. Apply `without_writes` before data are read with it.

    Args:
        metadata: the file's metadata.
        overrides: `a.b.c=value` changes from the command line.
        schemas: as for `parse_config`.
        kind: the expected config class.
        source: the file, for error messages.

    Raises:
        UserError: the config is missing or not of class `kind`, or an override is wrong.
    """
    values = _json_of(metadata, "config", source=source)
    if not isinstance(values, dict):
        raise _unexpected(source, "config", "an object", values)
    try:
        config = parse_config(values, overrides, schemas=schemas, source=f"{source}: config")
    except RecursionError as error:
        raise UserError(f"{source}: config: nested too deeply") from error
    if not isinstance(config, kind):
        expected = " or ".join(task for task, each in schemas.items() if issubclass(each, kind))
        got = values.get("task")
        raise UserError(f"{source}: config: expected task {expected}, got {got}")
    return config


def without_writes(config: C, overrides: Sequence[str]) -> C:
    """Return a config from `read_saved_config`, changed so that it writes to no path of the file.

    The demo is not drawn, nothing is downloaded, and no annotation cache is written, unless an
    override names the path: `data.demo.root`, `data.root` or `data.val.annotations`.
    """
    data: Any = getattr(config, "data")  # noqa: B009  each task has its own class of `data`
    named = [read_override(override, schema=type(config)) for override in overrides]
    disabled = {
        key: value
        for key, (value, place) in _WRITING.items()
        if key in type(data).model_fields
        and all(_value_at(values, place) is None for values in named)
    }
    return config.model_copy(update={"data": data.model_copy(update=disabled)})


def check_demo_exists(
    metadata: Mapping[str, str], config: RunConfig, *, source: Path | str
) -> None:
    """Check that the demo images exist if a config from `read_saved_config` validates on them.

    Raises:
        UserError: the validation images belong to the file's demo, and the demo does not exist.
            The message says how to draw it.
    """
    values, data = _json_of(metadata, "config", source=source), config.model_dump()["data"]
    demo = _value_at(values, "data.demo")
    place = _value_at(data, "val.annotations") or data.get("root")
    if data.get("demo") is not None or not isinstance(demo, dict) or not place:
        return
    root = demo.get("root", DemoConfig().root)
    inside = resolved(place) == resolved(root) or resolved(root) in resolved(place).parents
    if inside and not exists(place):
        raise UserError(
            f"{place}: no such demo; a config from a file does not draw it: add "
            f"data.demo.root={root} to the command line"
        )


def read_class_names(metadata: Mapping[str, str], *, source: Path | str) -> tuple[str, ...]:
    """Return the class names, by label.

    Raises:
        UserError: the names are missing, or not a list of different names.
    """
    names = _json_of(metadata, "class_names", source=source)
    if not isinstance(names, list) or not names or not all(map(_is_name, names)):
        raise _unexpected(source, "class_names", "a list of names", names)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _unexpected(source, "class_names", "each name once", twice)
    return tuple(names)


def read_category_ids(
    metadata: Mapping[str, str], *, count: int, source: Path | str
) -> tuple[int, ...]:
    """Return the category ids of `count` classes, in rising order.

    Raises:
        UserError: the ids are missing, or not `count` rising integers.
    """
    ids = _json_of(metadata, "category_ids", source=source)
    is_right = isinstance(ids, list) and len(ids) == count
    # `type(...) is int`: bool is a subclass of int. 2**63: the ids are stored as int64.
    is_right = is_right and all(type(key) is int and abs(key) < 2**63 for key in ids)
    if not is_right or any(low >= high for low, high in pairwise(ids)):
        raise _unexpected(source, "category_ids", f"a list of {count} rising integers", ids)
    return tuple(ids)


def read_numbers(
    metadata: Mapping[str, str], key: str, *, count: int, source: Path | str
) -> tuple[float, ...]:
    """Return the `count` finite numbers under `key`.

    Raises:
        UserError: the key is missing, or holds something else.
    """
    values = _json_of(metadata, key, source=source)
    is_right = isinstance(values, list) and len(values) == count
    if not is_right or not all(
        type(value) in (int, float) and abs(value) < 1e30 for value in values
    ):
        raise _unexpected(source, key, f"a list of {count} finite numbers", values)
    return tuple(float(value) for value in values)


def read_stride_in_1x1(metadata: Mapping[str, str], *, source: Path | str) -> bool:
    """Return whether the bottlenecks of a run's network stride on the 1x1 convolution.

    Raises:
        UserError: the value in the file is neither true nor false.
    """
    values = _json_of(metadata, "config", source=source) if "config" in metadata else {}
    stride = _value_at(values, "model.backbone.stride_in_1x1")
    if stride not in (None, True, False):
        raise _unexpected(source, "config: stride_in_1x1", "true or false", stride)
    return bool(stride)


def _json_of(metadata: Mapping[str, str], key: str, *, source: Path | str) -> Any:
    if key not in metadata:
        task = metadata.get("task", "none")
        raise UserError(f"{source}: expected {key} in the metadata, got none (task: {task})")
    try:
        return json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise _unexpected(source, key, "JSON", metadata[key]) from error


def _value_at(values: Any, path: str) -> Any:
    """Return the value at a dotted path through nested dicts; None if there is none."""
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _is_name(value: object) -> bool:
    """Return whether the value is text without lone surrogates, which cannot be encoded."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def _unexpected(source: Path | str, key: str, expected: str, got: Any) -> UserError:
    text = ascii(got)
    shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    return UserError(f"{source}: {key}: expected {expected}, got {shown}")
