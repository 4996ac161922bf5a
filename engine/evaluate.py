"""Evaluation loop: predicts and scores a task's validation images, on one or more processes."""

import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from engine.backend_settings import backend_settings
from engine.checkpoint import prepare_output
from engine.distributed import (
    World,
    broadcast_object,
    gather_objects,
    process_group,
)
from engine.errors import EvaluationError, InterruptedRunError, UserError
from engine.interrupt import StopRequest
from engine.kernels import kernels_note
from engine.loader import LoadedBatch, evaluation_batches, read_batches
from engine.log import RunLog
from engine.precision import autocast
from engine.schema import RunConfig
from engine.step import move_task
from engine.task import Evaluator, Task


@dataclass
class EvaluationResult:
    """Result of an evaluation.

    metrics: by name, on every process. evaluator: scored on the main process. images: predictions
    drawn by the task, (H, W, 3) uint8 RGB.
    """

    metrics: dict[str, float]
    evaluator: Evaluator
    images: list[np.ndarray] = field(default_factory=list)


def evaluate(
    task: Task, config: RunConfig, *, output: Path | None = None, device: str | None = None
) -> dict[str, float]:
    """Evaluate a task on its validation images and print the table of scores.

    Args:
        task: the task, with its weights loaded.
        config: the run's config; its loader and loop settings are used.
        output: folder for the result files; None writes none.
        device: as `--device`; None picks a GPU if there is one.

    Returns:
        Metrics by name; they do not depend on the number of processes.

    Raises:
        UserError: bad input, or `output` cannot be written.
    """
    with (
        process_group(device, timeout_s=config.loop.collective_timeout_s) as world,
        backend_settings(config.loop, world.device),
    ):
        if output is not None and world.is_main:
            prepare_output(output)
        log = RunLog(None, is_main=world.is_main)
        log.note(kernels_note())
        move_task(task, config.loop, world.device)
        try:
            result = run_evaluation(task, config, world, log, output=output)
        except EvaluationError as error:
            raise_evaluation_failure(error)
        if world.is_main:
            log.evaluation(0, result.metrics, result.evaluator.table())
        log.close()
    return result.metrics


def run_evaluation(
    task: Task,
    config: RunConfig,
    world: World,
    log: RunLog,
    *,
    output: Path | None = None,
    final: bool = True,
    stop: StopRequest | None = None,
) -> EvaluationResult:
    """Predict every validation image once, distributed over all processes; score on the main one.

    Args:
        task: the task to evaluate.
        config: the run's config; its loader and loop settings are used.
        world: this process and the number of processes.
        log: receives progress, and a line for each skipped image.
        output: folder for the result files; None writes none.
        final: as for `Task.evaluator`.
        stop: checked before each batch; None evaluates to the end.

    Raises:
        EvaluationError: on every process, if one of them failed to read or score its images.
        InterruptedRunError: on every process, if one of them was asked to stop.
    """
    data = task.val_data()
    batches = evaluation_batches(data.groups, batch_size=config.loop.eval_batch_size)
    # round robin: spreads the batches of each group over all processes
    own_batches = batches[world.rank :: world.size]
    evaluator = task.evaluator(final=final)
    result = EvaluationResult({}, evaluator)
    skipped: list[str] = []
    failures: list[Exception] = []
    started = time.perf_counter()
    was_training = task.model.training
    task.model.eval()
    try:
        with (
            torch.inference_mode(),
            autocast(world.device, config.loop.precision),
            closing(
                read_batches(
                    data, own_batches, config=config.loader, device=world.device, substitute=False
                )
            ) as loaded_batches,
        ):
            with_progress = log.progress(loaded_batches, len(own_batches), "evaluating")
            skipped += _predict_all(
                task, with_progress, result, config.loop.drawn_images, stop, world=world
            )
    except Exception as error:  # any failure must reach the other processes
        failures.append(error)
    finally:
        task.model.train(was_training)
    stop_asked = stop is not None and stop.requested
    # gloo has a timeout of its own, and the main process may score for minutes
    with world.unwatched():
        # One gather for predictions, skipped images, failures and stop flags: a process that failed
        # still takes part, so the others do not wait for it.
        states = gather_objects((evaluator.state(), skipped, _failure_text(failures), stop_asked))
        failure = "".join(text for *_, text, _ in states)
        stopped = any(asked for *_, asked in states)
        if world.is_main and not failure and not stopped:
            seconds = time.perf_counter() - started
            reasons = [reason for _, some, *_ in states for reason in some]
            for reason in reasons:
                log.note(f"validation image skipped: {reason}")
            try:
                metrics = evaluator.compute([state for state, *_ in states])
                if output is not None:
                    evaluator.write(output)
            except Exception as error:
                failures.append(error)
                failure = _failure_text(failures)
            else:
                speed = {"num_skipped": len(reasons), "images_per_second": len(data) / seconds}
                result.metrics = {**metrics, **speed}
        # All processes raise or return together.
        result.metrics, failure, stopped = broadcast_object((result.metrics, failure, stopped))
    if stopped:
        raise InterruptedRunError("interrupted during an evaluation")
    if failure:
        raise EvaluationError(failure) from (failures[0] if failures else None)
    return result


def raise_evaluation_failure(error: EvaluationError) -> NoReturn:
    """Re-raise a failed evaluation: a UserError as one line, a bug with its original traceback."""
    cause = error.__cause__
    raise error if cause is None or isinstance(cause, UserError) else cause


def _failure_text(failures: list[Exception]) -> str:
    """Return the failure of this process as text for the others; "" if it had none."""
    return "".join(
        str(error)
        if isinstance(error, UserError)
        else "".join(traceback.format_exception_only(error))
        for error in failures
    ).strip()


def _predict_all(
    task: Task,
    loaded_batches: Iterator[LoadedBatch],
    result: EvaluationResult,
    drawn: int,
    stop: StopRequest | None,
    *,
    world: World,
) -> list[str]:
    skipped: list[str] = []
    for number, loaded in enumerate(loaded_batches, start=1):
        if stop is not None and stop.requested:
            break
        skipped += loaded.skipped
        batch: Any = loaded.batch
        if batch is None:  # all of its images were skipped
            continue
        predictions = task.predict(batch)
        result.evaluator.update(batch, predictions)
        if len(result.images) < drawn:
            missing = drawn - len(result.images)
            result.images += task.draw(batch, predictions)[:missing]
        world.report_progress(f"batch {number} of the evaluation")
    return skipped
