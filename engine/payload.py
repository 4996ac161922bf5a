"""Validation of a checkpoint's content before a run resumes from it.

The file may come from anywhere, so every part is checked for its type.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.checkpoint import is_tensor_dict
from engine.errors import UserError
from engine.progress import Progress


def check_payload(payload: Mapping[str, Any], *, source: Path) -> None:
    """Check that `payload` is the checkpoint of a run.

    Raises:
        UserError: a part is missing or has the wrong type; the message names it and `source`.
    """
    for key, is_valid in _CHECKS.items():
        if not is_valid(payload.get(key)):
            got = type(payload[key]).__name__ if key in payload else "nothing"
            raise UserError(f"{source}: expected a run's checkpoint with its {key}, got {got}")
    # keys of other versions are allowed; Progress.of ignores them
    for name, value in payload["progress"].items():
        if name in _PROGRESS and not _is_progress_value(value, _PROGRESS[name]):
            raise UserError(
                f"{source}: expected a run's checkpoint with its {name}, got {value!r:.40}"
            )


def load_average(
    average: Mapping[str, Tensor], payload: Mapping[str, Any], *, source: Path
) -> None:
    """Copy a checkpoint's averaged weights, if any, into `average` in place.

    Raises:
        UserError: they belong to another network.
    """
    saved = payload.get("average")
    if saved is None:
        return
    for name, value in average.items():
        if name not in saved or saved[name].shape != value.shape:
            shape = tuple(value.shape)
            got = tuple(saved[name].shape) if name in saved else "none"
            raise UserError(
                f"{source}: expected averaged weights {name} of shape {shape}, got {got}"
            )
        value.copy_(saved[name])


def _is_meter_state(value: Any) -> bool:
    """Return whether `value` is a state of `StepMeter`."""
    return (
        isinstance(value, dict)
        and is_tensor_dict(value.get("sums"))
        and isinstance(value.get("good"), Tensor)
        and isinstance(value.get("measured"), list | tuple | set | frozenset)
        and all(isinstance(name, str) for name in value["measured"])
        and all(type(value.get(key)) is int for key in ("steps", "skipped"))
    )


def _is_progress_value(value: Any, default: Any) -> bool:
    """Return whether `value` has the type of a `Progress` field with this default."""
    if default is None or isinstance(default, float):
        return type(value) in (int, float) or (default is None and value is None)
    return type(value) is type(default) and value >= 0


_PROGRESS = {field.name: field.default for field in fields(Progress)}
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "model": is_tensor_dict,
    "optimizer": lambda part: isinstance(part, dict) and all(map(is_tensor_dict, part.values())),
    "average": lambda part: part is None or is_tensor_dict(part),
    "progress": lambda part: isinstance(part, dict) and "step" in part,
    "meters": lambda part: (
        part is None or (isinstance(part, list) and all(map(_is_meter_state, part)))
    ),
    "rng": is_tensor_dict,
    "config": lambda part: isinstance(part, dict),
    "metadata": lambda part: isinstance(part, dict),
    "data": lambda part: part is None or isinstance(part, dict),
}
