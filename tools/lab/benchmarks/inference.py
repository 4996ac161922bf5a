"""Benchmark: detection in one image, against the same network built from torchvision's parts."""

from functools import partial

import torch

from engine.precision import autocast
from tools.lab.benchmarks.agreement import check_detections
from tools.lab.benchmarks.measure import Row, compare
from tools.lab.benchmarks.networks import (
    R50_FPN,
    R101_C4,
    SIZE,
    SMALL_SIZE,
    chosen_cases,
    make_batch,
    make_peer,
    make_task,
    peer_inputs,
)
from tools.lab.benchmarks.settings import Settings
from tools.lab.benchmarks.steps import CPU, prediction

PROMISED = {  # (promised, aim): times as fast as the peer in float32
    ("r101_c4", "fp32"): (2.2, 2.6),
    ("r101_c4", "bf16"): (4.0, 5.0),
    ("r50_fpn", "fp32"): (1.25, 1.5),
    ("r50_fpn", "bf16"): (1.9, 2.5),
}


def inference(settings: Settings) -> list[Row]:
    """Measure the detection of one image, from pixels to boxes."""
    rows = []
    size = SMALL_SIZE if settings.small else SIZE
    for case in chosen_cases(settings, R101_C4, R50_FPN):
        batch = make_batch(1, size=size)
        task = make_task(case)
        peer = make_peer(case, task, size=size).eval()
        task.model.eval()
        count = check_detections(task, peer, batch)
        settings.log(f"{case.name}: the same {count} objects as torchvision's parts")
        task.model.to(memory_format=torch.channels_last)
        theirs = prediction(partial(peer, peer_inputs(batch)))
        for precision in settings.precisions():
            ours = prediction(partial(task.predict, batch), autocast(CPU, precision))
            comparison = compare(
                ours, theirs, rounds=settings.rounds, log=settings.log, own_malloc=True
            )
            promised, aim = PROMISED[case.name, precision]
            work = f"{case.name} one image, {precision}"
            rows.append(Row(work, comparison.ratio, "x", promised, aim, detail=str(comparison)))
    return rows
