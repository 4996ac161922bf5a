"""What a checkpoint holds, checked before a run goes on from it: it may be of any origin."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.checkpoint import holds_tensors
from engine.errors import UserError
from engine.progress import Progress


def check_payload(payload: Mapping[str, Any], *, source: Path) -> None:
    """Refuse what is not a run's checkpoint.

    Raises:
        UserError: names the part that is missing or of another kind.
    """
    for key, is_right in _PARTS.items():
        if not is_right(payload.get(key)):
            got = type(payload[key]).__name__ if key in payload else "nothing"
            raise UserError(f"{source}: expected a run's checkpoint with its {key}, got {got}")
    for name, value in payload["progress"].items():
        if name in _PROGRESS and not _is_progress(value, _PROGRESS[name]):
            raise UserError(
                f"{source}: expected a run's checkpoint with its {name}, got {value!r:.40}"
            )


def load_average(
    average: Mapping[str, Tensor], payload: Mapping[str, Any], *, source: Path
) -> None:
    """Copy a checkpoint's averaged weights into `average`, where it has any.

    Raises:
        UserError: they are of another network.
    """
    saved = payload.get("average")
    if saved is None:
        return
    for name, value in average.items():
        if name not in saved or saved[name].shape != value.shape:
            shape = tuple(value.shape)
            raise UserError(f"{source}: expected averaged weights {name} of shape {shape}")
        value.copy_(saved[name])


def _is_meter(part: Any) -> bool:
    """Return whether it is what `StepMeter.state` returns."""
    return (
        isinstance(part, dict)
        and holds_tensors(part.get("sums"))
        and isinstance(part.get("good"), Tensor)
        and isinstance(part.get("measured"), list | tuple | set | frozenset)
        and all(isinstance(name, str) for name in part["measured"])
        and all(type(part.get(key)) is int for key in ("steps", "skipped"))
    )


def _is_progress(value: Any, default: Any) -> bool:
    if default is None or isinstance(default, float):
        return type(value) in (int, float) or (default is None and value is None)
    return type(value) is type(default) and value >= 0


_PROGRESS = {field.name: field.default for field in fields(Progress)}
_PARTS: dict[str, Callable[[Any], bool]] = {
    "model": holds_tensors,
    "optimizer": lambda part: isinstance(part, dict) and all(map(holds_tensors, part.values())),
    "average": lambda part: part is None or holds_tensors(part),
    "progress": lambda part: isinstance(part, dict) and "step" in part,
    "meters": lambda part: part is None or (isinstance(part, list) and all(map(_is_meter, part))),
    "rng": holds_tensors,
    "config": lambda part: isinstance(part, dict),
    "metadata": lambda part: isinstance(part, dict),
    "data": lambda part: part is None or isinstance(part, dict),
}
