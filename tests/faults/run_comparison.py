"""Comparison of the run folders of an interrupted and resumed run and an uninterrupted one."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from engine.checkpoint import load_checkpoint, read_safetensors
from engine.provenance import STARTS_FILE

Lost = Literal["", "logs", "evaluation"]
TIMES = {"images_per_second", "data_wait", "seconds", "duration"}
"""Values that differ in every run."""
LOGS = ("metrics.jsonl", "events.", "pictures", "images", "curves.png", "pr_curves.png")
"""Prefixes of log files: losing one must not end training."""
MAX_KEPT = 3
"""Step checkpoints that may remain: two, and that of the best step."""


def is_log(path: str) -> bool:
    """Return whether a path in a run folder belongs to the log."""
    return path.startswith(LOGS) and not path.endswith(".partial")


def differences(
    reference: Path, interrupted: Path, *, history: Path | None, lost: Lost
) -> list[str]:
    """Return a line for every difference of `interrupted` from `reference`.

    Args:
        reference: folder of the uninterrupted run.
        interrupted: folder of the interrupted and resumed run.
        history: folder of an uninterrupted run that kept the checkpoints of all steps.
        lost: `logs` if a log line or a drawing may be missing; `evaluation` if an evaluation has
            failed, so that the best and the last step may differ.
    """
    expected, got = _names(reference), _names(interrupted)
    if lost == "evaluation":
        found = [f"files: {name} missing" for name in sorted(expected - got) if not is_log(name)]
        found += [f"files: {name} left over" for name in sorted(got - expected)]
        return found + duplicates(interrupted) + _compare_history(interrupted, history)
    if lost:
        expected, got = ({n for n in names if not is_log(n)} for names in (expected, got))
    found = [f"files: {name} missing" for name in sorted(expected - got)]
    found += [f"files: {name} left over" for name in sorted(got - expected)]
    for name in sorted(expected & got):
        found += [
            f"{name}: {line}" for line in _compare(name, reference / name, interrupted / name)
        ]
    if (interrupted / "metrics.jsonl").exists():
        found += _compare_logs(
            reference / "metrics.jsonl", interrupted / "metrics.jsonl", lost=bool(lost)
        )
    return found + _compare_last(reference, interrupted) + _compare_history(interrupted, history)


def steps(run: Path) -> list[Path]:
    """Return the step checkpoints, in order."""
    return sorted((run / "checkpoints").glob("step_*.pt"))


def duplicates(run: Path) -> list[str]:
    """Return a line for each (kind, step) that the log holds more than once."""
    keys = [(line["kind"], line["step"]) for line in _lines(run / "metrics.jsonl") if line]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    return [f"metrics.jsonl: {kind} of step {step} more than once" for kind, step in twice]


def _names(run: Path) -> set[str]:
    """Return file names, without step checkpoints, the lock, TensorBoard files and the log."""
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    excluded = ("events.", "checkpoints/step_", "metrics.jsonl")
    return {
        name
        for name in names
        if name.endswith(".partial") or not (name.startswith(excluded) or "lock" in name)
    }


def _compare(name: str, reference: Path, interrupted: Path) -> Iterable[str]:
    if name == STARTS_FILE:
        return []  # it lists each start, and a resumed run has had more of them
    if name.endswith(".pt"):
        return _compare_payloads(_load(reference), load_checkpoint(interrupted))
    if name.endswith(".safetensors"):
        return _compare_weights(reference, interrupted)
    if name.endswith(".json"):
        expected, got = (
            _timeless(json.loads(path.read_text())) for path in (reference, interrupted)
        )
        return [] if expected == got else [f"expected {str(expected)[:150]}, got {str(got)[:150]}"]
    if name.endswith("curves.png"):
        return []  # it shows times too
    return [] if reference.read_bytes() == interrupted.read_bytes() else ["other bytes"]


def _timeless(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: value for name, value in values.items() if name not in TIMES}
    return values


def _compare_weights(reference: Path, interrupted: Path) -> list[str]:
    expected, got = read_safetensors(reference), read_safetensors(interrupted)
    found = _compare_values("", expected[0], got[0])
    if expected[1] != got[1]:
        found.append("other metadata")
    if not found and reference.read_bytes() != interrupted.read_bytes():
        found.append("equal weights, but other bytes")
    return found


@lru_cache(maxsize=8)
def _load(path: Path) -> dict[str, Any]:
    return load_checkpoint(path)


def _compare_payloads(
    expected: Mapping[str, Any], got: Mapping[str, Any], *, progress: bool = True
) -> list[str]:
    found = []
    for part in ("model", "average", "optimizer", "rng"):
        found += _compare_values(f"{part} ", _flat(expected[part]), _flat(got[part]))
    if progress and expected["progress"] != got["progress"]:
        found.append(f"progress {_changed(expected['progress'], got['progress'])}")
    return found


def _changed(expected: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    changed = [key for key in expected if expected[key] != got.get(key)]
    return ", ".join(f"{key}: expected {expected[key]}, got {got.get(key)}" for key in changed)


def _flat(values: Mapping[str, Any] | None, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in (values or {}).items():
        deeper = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": value}
    return flat


def _compare_values(prefix: str, expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    if set(expected) != set(got):
        return [f"{prefix}other names: {sorted(set(expected) ^ set(got))[:3]}"]
    other = [name for name, value in expected.items() if not _equal(value, got[name])]
    return [f"{prefix}other values in {len(other)} of {len(expected)}"] if other else []


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return bool(one == other)


def _compare_last(reference: Path, interrupted: Path) -> list[str]:
    """Compare the checkpoint of the last step."""
    kept, last = steps(interrupted), steps(reference)[-1]
    if not kept or kept[-1].name < last.name:
        return [f"checkpoints: the last is {kept[-1].name if kept else 'none'}"]
    if last.name not in [path.name for path in kept]:
        return []  # interrupted at a later step, where the reference run wrote no checkpoint
    lines = _compare_payloads(_load(last), load_checkpoint(interrupted / "checkpoints" / last.name))
    return [f"checkpoint of the last step: {line}" for line in lines]


def _compare_history(interrupted: Path, history: Path | None) -> list[str]:
    """Compare the kept step checkpoints with those of a run that kept all."""
    kept = steps(interrupted)
    found = [] if len(kept) <= MAX_KEPT else [f"checkpoints: {len(kept)} steps are kept"]
    if history is None:
        return found
    for path in kept:
        known = _load(history / "checkpoints" / path.name)
        lines = _compare_payloads(known, load_checkpoint(path), progress=False)
        found += [f"checkpoint of a step: {line}" for line in lines]
    return found


def _compare_logs(reference: Path, interrupted: Path, *, lost: bool) -> list[str]:
    name = "metrics.jsonl"
    expected = {(x["kind"], x["step"]): _timeless(x) for x in _lines(reference) if x}
    lines = _lines(interrupted)
    torn = lines.count(None)
    found = [
        line for line in duplicates(interrupted.parent) if line not in duplicates(reference.parent)
    ]
    if torn > lost:
        found.append(f"{name}: {torn} damaged lines")
    got = {(x["kind"], x["step"]): _timeless(x) for x in lines if x}
    missing = [f"{kind} of step {step}" for kind, step in expected if (kind, step) not in got]
    if len(missing) > lost:
        found.append(f"{name}: no {', '.join(missing[:3])}")
    for key, values in got.items():
        if key not in expected:
            found.append(f"{name}: {key[0]} of step {key[1]} is not in the reference run")
        elif values != expected[key]:
            found.append(f"{name}: {key[0]} of step {key[1]}: {_changed(expected[key], values)}")
    if list(got) != [key for key in expected if key in got]:
        found.append(f"{name}: not in the order of the reference run")
    return found


def _lines(path: Path) -> list[dict[str, Any] | None]:
    """Return the lines as dicts; None for a damaged one."""
    read: Callable[[str], dict[str, Any] | None] = _parsed
    return [read(line) for line in path.read_text(errors="replace").split("\n") if line]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return None
    return values if isinstance(values, dict) else None
