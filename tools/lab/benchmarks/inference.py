"""Benchmark: detection in one image, against the same network built from torchvision's parts."""

from functools import partial

import torch

from engine.schema import Precision
from tools.lab.benchmarks.agreement import check_detections
from tools.lab.benchmarks.measure import Row
from tools.lab.benchmarks.networks import (
    R50_FPN,
    R101_C4,
    SIZE,
    SMALL_SIZE,
    chosen_cases,
    make_batch,
    make_peer,
    make_task,
)
from tools.lab.benchmarks.peers import (
    WAYS,
    Target,
    Way,
    compare_both_ways,
    peer_prediction,
    speed_rows,
)
from tools.lab.benchmarks.settings import Settings
from tools.lab.benchmarks.steps import CPU, our_prediction

PROMISED: dict[Way, dict[tuple[str, Precision], Target]] = {  # times as fast as the peer
    "like for like": {
        ("r101_c4", "fp32"): (None, None),
        ("r101_c4", "bf16"): (1.8, 2.5),
        ("r50_fpn", "fp32"): (None, None),
        ("r50_fpn", "bf16"): (1.4, 2.0),
    },
    "peer as its users run it": {
        ("r101_c4", "fp32"): (2.2, 2.6),
        ("r101_c4", "bf16"): (4.0, 5.0),
        ("r50_fpn", "fp32"): (1.25, 1.5),
        ("r50_fpn", "bf16"): (1.9, 2.5),
    },
}


def inference(settings: Settings) -> list[Row]:
    """Measure the detection of one image, from pixels to boxes."""
    rows = []
    size = SMALL_SIZE if settings.small else SIZE
    for case in chosen_cases(settings, R101_C4, R50_FPN):
        batch = make_batch(1, size=size)
        task = make_task(case)
        peer = make_peer(case, task, size=size).eval()
        task.model.to(memory_format=torch.channels_last)
        task.model.eval()
        count = check_detections(task, peer, batch)
        settings.log(f"{case.name}: the same {count} objects as torchvision's parts")
        for precision in settings.precisions():
            ours = our_prediction(task, batch, precision=precision)
            theirs = partial(peer_prediction, case, task, batch, precision=precision)
            comparisons = compare_both_ways(ours, theirs, settings, device=CPU)
            targets = {way: PROMISED[way][case.name, precision] for way in WAYS}
            rows += speed_rows(f"{case.name} one image, {precision}", comparisons, targets)
    return rows
