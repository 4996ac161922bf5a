"""The only evaluation loop."""

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from engine.checkpoint import prepare_output
from engine.distributed import (
    World,
    broadcast_buffers,
    broadcast_object,
    gather_objects,
    world,
)
from engine.errors import EvaluationError, InterruptedRunError, UserError
from engine.interrupt import StopRequest
from engine.kernels import kernels_note
from engine.loader import Delivery, evaluation_batches, read_batches
from engine.log import RunLog
from engine.precision import autocast
from engine.schema import RunConfig
from engine.step import memory_layout
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
        log.note(kernels_note())
        task.model.to(here.device, memory_format=memory_layout(config.loop))  # type: ignore[call-overload]
        try:
            result = run_evaluation(task, config, here, log, output=output)
        except EvaluationError as error:
            end_with(error)
        if here.is_main:
            log.evaluation(0, result.metrics, result.evaluator.table())
        log.close()
    return result.metrics


def run_evaluation(
    task: Task,
    config: RunConfig,
    here: World,
    log: RunLog,
    *,
    output: Path | None = None,
    final: bool = True,
    stop: StopRequest | None = None,
) -> EvaluationResult:
    """Predict every validation picture once, over all processes, and score on the main one.

    Args:
        task: what to score.
        config: the run's config; loader and loop settings are used.
        here: this process among all.
        log: receives progress, and a line for each picture that was skipped.
        output: folder for the result files; None writes none.
        final: as for `Task.evaluator`.
        stop: looked at after each batch; None evaluates to the end.

    Raises:
        EvaluationError: on every process, where one of them could not read or score its images.
        InterruptedRunError: on every process, where one of them was asked to stop.
    """
    broadcast_buffers(task.model)  # else the numbers would depend on the number of processes
    data = task.val_data()
    plan = evaluation_batches(data.groups, batch_size=config.loop.eval_batch_size)
    mine = plan[here.rank :: here.size]
    evaluator = task.evaluator(final=final)
    result = EvaluationResult({}, evaluator)
    skipped: list[str] = []
    failures: list[Exception] = []
    started = time.perf_counter()
    was_training = task.model.training
    task.model.eval()
    try:
        with torch.inference_mode(), autocast(here.device, config.loop.precision):
            deliveries = read_batches(
                data, mine, config=config.loader, device=here.device, substitute=False
            )
            shown = log.progress(deliveries, len(mine), "evaluating")
            skipped += _predict_all(task, shown, result, config.loop.drawn_pictures, stop)
    except Exception as error:  # the other processes have to learn of it, whatever it is
        failures.append(error)
    finally:
        task.model.train(was_training)
    asked = stop is not None and stop.requested
    states = gather_objects((evaluator.state(), skipped, _told(failures), asked))
    told, stopped = "".join(text for *_, text, _ in states), any(asked for *_, asked in states)
    if here.is_main and not told and not stopped:
        seconds = time.perf_counter() - started
        reasons = [reason for _, some, *_ in states for reason in some]
        for reason in reasons:
            log.note(f"skipped, counted as without detections: {reason}")
        try:
            metrics = evaluator.compute([state for state, *_ in states])
            if output is not None:
                evaluator.write(output)
        except Exception as error:
            failures.append(error)
            told = _told(failures)
        else:
            speed = {"num_skipped": len(reasons), "images_per_second": len(data) / seconds}
            result.metrics = {**metrics, **speed}
    result.metrics, told, stopped = broadcast_object((result.metrics, told, stopped))
    if stopped:
        raise InterruptedRunError("interrupted in an evaluation")
    if told:
        raise EvaluationError(told) from (failures[0] if failures else None)
    return result


def end_with(error: EvaluationError) -> NoReturn:
    """Raise an evaluation's failure: in one line what a user can mend, with its traceback a bug."""
    cause = error.__cause__
    raise error if cause is None or isinstance(cause, UserError) else cause


def _told(failures: list[Exception]) -> str:
    """Return what a process says of its failure to the others; "": it had none."""
    return "".join(
        str(error)
        if isinstance(error, UserError)
        else "".join(traceback.format_exception_only(error))
        for error in failures
    ).strip()


def _predict_all(
    task: Task,
    deliveries: Iterator[Delivery],
    result: EvaluationResult,
    drawn: int,
    stop: StopRequest | None,
) -> list[str]:
    skipped: list[str] = []
    for delivery in deliveries:
        if stop is not None and stop.requested:
            break
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
