"""The only evaluation loop."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.checkpoint import prepare_output
from engine.distributed import World, broadcast_object, gather_objects, world
from engine.loader import Delivery, evaluation_batches, read_batches
from engine.log import RunLog
from engine.schema import RunConfig
from engine.step import autocast, memory_layout
from engine.task import Evaluator, Task


@dataclass
class EvaluationResult:
    """Metrics (on every process), and the evaluator and drawn pictures (on the main one)."""

    metrics: dict[str, float]
    evaluator: Evaluator
    pictures: list[np.ndarray] = field(default_factory=list)


def evaluate(
    task: Task, config: RunConfig, *, output: Path | None = None, device: str | None = None
) -> dict[str, float]:
    """Score a task on its validation pictures and show the table.

    Args:
        task: what to score, with its weights in place.
        config: the run's config; loader and loop settings are used.
        output: folder for the result files; None writes none.
        device: as `--device`; None picks a GPU when there is one.

    Returns:
        Metrics by name, the same whatever the number of processes.
    """
    with world(device, timeout_s=config.loop.collective_timeout_s) as here:
        if output is not None and here.is_main:
            prepare_output(output)
        log = RunLog(None, is_main=here.is_main)
        task.model.to(here.device, memory_format=memory_layout(config.loop))  # type: ignore[call-overload]
        result = run_evaluation(task, config, here, log)
        if here.is_main:
            log.evaluation(0, result.metrics, result.evaluator.table())
            if output is not None:
                result.evaluator.write(output)
        log.close()
    return result.metrics


def run_evaluation(
    task: Task, config: RunConfig, here: World, log: RunLog, *, final: bool = True
) -> EvaluationResult:
    """Predict every validation picture once, over all processes, and score on the main one.

    Args:
        task: what to score.
        config: the run's config; loader and loop settings are used.
        here: this process among all.
        log: receives progress, and a line for each picture that was skipped.
        final: as for `Task.evaluator`.
    """
    data = task.val_data()
    plan = evaluation_batches(data.groups, batch_size=config.loop.eval_batch_size)
    mine = plan[here.rank :: here.size]
    deliveries = read_batches(
        data, mine, config=config.loader, device=here.device, substitute=False
    )
    evaluator = task.evaluator(final=final)
    result = EvaluationResult({}, evaluator)
    started = time.perf_counter()
    was_training = task.model.training
    task.model.eval()
    try:
        with torch.inference_mode(), autocast(here.device, config.loop.precision):
            shown = log.progress(deliveries, len(mine), "evaluating")
            skipped = _predict_all(task, shown, result, config.loop.drawn_pictures)
    finally:
        task.model.train(was_training)
    states = gather_objects((evaluator.state(), skipped))
    if here.is_main:
        seconds = time.perf_counter() - started
        reasons = [reason for _, some in states for reason in some]
        for reason in reasons:
            log.note(f"skipped, counted as without detections: {reason}")
        metrics = evaluator.compute([state for state, _ in states])
        speed = {"num_skipped": len(reasons), "images_per_second": len(data) / seconds}
        result.metrics = {**metrics, **speed}
    result.metrics = broadcast_object(result.metrics)
    return result


def _predict_all(
    task: Task, deliveries: Iterator[Delivery], result: EvaluationResult, drawn: int
) -> list[str]:
    skipped: list[str] = []
    for delivery in deliveries:
        skipped += delivery.skipped
        batch: Any = delivery.batch
        if batch is None:
            continue
        predictions = task.predict(batch)
        result.evaluator.update(batch, predictions)
        if len(result.pictures) < drawn:
            missing = drawn - len(result.pictures)
            result.pictures += task.draw(batch, predictions)[:missing]
    return skipped
