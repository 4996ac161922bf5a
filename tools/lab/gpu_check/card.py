"""First stages: description and limits of the GPU, and checks that all else depends on."""

import importlib.metadata
import os
import subprocess
import sys
import time
import warnings

import torch

from engine.provenance import current_commit
from tools.lab.gpu_check.record import DEVICE, DRY, attempt, median_ms, save, times_of

PACKAGES = (
    *("torch", "torchvision", "triton", "numpy", "opencv-python-headless", "albumentations"),
    *("pydantic", "msgspec", "pycocotools", "hotcoco", "rich", "safetensors", "tensorboard"),
    *("matplotlib", "pytest", "pytest-xdist", "pytest-timeout", "hypothesis"),
)

NMS_CASES = ((12000, 2000, 16), (8819, 2000, 16), (6000, 1000, 1), (4819, 1000, 1))
"""Number of boxes, kept boxes and images: C4 and FPN in training, then at test time."""


def environment() -> None:
    """Record versions, the machine, and the measured memory and matmul limits of the GPU."""
    found, missing = {}, []
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    save("env", python=sys.version.split()[0], packages=found, missing=missing)
    shared = os.statvfs("/dev/shm")
    save(
        "env",
        cores=os.cpu_count(),
        shm_gib=round(shared.f_frsize * shared.f_bavail / 2**30, 1),
        commit=current_commit(),
    )
    if DEVICE.type == "cuda":
        query = "name,memory.total,driver_version,clocks.sm,temperature.gpu"
        card = _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
        properties = torch.cuda.get_device_properties(0)
        cudnn = torch.backends.cudnn.version()
        save("env", gpu=card, multiprocessors=properties.multi_processor_count, cudnn=cudnn)
    source = torch.randint(0, 100, (2**20 if DRY else 2**31,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    seconds = median_ms(lambda: target.copy_(source)) * 1e-3
    # a copy reads and writes each byte
    save("env", copy_tb_s=round(2 * source.numel() / seconds / 1e12, 2))
    side = 256 if DRY else 8192
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    # a multiply-add counts as two operations
    save("env", bf16_tflops=round(2 * side**3 / (times_of(lambda: a @ b)["ms"] * 1e-3) / 1e12, 1))


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError as error:
        return str(error)


def smoke() -> None:
    """Check the NMS kernel, gradients under autocast, and that a step never waits for the GPU."""
    if DEVICE.type == "cuda":
        attempt("smoke", "kernel", _compile_kernel)
        attempt("smoke", "nms_speed", _time_nms)
    attempt("smoke", "gradients", _check_gradients)


def _compile_kernel() -> None:
    from detection.ops.nms import find_kernel

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        found = find_kernel(DEVICE)
    seconds = round(time.perf_counter() - start, 1)
    warned = [str(each.message)[:200] for each in caught]
    save("smoke", nms_kernel=found is not None, nms_compile_s=seconds, warned=warned)


def _time_nms() -> None:
    from detection.ops.nms import nms_keep

    for count, kept, batch in NMS_CASES:
        corners = torch.rand(batch, count, 2) * 1000
        boxes = torch.cat([corners, corners + 30 + torch.rand(batch, count, 2) * 200], dim=-1)
        groups, valid = torch.zeros(batch, count, dtype=torch.int64), torch.ones(batch, count) > 0
        parts = (boxes, torch.rand(batch, count), groups, valid)
        on_device = [part.to(DEVICE) for part in parts]

        def work(on_device: list[torch.Tensor] = on_device, kept: int = kept) -> torch.Tensor:
            return nms_keep(*on_device, iou_thresh=0.7, max_kept=kept)

        same = None
        if batch == 1:  # the CPU takes long for sixteen
            expected = nms_keep(*parts, iou_thresh=0.7, max_kept=kept)
            same = torch.equal(work().cpu(), expected)
        values = {**times_of(work), "equals_cpu": same}
        save("smoke", **{f"nms_{count}_{kept}_x{batch}": values})


def _check_gradients() -> None:
    """Run bf16 steps of a small detector; record missing gradients and synchronisations."""
    from engine.distributed import World
    from engine.optim import build_optimizer
    from engine.schema import LoopConfig, OptimConfig
    from engine.step import move_task, training_step, wrap_losses
    from tools.lab.benchmarks.networks import R50_FPN, SMALL_SIZE, make_batch, make_task

    task, loop = make_task(R50_FPN.smaller()), LoopConfig(precision="bf16", batch_size=2)
    move_task(task, loop, DEVICE)
    task.model.train()
    losses_of = wrap_losses(task, loop, World(0, 1, DEVICE))
    optimizer = build_optimizer(task.model, OptimConfig(lr=1e-6), batch_size=2)
    batch = make_batch(2, size=SMALL_SIZE).to(DEVICE)

    def step() -> object:
        return training_step(losses_of, optimizer, [batch], clip_grad_norm=10.0, stop=False)

    # one step fills the gradients
    step()
    named = [(name, p) for name, p in task.model.named_parameters() if p.requires_grad]
    lacking = [name for name, p in named if p.grad is None]
    zero = [name for name, p in named if p.grad is not None and not bool(p.grad.any())]
    # a gradient with other strides than its parameter makes the optimizer copy
    strides = [name for name, p in named if p.grad is not None and p.grad.stride() != p.stride()]
    save("smoke", without_gradient=lacking, zero_gradient=zero[:8], other_strides=len(strides))
    if DEVICE.type == "cuda":
        step()  # the first call initialised libraries
        torch.cuda.set_sync_debug_mode("error")  # any wait for the GPU raises an error
        try:
            step()
            save("smoke", waits="none")
        finally:
            torch.cuda.set_sync_debug_mode("default")
