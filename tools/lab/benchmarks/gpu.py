"""Benchmarks: training and inference on one GPU in bfloat16, against torchvision's parts.

The peer runs eagerly on images that are already on the GPU: like for like with ours, and in TF32,
as its users run it. Ours is also measured with JPEG files that come through the loader. The
benchmarks need a CUDA device; with `small` they also run on a CPU, as a check of the code.
"""

import json
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path

import cv2
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from backbones.resnet import resnet101
from detection.config import AugmentConfig, DataConfig, SplitConfig
from detection.data.dataset import CocoDetection
from detection.ops.boxes import xyxy_to_xywh
from engine.backend_settings import backend_settings
from engine.errors import UserError
from engine.loader import read_batches, split_batches, training_batches
from engine.precision import autocast
from engine.schema import LoaderConfig, LoopConfig, PrecisionSetting
from engine.task import Batch
from tools.lab.benchmarks.agreement import check_detections, check_losses
from tools.lab.benchmarks.images import coco_document
from tools.lab.benchmarks.measure import Row, mean_seconds, peak_flops
from tools.lab.benchmarks.networks import (
    NUM_CLASSES,
    R50_FPN,
    R101_C4,
    R101_FPN,
    SMALL_SIZE,
    chosen_cases,
    make_batch,
    make_peer,
    make_task,
)
from tools.lab.benchmarks.peers import (
    Target,
    Way,
    compare_both_ways,
    peer_prediction,
    peer_step,
    speed_rows,
)
from tools.lab.benchmarks.settings import Settings
from tools.lab.benchmarks.steps import operations_of, our_prediction, our_step

SIZE = (800, 1344)
TRAIN_BATCH, CLASSIFY_BATCH = 16, 256
TRAIN_SPEED: dict[Way, Target] = {  # times as fast as the peer
    "like for like": (1.3, None),
    "peer as its users run it": (2.0, None),
}
INFERENCE_SPEED: dict[Way, Target] = {
    "like for like": (1.2, None),
    "peer as its users run it": (2.0, 4.0),
}
IMAGES_PER_SECOND = {  # promised, aim
    "r101_fpn": (60, 120),
    "r101_c4": (35, 70),
}
NUM_JPEGS, NUM_WORKERS, WARM_UP_STEPS, TIMED_STEPS = 256, 14, 5, 20


def gpu_train(settings: Settings) -> list[Row]:
    """Measure a training step against the peer's, and training with images from JPEG files."""
    device, precision = _device(settings), _precision(settings)
    size, count = (SMALL_SIZE, 2) if settings.small else (SIZE, TRAIN_BATCH)
    rows = []
    for case in chosen_cases(settings, R101_FPN, R101_C4):
        promised, aim = IMAGES_PER_SECOND[case.name]
        batch = make_batch(count, size=size).to(device)
        task = make_task(case)
        task.to(device)
        peer = make_peer(case, task, size=size).to(device)
        # TF32 would differ by more than the tolerance, so agreement is checked in full float32
        with float32_products(exact=True):
            check_losses(task, peer, make_batch(1, size=size).to(device))
        loop = LoopConfig(precision=precision, batch_size=count, compile=not settings.small)
        step = our_step(task, loop, device=device)
        theirs = partial(peer_step, case, task, batch, precision=precision)
        # a compiled step is compiled again if these flags change
        with float32_products(exact=False):
            comparisons = compare_both_ways(partial(step, batch), theirs, settings, device=device)
            rate = _loaded_rate(step, settings, count=count, size=size, device=device)
        work = f"{case.name} training, batch {count}"
        rows += speed_rows(f"{work}, step", comparisons, TRAIN_SPEED)
        rows.append(Row(f"{work}, from JPEGs", rate, "images/s", promised, aim))
    return rows


def gpu_inference(settings: Settings) -> list[Row]:
    """Measure detection with batches of one and eight images."""
    device, precision = _device(settings), _precision(settings)
    size = SMALL_SIZE if settings.small else SIZE
    rows = []
    for case in chosen_cases(settings, R50_FPN, R101_FPN):
        task = make_task(case)
        task.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        peer = make_peer(case, task, size=size).to(device).eval()
        task.model.eval()
        for count in (1, 2 if settings.small else 8):
            batch = make_batch(count, size=size).to(device)
            with float32_products(exact=True):
                check_detections(task, peer, batch)
            ours = our_prediction(task, batch, precision=precision)
            theirs = partial(peer_prediction, case, task, batch, precision=precision)
            with float32_products(exact=False):
                comparisons = compare_both_ways(ours, theirs, settings, device=device)
            work = f"{case.name} inference, batch {count}"
            rows += speed_rows(work, comparisons, INFERENCE_SPEED)
            limit = 5.0 if count == 8 else None
            seconds = [taken for each in comparisons.values() for taken in each.ours]
            each = statistics.median(seconds) / count * 1e3
            rows.append(Row(f"{work}, an image", each, "ms", limit, smaller_is_better=True))
            if device.type == "cuda":
                graphs = our_prediction(task, batch, precision=precision, cuda_graphs=True)
                graphs()  # captures
                each = mean_seconds(graphs, calls=TIMED_STEPS) / count * 1e3
                work = f"{work}, an image, CUDA graphs"
                rows.append(Row(work, each, "ms", limit, smaller_is_better=True))
    return rows


