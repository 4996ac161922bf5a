"""The text beside weights: a run's config, class names, ids; checked like what a user writes.

A file may come from anybody. What is wrong in its text is one line, and its config writes nothing:
a path in it is written to only where the command line names it.
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

# Keys of `data` that make a run write beside its data, the value that writes nothing, and the key
# that says where.
_WRITING: dict[str, tuple[Any, str]] = {
    "demo": (None, "data.demo.root"),
    "download": (False, "data.root"),
    "cache": (False, "data.val.annotations"),
}
_MAX_SHOWN = 60


def config_of(
    metadata: Mapping[str, str],
    overrides: Sequence[str],
    *,
    schemas: Mapping[str, type[RunConfig]],
    kind: type[C],
    source: Path | str,
) -> C:
    """Return the config that lies beside weights; `writing_nothing` before data are read by it.

    Args:
        metadata: of the file.
        overrides: `a.b.c=value`, the command line's changes.
        schemas: as for `parse_config`.
        kind: what the config must be.
        source: the file, for messages.

    Raises:
        UserError: there is none, it is no config of `kind`, or an override is wrong.
    """
    values = _json_of(metadata, "config", source=source)
    if not isinstance(values, dict):
        raise _unexpected(source, "config", "an object", values)
    try:
        config = parse_config(values, overrides, schemas=schemas, source=f"{source}: config")
    except RecursionError as error:
        raise UserError(f"{source}: config: nested too deeply") from error
    if not isinstance(config, kind):
        got = values.get("task")
        raise UserError(f"{source}: config: expected that of another task, got one of task {got}")
    return config


def writing_nothing(config: C, overrides: Sequence[str]) -> C:
    """Change a config of `config_of` so that nothing is written to a place that the file names.

    The demo is not drawn, nothing is downloaded and no packed copy written, except where an
    override names the place: `data.demo.root`, `data.root`, `data.val.annotations`.
    """
    data: Any = getattr(config, "data")  # noqa: B009  each task's run has its own
    named = [read_override(override, schema=type(config)) for override in overrides]
    harmless = {
        key: value
        for key, (value, place) in _WRITING.items()
        if key in type(data).model_fields
        and all(_value_at(values, place) is None for values in named)
    }
    return config.model_copy(update={"data": data.model_copy(update=harmless)})


def require_demo(metadata: Mapping[str, str], config: RunConfig, *, source: Path | str) -> None:
    """Say how to draw the demo where a run's config, from `config_of`, needs images of one.

    Raises:
        UserError: its validation images lie in the file's demo, which is not there.
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
            f"{place}: no such demo; a file's config draws none: data.demo.root={root} on the "
            "command line does"
        )


def class_names_of(metadata: Mapping[str, str], *, source: Path | str) -> tuple[str, ...]:
    """Return the names of classes, by label.

    Raises:
        UserError: there are none, or they are no list of different names.
    """
    names = _json_of(metadata, "class_names", source=source)
    if not isinstance(names, list) or not names or not all(map(_is_name, names)):
        raise _unexpected(source, "class_names", "a list of names", names)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _unexpected(source, "class_names", "names that differ", twice)
    return tuple(names)


def category_ids_of(
    metadata: Mapping[str, str], *, count: int, source: Path | str
) -> tuple[int, ...]:
    """Return the rising category ids of `count` classes.

    Raises:
        UserError: there are none, or not as many rising whole numbers.
    """
    ids = _json_of(metadata, "category_ids", source=source)
    is_right = isinstance(ids, list) and len(ids) == count
    is_right = is_right and all(type(key) is int and abs(key) < 2**63 for key in ids)
    if not is_right or any(low >= high for low, high in pairwise(ids)):
        raise _unexpected(source, "category_ids", f"a list of {count} rising whole numbers", ids)
    return tuple(ids)


def numbers_of(
    metadata: Mapping[str, str], key: str, *, count: int, source: Path | str
) -> tuple[float, ...]:
    """Return `count` finite numbers.

    Raises:
        UserError: they are not there, or something else is.
    """
    values = _json_of(metadata, key, source=source)
    is_right = isinstance(values, list) and len(values) == count
    if not is_right or not all(
        type(value) in (int, float) and abs(value) < 1e30 for value in values
    ):
        raise _unexpected(source, key, f"a list of {count} finite numbers", values)
    return tuple(float(value) for value in values)


def stride_in_1x1_of(metadata: Mapping[str, str], *, source: Path | str) -> bool:
    """Return whether the bottlenecks of a run's network stride on the 1x1 convolution.

    Raises:
        UserError: what the file says of that is neither true nor false.
    """
    values = _json_of(metadata, "config", source=source) if "config" in metadata else {}
    stride = _value_at(values, "model.backbone.stride_in_1x1")
    if stride not in (None, True, False):
        raise _unexpected(source, "config: stride_in_1x1", "true or false", stride)
    return bool(stride)


def _json_of(metadata: Mapping[str, str], key: str, *, source: Path | str) -> Any:
    if key not in metadata:
        task = metadata.get("task", "none")
        raise UserError(f"{source}: expected {key} beside the weights, got none (task: {task})")
    try:
        return json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise _unexpected(source, key, "JSON", metadata[key]) from error


def _value_at(values: Any, path: str) -> Any:
    """Return the value at a dotted path of mappings; None where there is none."""
    for name in path.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _is_name(value: object) -> bool:
    """Return whether it is text, without halves of characters that nothing can show."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


def _unexpected(source: Path | str, key: str, expected: str, got: Any) -> UserError:
    text = ascii(got)
    shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    return UserError(f"{source}: {key}: expected {expected}, got {shown}")
