"""Benchmark: training steps, against the same network of torchvision's parts."""

from functools import partial

import torch

from detection.structures import DetectionBatch
from engine.schema import LoopConfig, Precision
from tools.lab.benchmarks.agreement import check_losses
from tools.lab.benchmarks.measure import Row, peak_flops
from tools.lab.benchmarks.networks import (
    MASK_R50_FPN,
    R50_FPN,
    R101_C4,
    SIZE,
    SMALL_SIZE,
    Case,
    chosen_cases,
    make_batch,
    make_peer,
    make_task,
)
from tools.lab.benchmarks.peers import WAYS, Target, Way, compare_both_ways, peer_step, speed_rows
from tools.lab.benchmarks.settings import Settings
from tools.lab.benchmarks.steps import CPU, operations_of, our_step

PROMISED: dict[Way, dict[tuple[str, Precision], Target]] = {  # times as fast as the peer
    "like for like": {
        ("r101_c4", "fp32"): (None, None),
        ("r101_c4", "bf16"): (2.0, 3.0),
        ("r50_fpn", "fp32"): (None, None),
        ("r50_fpn", "bf16"): (1.5, 2.0),
        ("mask_r50_fpn", "fp32"): (None, None),
        ("mask_r50_fpn", "bf16"): (1.4, 2.0),
    },
    "peer as its users run it": {
        ("r101_c4", "fp32"): (1.8, 2.2),
        ("r101_c4", "bf16"): (3.3, 4.0),
        ("r50_fpn", "fp32"): (1.4, 1.6),
        ("r50_fpn", "bf16"): (2.8, 3.3),
        ("mask_r50_fpn", "fp32"): (1.4, 1.6),
        ("mask_r50_fpn", "bf16"): (2.6, 3.2),
    },
}
PEAK_SHARE = {"fp32": (65, 78), "bf16": (50, 62)}
"""(promised, aim): operations per second of a step, in percent of the measured convolution peak."""


def train(settings: Settings) -> list[Row]:
    """Measure training steps of one image, also as a share of the machine's convolution peak."""
    rows = []
    size = SMALL_SIZE if settings.small else SIZE
    for case in chosen_cases(settings, R101_C4, R50_FPN, MASK_R50_FPN):
        batch = make_batch(1, size=size, masks=case.masks)
        task = make_task(case)
        check_losses(task, make_peer(case, task, size=size), batch)
        settings.log(f"{case.name}: the same losses on the same samples as torchvision's parts")
        for precision in settings.precisions():
            rows += _measure(case, batch, precision, settings)
    return rows


def _measure(
    case: Case, batch: DetectionBatch, precision: Precision, settings: Settings
) -> list[Row]:
    task = make_task(case)
    step = partial(our_step(task, LoopConfig(precision=precision), device=CPU), batch)
    operations = operations_of(step)
    comparisons = compare_both_ways(
        step, partial(peer_step, case, task, batch, precision=precision), settings, device=CPU
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peaks = peak_flops(dtype=dtype, device=CPU, rounds=settings.rounds)
    # the fastest round, as for the peak
    rate = operations / min(min(each.ours) for each in comparisons.values())
    targets = {way: PROMISED[way][case.name, precision] for way in WAYS}
    share_at_least, share_aim = PEAK_SHARE[precision]
    return [
        *speed_rows(f"{case.name} step, {precision}", comparisons, targets),
        Row(
            f"{case.name} share of conv peak, {precision}",
            100 * rate / peaks["conv"],
            "%",
            share_at_least,
            share_aim,
            detail=f"{rate / 1e9:.0f} of {peaks['conv'] / 1e9:.0f} Gflop/s; "
            f"matmul {peaks['matmul'] / 1e9:.0f}",
        ),
    ]
