"""Training and inference on one GPU, in bfloat16, against torchvision's parts on the same card.

The peer runs eagerly in TF32, its pictures at hand on the device; ours come as JPEG files through
the loader. All of it is for a CUDA device; small, it also runs on a CPU, to show that it runs.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from backbones.resnet import resnet101
from detection.benchmarks.agreement import check_detections, check_losses
from detection.benchmarks.networks import (
    NUM_CLASSES,
    R50_FPN,
    R101_C4,
    R101_FPN,
    SMALL_SIZE,
    make_batch,
    make_peer,
    make_task,
    peer_pictures,
    peer_targets,
)
from detection.benchmarks.settings import Settings
from detection.benchmarks.steps import our_step, peer_step
from detection.config import AugmentConfig, DataConfig, SplitConfig
from detection.data.dataset import CocoDetection
from engine.errors import UserError
from engine.loader import read_batches, split_batches, training_batches
from engine.measure import Comparison, Row, compare, peak_flops
from engine.schema import LoaderConfig, LoopConfig
from engine.step import autocast
from engine.task import Batch

SIZE = (800, 1344)
TRAIN_BATCH, CLASSIFY_BATCH = 16, 256
PICTURES_A_SECOND = {"r101_fpn": (60, 120), "r101_c4": (35, 70)}
NUM_JPEGS, WARM_UP_STEPS, TIMED_STEPS = 256, 5, 20


def gpu_train(settings: Settings) -> list[Row]:
    """Measure training with pictures from JPEG files."""
    device = _device(settings)
    size, count = (SMALL_SIZE, 2) if settings.small else (SIZE, TRAIN_BATCH)
    rows = []
    for case in settings.chosen({case.name: case for case in (R101_FPN, R101_C4)}):
        at_least, aim = PICTURES_A_SECOND[case.name]
        case = case.smaller() if settings.small else case
        batch = make_batch(count, size=size).to(device)
        task = make_task(case)
        task.to(device)
        peer = make_peer(case, task, size=size).to(device)
        check_losses(task, peer, make_batch(1, size=size).to(device))
        theirs = peer_step(peer, peer_pictures(batch), peer_targets(batch))
        loop = LoopConfig(precision="bf16", batch_size=count, compile=not settings.small)
        step = our_step(task, loop, device=device)
        torch.set_float32_matmul_precision("high")
        comparison = compare(partial(step, batch), theirs, rounds=settings.rounds)
        rate = _loaded_rate(step, settings, count=count, size=size, device=device)
        work = f"{case.name} training, batch {count}"
        rows += [
            Row(f"{work}, step", comparison.ratio, "x", 2, detail=str(comparison)),
            Row(f"{work}, from JPEGs", rate, "pictures/s", at_least, aim),
        ]
    return rows


def gpu_inference(settings: Settings) -> list[Row]:
    """Measure finding objects, one picture at a time and eight."""
    device = _device(settings)
    size = SMALL_SIZE if settings.small else SIZE
    rows = []
    for case in settings.chosen({case.name: case for case in (R50_FPN, R101_FPN)}):
        case = case.smaller() if settings.small else case
        task = make_task(case)
        task.to(device)
        peer = make_peer(case, task, size=size).to(device).eval()
        task.model.eval()
        for count in (1, 2 if settings.small else 8):
            batch = make_batch(count, size=size).to(device)
            torch.set_float32_matmul_precision("highest")
            check_detections(task, peer, batch)
            torch.set_float32_matmul_precision("high")
            comparison = compare(
                _prediction(partial(task.predict, batch), device),
                _prediction(partial(peer, peer_pictures(batch)), None),
                rounds=settings.rounds,
            )
            work = f"{case.name} inference, batch {count}"
            rows.append(Row(work, comparison.ratio, "x", 2, 4, detail=str(comparison)))
            limit = 5.0 if count == 8 else None
            rows.append(_milliseconds(work, comparison, count, limit))
    return rows


def gpu_classify(settings: Settings) -> list[Row]:
    """Measure ResNet-101's training as a classifier on made-up pictures of 224 pixels."""
    device = _device(settings)
    count, side = (2, 64) if settings.small else (CLASSIFY_BATCH, 224)
    model = resnet101().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    pixels = torch.randn(count, 3, side, side, device=device)
    pixels = pixels.to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (count,), device=device)

    def loss_of(pixels: torch.Tensor) -> torch.Tensor:
        with autocast(device, "bf16"):
            return nn.functional.cross_entropy(model(pixels).float(), labels)

    compiled = loss_of if settings.small else torch.compile(loss_of)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        compiled(pixels).backward()
        optimizer.step()

    for _ in range(1 if settings.small else WARM_UP_STEPS):
        step()
    rate = count / _seconds(step, steps=1 if settings.small else TIMED_STEPS)
    return [Row(f"resnet101 training, batch {count}", rate, "pictures/s", 3000, 4000)]


