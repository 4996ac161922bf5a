"""Output files and timing functions of the stages of the GPU check."""

import fcntl
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.schema import Precision

OUT = Path(os.environ.get("OUT", "gpu_out"))
"""Folder of the results: results.json, report.md, kernels.md, traces."""
SCRATCH = Path(os.environ.get("SCRATCH") or Path.home() / ".cache" / "gpu_check")
"""Folder of runs and caches, which are not results."""
DATA = Path(os.environ.get("GPU_CHECK_DATA", ".gpu"))
"""Folder with coco128/ and bccd/."""
DRY = os.environ.get("DRY") == "1"
"""Whether to run on the CPU, at sizes that take seconds, to show that the stages run."""
DEVICE = torch.device("cpu" if DRY else "cuda")
PRECISION: Precision = "fp32" if DRY else "bf16"
SIZE = (128, 157) if DRY else (800, 1344)
"""Height and width of the images of timed steps."""
_STARTED = time.time()


def save(stage: str, **values: object) -> None:
    """Merge numbers into results.json, append them to report.md and print them, immediately."""
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / "results.json"
    with (SCRATCH / "lock").open("w") as lock:  # stages may run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = json.loads(path.read_text()) if path.exists() else {}
        known.setdefault(stage, {}).update(values)
        path.write_text(json.dumps(known, indent=1, default=str))
        note("\n".join(f"- {stage}: {name} = {value}" for name, value in values.items()))
    sys.stdout.write(f"[{time.time() - _STARTED:6.1f}s] {stage}: {values}\n")


def note(text: str, *, file: str = "report.md") -> None:
    """Append text to a file of the results."""
    with (OUT / file).open("a") as target:
        target.write(text + "\n")


def attempt(stage: str, name: str, work: Callable[[], object]) -> None:
    """Run one measurement; record an error instead of raising it, so that the next one runs."""
    try:
        work()
    except Exception as error:  # any error: device time is limited
        save(stage, **{f"{name}_FAILED": f"{type(error).__name__}: {str(error)[:300]}"})
        note("```\n" + "\n".join(traceback.format_exc().strip().splitlines()[-14:]) + "\n```")
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


def wait_for_device() -> None:
    """Wait until the device has finished all launched work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def times_of(step: Callable[[], object], *, warm: int = 3, calls: int = 10) -> dict[str, float]:
    """Return milliseconds per call, queued without waiting: in total, and of the host alone.

    If the two are equal, the host is too slow to keep the device busy.
    """
    warm, calls = (1, 2) if DRY else (warm, calls)
    for _ in range(warm):
        step()
    wait_for_device()
    start = time.perf_counter()
    for _ in range(calls):
        step()
    host = time.perf_counter() - start  # all calls are launched, not necessarily done
    wait_for_device()
    total = time.perf_counter() - start
    return {"ms": round(total / calls * 1e3, 2), "host_ms": round(host / calls * 1e3, 2)}


def median_ms(step: Callable[[], object], *, calls: int = 5) -> float:
    """Return the median milliseconds of a call, including the wait for its result."""
    taken = []
    for _ in range(2 if DRY else calls):
        wait_for_device()
        start = time.perf_counter()
        step()
        wait_for_device()
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken) * 1e3, 2)


def peak_gib() -> float:
    """Return the peak of allocated device memory, in GiB."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 1) if DEVICE.type == "cuda" else 0.0


def profile_of(work: Callable[[], object], title: str, *, limit: int = 45) -> Any:
    """Profile one call, and write its kernels to kernels.md.

    Returns:
        The profile, milliseconds in which kernels ran, and the number of kernels.
    """
    from torch.profiler import ProfilerActivity, profile

    on_gpu = DEVICE.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as trace:
        work()
        wait_for_device()
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    kind = "CUDA" if on_gpu else "CPU"
    # only kernels: the rows of operators and annotations contain the same time again
    rows = [
        each
        for each in trace.key_averages()
        if each.device_type.name == kind and not each.is_user_annotation
    ]
    rows.sort(key=lambda each: -getattr(each, own))  # the slowest first; times in microseconds
    busy, count = sum(getattr(each, own) for each in rows) / 1e3, sum(each.count for each in rows)
    lines = [
        f"| {getattr(each, own) / 1e3:.3f} | {each.count} | {each.key[:130]} |"
        for each in rows[:limit]
    ]
    head = [f"\n## {title}: {busy:.1f} ms in {count} kernels\n", "| ms | calls | kernel |"]
    note("\n".join([*head, "| --- | --- | --- |", *lines]), file="kernels.md")
    return trace, round(busy, 2), count


def overrides_of(keys: dict[str, object]) -> list[str]:
    """Return `key=value` for a command line."""
    return [f"{key}={value}" for key, value in keys.items()]


def split_overrides(images: dict[str, Path], annotations: dict[str, Path]) -> dict[str, object]:
    """Return the keys of the folders of images and the COCO JSONs, by split."""
    keys: dict[str, object] = {f"data.{split}.images": path for split, path in images.items()}
    return keys | {f"data.{split}.annotations": path for split, path in annotations.items()}