def gpu_classify(settings: Settings) -> list[Row]:
    """Measure the training of a ResNet-101 classifier on random images of 224 pixels."""
    device, precision = _device(settings), _precision(settings)
    count, side = (2, 64) if settings.small else (CLASSIFY_BATCH, 224)
    model = resnet101().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    pixels = torch.randn(count, 3, side, side, device=device)
    pixels = pixels.to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (count,), device=device)

    def stage_config(pixels: torch.Tensor) -> torch.Tensor:
        with autocast(device, precision):
            return nn.functional.cross_entropy(model(pixels).float(), labels)

    compiled = stage_config if settings.small else torch.compile(stage_config)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        compiled(pixels).backward()
        optimizer.step()

    for _ in range(1 if settings.small else WARM_UP_STEPS):
        step()
    rate = count / mean_seconds(step, calls=1 if settings.small else TIMED_STEPS)
    return [Row(f"resnet101 training, batch {count}", rate, "images/s", 3000, 4000)]


def gpu_trace(settings: Settings) -> list[Row]:
    """Profile one training step: a trace_*.json for a browser, and the busy share of the device."""
    device, precision = _device(settings), _precision(settings)
    size, count = (SMALL_SIZE, 1) if settings.small else (SIZE, TRAIN_BATCH)
    rows = []
    for case in chosen_cases(settings, R101_FPN, R101_C4):
        batch = make_batch(count, size=size).to(device)
        loop = LoopConfig(precision=precision, batch_size=count)
        step = our_step(make_task(case), loop, device=device)
        step(batch)  # warm-up: libraries load and kernels are chosen
        operations = operations_of(partial(step, batch))
        seconds = mean_seconds(partial(step, batch), calls=1 if settings.small else TIMED_STEPS)
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities, acc_events=True) as trace:  # else torch 2.11 warns
            step(batch)
        averages = trace.key_averages()
        order = f"self_{device.type}_time_total"
        settings.log(averages.table(sort_by=order, row_limit=25, max_name_column_width=60))
        if settings.output is not None:
            trace.export_chrome_trace(str(settings.output / f"trace_{case.name}.json"))
        rows.append(Row(f"{case.name} step, batch {count}", seconds * 1e3, "ms"))
        if device.type == "cuda":
            # Only the rows of kernels: the rows of operators contain the same time again.
            microseconds = sum(
                each.self_device_time_total
                for each in averages
                if each.device_type.name == "CUDA" and not each.is_user_annotation
            )
            busy = microseconds / 1e6
            peak = peak_flops(dtype=torch.bfloat16, device=device)["matmul"]
            share = operations / seconds / peak
            rows.append(Row(f"{case.name} device busy", 100 * busy / seconds, "%"))
            rows.append(Row(f"{case.name} share of matmul peak", 100 * share, "%"))
    return rows


def _precision(settings: Settings) -> PrecisionSetting:
    """Return bf16; if small, the precision that the device is fast in, as there may be no GPU."""
    return "auto" if settings.small else "bf16"


def _device(settings: Settings) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if settings.small:
        return torch.device("cpu")
    raise UserError("benchmark.py gpu-...: expected a CUDA device, got none (--small needs none)")


def float32_products(*, exact: bool) -> AbstractContextManager[None]:
    """Return a context that multiplies float32 matrices on a GPU exactly, or in TF32."""
    return backend_settings(LoopConfig(tf32=not exact), torch.device("cuda"))


def _loaded_rate(
    step: Callable[[Batch], object],
    settings: Settings,
    *,
    count: int,
    size: tuple[int, int],
    device: torch.device,
) -> float:
    """Return the images per second of training from JPEG files, with the loader.

    The first batches are not counted, because the workers read them all at the same time.
    """
    data = _jpegs(settings.folder, count=count if settings.small else NUM_JPEGS, size=size)
    plan = training_batches(data.groups, batch_size=count, seed=0)
    parts = split_batches(data, plan, rank=0, world_size=1, accumulate=1)
    loader = LoaderConfig(workers=0 if settings.small else NUM_WORKERS)
    batches = read_batches(data, parts, config=loader, device=device, substitute=True)

    def loaded_step() -> object:
        batch = next(batches).batch
        assert batch is not None
        return step(batch)

    with closing(batches):
        # as many batches as are prefetched before the first one is taken, and one more
        for _ in range(1 + loader.workers * loader.prefetch):
            loaded_step()
        return count / mean_seconds(loaded_step, calls=1 if settings.small else 2 * TIMED_STEPS)


def _jpegs(folder: Path, *, count: int, size: tuple[int, int]) -> CocoDetection:
    """Write JPEGs, 640 pixels wide as COCO's, of the aspect ratio of `size`; return a data set."""
    height, width = round(640 * size[0] / size[1]), 640
    batch = make_batch(1, size=(height, width))
    pixels = batch.images.pixels[0, :, :height, :width].permute(1, 2, 0)
    # smooth images would compress better and decode faster than photographs
    noise = torch.randint(-12, 12, pixels.shape, generator=torch.Generator().manual_seed(0))
    noisy = (pixels + noise).clamp(0, 255).byte().numpy()
    for number in range(count):
        cv2.imwrite(str(folder / f"{number}.jpg"), noisy)
    targets, valid = batch.targets, batch.targets.valid[0]
    boxes, labels = targets.boxes[0, valid], targets.labels[0, valid]
    objects = [
        {
            "id": number * len(boxes) + index,
            "image_id": number,
            "category_id": int(labels[index]) + 1,
            "bbox": xywh,
            "area": xywh[2] * xywh[3],
            "iscrowd": 0,
        }
        for number in range(count)
        for index, xywh in enumerate(xyxy_to_xywh(boxes).tolist())
    ]
    document = coco_document([(height, width)] * count, objects, num_classes=NUM_CLASSES)
    (folder / "train.json").write_text(json.dumps(document))
    split = SplitConfig(images=str(folder), annotations=str(folder / "train.json"))
    augment = AugmentConfig(short_sides=(min(size),), max_side=max(size))
    return CocoDetection(split, config=DataConfig(train=split, augment=augment), training=True)
