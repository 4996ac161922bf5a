"""Stage that times the sparse product of RoIAlign: torch operators against Triton kernels.

An experiment: the project does not use the kernels. M groups of K bags with J taps.
"""

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from detection.ops.kernels.roi_align import align_matrix
from detection.ops.kernels.sum_bags import gradient_at_once, pick, sum_at_once
from detection.ops.roi_pool import assign_levels
from tools.lab.gpu_check.record import DEVICE, DRY, attempt, save, times_of

CASES: dict[str, tuple[list[tuple[int, int]], list[int], int, int, int]] = {
    "c4_512": ([(50, 84)], [16], 14, 1, 512),
    "c4_2048": ([(50, 84)], [16], 14, 2, 2048),
    "fpn_256": ([(200, 336), (100, 168), (50, 84), (25, 42)], [4, 8, 16, 32], 7, 1, 256),
}
"""By name: shapes and strides of the levels, resolution, stride of the bins, channels."""
FORWARD_SIZES = ((8, 256, 4), (8, 256, 8), (16, 256, 8), (1, 512, 1))
"""Bags, columns and warps per program; the first is the kernels' default."""
BACKWARD_SIZES = (
    (16, 256, 4, 1),
    (16, 256, 4, 3),
    (8, 512, 4, 3),
    (8, 256, 4, 1),
    (4, 256, 1, 1),
)
"""Taps, columns, warps and pipeline stages per program; the first is the kernels' default."""


def time_bags() -> None:
    """Time forward and backward for the regions of sixteen images."""
    for name in CASES:
        attempt("bags", name, partial(_time_case, name))


def _boxes(batch: int, count: int) -> Tensor:
    """Return (batch, count, 4) boxes of 20 to 250 pixels in images of 800x1344."""
    generator = torch.Generator().manual_seed(0)
    limit = torch.tensor([1344.0, 800.0])
    centre = torch.rand(batch, count, 2, generator=generator) * limit
    # log-uniform sides: exp(2.3) = 10 to exp(4.8) = 121, plus 10
    half = (torch.rand(batch, count, 2, generator=generator) * 2.5 + 2.3).exp() / 2 + 5
    boxes = torch.cat([centre - half, centre + half], 2)
    return boxes.clamp(min=0).minimum(limit.repeat(2)).to(DEVICE)


def _time_case(name: str) -> None:
    from tools.lab.gpu_check import bag_kernels as kernels

    shapes, strides, resolution, stride, channels = CASES[name]
    batch, count = (1, 4) if DRY else (16, 512)
    boxes = _boxes(batch, count)
    levels = torch.zeros(boxes.shape[:2], dtype=torch.int64, device=DEVICE)
    if len(shapes) > 1:
        levels = assign_levels(boxes, num_levels=len(shapes))
    idxs, weights = align_matrix(
        [torch.Size(shape) for shape in shapes],
        strides,
        boxes,
        levels,
        resolution=resolution,
        sampling_ratio=2,
        aligned=True,
        bin_stride=stride,
    )
    dtype = torch.float32 if DRY else torch.bfloat16
    weights = weights.to(dtype)
    # All levels as one table of rows, one row per cell. Indices are relative to their level, so the
    # start of the level is added.
    lengths = [batch * height * width for height, width in shapes]
    starts = list(accumulate(lengths, initial=0))[:-1]
    idxs = idxs + pick(starts, levels.flatten()).to(idxs.dtype)[:, None, None]
    table_of = torch.zeros(len(idxs), dtype=torch.int64, device=DEVICE)  # all levels are one table
    rows = torch.randn(sum(lengths), channels, device=DEVICE, dtype=dtype)
    grad = torch.randn(*idxs.shape[:2], channels, device=DEVICE, dtype=dtype)

    def forward() -> Tensor:
        return sum_at_once([rows], table_of, idxs, weights)

    def backward() -> Tensor:
        return gradient_at_once(grad, table_of, idxs, weights, [len(rows)])[0]

    values: dict[str, float] = {
        "torch_forward": times_of(forward, warm=1, calls=4)["ms"],
        "torch_backward": times_of(backward, warm=1, calls=3)["ms"],
        "sort": times_of(lambda: idxs.flatten().sort(stable=True), warm=1, calls=4)["ms"],
    }
    if not DRY:
        # torch_backward includes the sort; a kernel's backward needs the plan, which includes it
        work = partial(kernels.plan, idxs, weights, len(rows))
        values["plan"] = times_of(work, warm=1, calls=4)["ms"]
        taps, expected = work(), forward().float()
        for size in FORWARD_SIZES:
            step = partial(kernels.forward, rows, idxs, weights, size=size)
            values |= _time_kernel(f"forward_{size}", step, expected)
        expected = backward().float()
        for sizes in BACKWARD_SIZES:
            step = partial(kernels.backward, grad, taps, size=sizes)
            values |= _time_kernel(f"backward_{sizes}", step, expected)
    save("bags", **{name: values})


def _time_kernel(name: str, step: Callable[[], Tensor], expected: Tensor) -> dict[str, float]:
    """Return milliseconds, and the norm of the error relative to that of `expected`."""
    error = float((step().float() - expected).norm() / expected.norm())
    return {name: times_of(step, warm=1, calls=4)["ms"], f"{name}_error": error}
