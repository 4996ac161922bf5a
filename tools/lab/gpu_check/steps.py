"""Stages that time training steps: eager, compiled, as a CUDA graph, and torchvision's steps."""

import fcntl
import gzip
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask
from engine.cuda_graph import captured
from engine.precision import autocast
from engine.schema import LoopConfig
from tools.lab.benchmarks import networks
from tools.lab.benchmarks.agreement import check_losses
from tools.lab.benchmarks.gpu import float32_products
from tools.lab.benchmarks.peers import WAYS, peer_step
from tools.lab.benchmarks.steps import our_step
from tools.lab.gpu_check.record import (
    DEVICE,
    DRY,
    OUT,
    PRECISION,
    SCRATCH,
    SIZE,
    attempt,
    peak_gib,
    profile_of,
    save,
    times_of,
    wait_for_device,
)

CASES = {
    "fpn": networks.R101_FPN,
    "c4": networks.R101_C4,
    "r50": networks.R50_FPN,
    "mask": networks.MASK_R50_FPN,
}
COUNT = 2 if DRY else 16
"""Images in a batch."""
LARGEST_TRACE = 15 << 20
"""Maximum size of a trace that is kept, in bytes."""
QUIET = Path(os.environ.get("GO_FILE", SCRATCH / "go"))
"""When this file exists, nothing else runs and compiled steps can be timed."""


def case_of(name: str) -> networks.Case:
    """Return a network of the benchmarks by its short name; a small one in a dry run."""
    return CASES[name].smaller() if DRY else CASES[name]


def make_step(
    name: str, count: int, *, compiled: bool = False
) -> tuple[DetectionTask, Callable[[], object], DetectionBatch]:
    """Return a task, a function that runs its training step on one batch, and the batch."""
    case = case_of(name)
    task = networks.make_task(case)
    loop = LoopConfig(precision=PRECISION, batch_size=count, compile=compiled)
    step = our_step(task, loop, device=DEVICE)
    batch = networks.make_batch(count, size=SIZE, masks=case.masks).to(DEVICE)
    return task, lambda: step(batch), batch


def time_steps(name: str) -> None:
    """Time a training step in several ways, and record its profile."""
    stage = f"step_{name}"
    attempt(stage, "eager", lambda: _eager(stage, name))
    attempt(stage, "cudnn_benchmark", lambda: _with_cudnn_benchmark(stage, name))
    attempt(stage, "batch_2", lambda: save(stage, batch_2=times_of(make_step(name, 2)[1])))
    if DEVICE.type == "cuda":
        attempt(stage, "graph_batch_2", lambda: _as_graph(stage, name))


def _eager(stage: str, name: str) -> None:
    _, step, _ = make_step(name, COUNT)
    taken = times_of(step)
    rate = round(COUNT / taken["ms"] * 1e3, 1)  # images per second
    save(stage, eager=taken, images_s=rate, gib=peak_gib())
    trace, busy, count = profile_of(step, stage)
    save(stage, busy_ms=busy, kernels=count)
    path = OUT / f"trace_{name}.json"
    trace.export_chrome_trace(str(path))
    packed = gzip.compress(path.read_bytes(), 6)
    path.unlink()
    if len(packed) < LARGEST_TRACE:
        path.with_suffix(".json.gz").write_bytes(packed)


def _with_cudnn_benchmark(stage: str, name: str) -> None:
    torch.backends.cudnn.benchmark = True
    try:
        _, step, _ = make_step(name, COUNT)
        start = time.perf_counter()
        step()
        wait_for_device()
        # the first call tries all convolution algorithms of each layer
        first = round(time.perf_counter() - start, 1)
        save(stage, cudnn_benchmark=times_of(step), cudnn_benchmark_first_s=first)
    finally:
        torch.backends.cudnn.benchmark = False


def _as_graph(stage: str, name: str) -> None:
    """Time forward and backward of two images (the share of one of eight GPUs) as a CUDA graph."""
    task, _, batch = make_step(name, 2)
    parameters = [each for each in task.model.parameters() if each.requires_grad]

    def work() -> object:
        with autocast(DEVICE, PRECISION):
            losses = task.losses(batch)
        # returns gradients instead of adding to .grad, so each replay does the same work
        return torch.autograd.grad(torch.stack(list(losses.values())).sum(), parameters)

    # PyTorch requires warm-up calls on a side stream before a capture.
    graph, _ = captured(work, device=DEVICE)
    save(stage, graph_batch_2=times_of(graph.replay), eager_batch_2=times_of(work))


def time_compiled(name: str) -> None:
    """Compile a training step; time it when nothing else runs."""
    stage = f"compile_{name}"
    start = time.perf_counter()
    # torch's compiler for CPUs takes minutes: a dry run only traces the step, and runs it eagerly
    traced_only = patch.object(torch, "compile", partial(torch.compile, backend="aot_eager"))
    with traced_only if DRY else nullcontext():
        _, step, _ = make_step(name, COUNT, compiled=True)
    step()
    wait_for_device()
    save(stage, first_call_s=round(time.perf_counter() - start, 1))
    step()  # another warm-up call
    wait_for_device()
    waiting = time.time()
    while not QUIET.exists() and time.time() - waiting < 150 and not DRY:
        time.sleep(0.5)
    with (SCRATCH / "turn").open("w") as turn:  # one timing at a time
        fcntl.flock(turn, fcntl.LOCK_EX)
        taken = times_of(step)
    save(stage, compiled=taken, images_s=round(COUNT / taken["ms"] * 1e3, 1), gib=peak_gib())
    from torch._dynamo import utils

    frames, breaks = dict(utils.counters["frames"]), len(utils.counters["graph_break"])
    save(stage, frames=frames, breaks=breaks)


def time_peer() -> None:
    """Time torchvision's steps, like for like with ours (bf16) and as its users run them (TF32)."""
    for name in ("fpn", "c4"):
        case = case_of(name)
        attempt("peer", f"{name}_agree", partial(_agree, case, name))
        attempt("peer", f"{name}_speed", partial(_peer_speed, case, name))
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


def _agree(case: networks.Case, name: str) -> None:
    task = networks.make_task(case)
    task.to(DEVICE)
    peer = networks.make_peer(case, task, size=SIZE).to(DEVICE)
    with float32_products(exact=True):
        check_losses(task, peer, networks.make_batch(1, size=SIZE).to(DEVICE))
    save("peer", **{f"{name}_losses_agree": True})


def _peer_speed(case: networks.Case, name: str) -> None:
    task, batch = networks.make_task(case), networks.make_batch(COUNT, size=SIZE).to(DEVICE)
    for way in WAYS:
        step = peer_step(case, task, batch, way, precision=PRECISION)
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with float32_products(exact=False):
            taken = times_of(step, warm=1, calls=4)
        save("peer", **{f"{name} {way}": {**taken, "gib": peak_gib()}})


def time_classifier() -> None:
    """Time an eager training step of a ResNet-101 classifier at 224 pixels."""
    from backbones.resnet import resnet101

    count, side = (2, 64) if DRY else (256, 224)
    model = resnet101().to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    pixels = torch.randn(count, 3, side, side, device=DEVICE)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (count,), device=DEVICE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(DEVICE, PRECISION):
            loss = nn.functional.cross_entropy(model(pixels).float(), labels)
        loss.backward()
        optimizer.step()

    save("classify", eager_images_s=round(count / times_of(step)["ms"] * 1e3))
    profile_of(step, "classify", limit=25)