def gpu_trace(settings: Settings) -> list[Row]:
    """Trace one training step: results/trace_*.json for a browser, and the device's busy share."""
    device = _device(settings)
    size, count = (SMALL_SIZE, 1) if settings.small else (SIZE, TRAIN_BATCH)
    rows = []
    for case in settings.chosen({case.name: case for case in (R101_FPN, R101_C4)}):
        case = case.smaller() if settings.small else case
        batch = make_batch(count, size=size).to(device)
        loop = LoopConfig(precision="bf16", batch_size=count)
        step = our_step(make_task(case), loop, device=device)
        step(batch)
        counter = FlopCounterMode(display=False)
        with counter:
            step(batch)
        seconds = _seconds(partial(step, batch), steps=1 if settings.small else TIMED_STEPS)
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as trace:
            step(batch)
        averages = trace.key_averages()
        order = f"self_{device.type}_time_total"
        settings.say(averages.table(sort_by=order, row_limit=25, max_name_column_width=60))
        if not settings.small:
            trace.export_chrome_trace(f"results/trace_{case.name}.json")
        rows.append(Row(f"{case.name} step, batch {count}", seconds * 1e3, "ms"))
        if device.type == "cuda":
            busy = sum(each.self_device_time_total for each in averages) / 1e6
            peak = peak_flops(dtype=torch.bfloat16, device=device)["matmul"]
            share = counter.get_total_flops() / seconds / peak
            rows.append(Row(f"{case.name} device busy", 100 * busy / seconds, "%"))
            rows.append(Row(f"{case.name} share of matmul peak", 100 * share, "%"))
    return rows


def _device(settings: Settings) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if settings.small:
        return torch.device("cpu")
    raise UserError("benchmark.py gpu-...: expected a CUDA device, got none (--small needs none)")


def _prediction(predict: Callable[[], object], device: torch.device | None) -> Callable[[], object]:
    """Return `predict` without gradients; in bfloat16 on `device`, where it is given."""

    def run() -> object:
        with torch.inference_mode():
            if device is None:
                return predict()
            with autocast(device, "bf16"):
                return predict()

    return run


def _milliseconds(work: str, comparison: Comparison, count: int, limit: float | None) -> Row:
    each = sorted(comparison.ours)[len(comparison.ours) // 2] / count * 1e3
    return Row(f"{work}, a picture", each, "ms", limit, smaller_is_better=True)


def _seconds(step: Callable[[], object], *, steps: int) -> float:
    """Return the mean time of a step; the device is waited for at the end alone."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def _loaded_rate(
    step: Callable[[Batch], object],
    settings: Settings,
    *,
    count: int,
    size: tuple[int, int],
    device: torch.device,
) -> float:
    """Return the pictures a second of training from JPEG files, loader and all."""
    warm_up, timed = (1, 1) if settings.small else (WARM_UP_STEPS, TIMED_STEPS)
    data = _jpegs(settings.folder, count=count if settings.small else NUM_JPEGS, size=size)
    plan = training_batches(data.groups, batch_size=count, seed=0)
    parts = split_batches(data, plan, rank=0, world_size=1, accumulate=1)
    loader = LoaderConfig(workers=0 if settings.small else 14)
    deliveries = read_batches(data, parts, config=loader, device=device, substitute=True)

    def loaded_step() -> object:
        batch = next(deliveries).batch
        assert batch is not None
        return step(batch)

    for _ in range(warm_up):
        loaded_step()
    return count / _seconds(loaded_step, steps=timed)


def _jpegs(folder: Path, *, count: int, size: tuple[int, int]) -> CocoDetection:
    """Write JPEGs of the shape of `size` and as wide as COCO's; return them as training data."""
    height, width = round(640 * size[0] / size[1]), 640
    batch = make_batch(1, size=(height, width))
    pixels = batch.images.pixels[0, :, :height, :width].permute(1, 2, 0)
    noise = torch.randint(-12, 12, pixels.shape, generator=torch.Generator().manual_seed(0))
    noisy = (pixels + noise).clamp(0, 255).byte().numpy()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        cv2.imwrite(str(folder / f"{number}.jpg"), noisy)
        name = f"{number}.jpg"
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for box, label in zip(batch.targets.boxes[0], batch.targets.labels[0], strict=True):
            x1, y1, x2, y2 = box.tolist()
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(NUM_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    split = SplitConfig(images=str(folder), annotations=str(folder / "train.json"))
    augment = AugmentConfig(short_sides=(min(size),), max_side=max(size))
    return CocoDetection(split, config=DataConfig(train=split, augment=augment), training=True)
