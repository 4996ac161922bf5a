"""Training loop: `fit` trains a task with checkpoints, evaluations, logging and exact resume.

Order within a step: update the weights; log; write a checkpoint that records whether an evaluation
is due; evaluate; write `best.pt` if the score is the best so far; write the checkpoint again. So a
run that is killed at any point resumes from the newest of these files, and repeats the missing part
with identical results.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

from engine.backend_settings import backend_settings
from engine.checkpoint import CheckpointFolder
from engine.config import dump_config
from engine.distributed import World, barrier, broadcast_object, process_group
from engine.errors import DivergedError, EvaluationError, InterruptedRunError, UserError
from engine.evaluate import raise_evaluation_failure, run_evaluation
from engine.files import write_file
from engine.interrupt import StopRequest, stop_requests
from engine.loader import (
    LoadedBatch,
    read_batches,
    repeat_factors_of,
    split_batches,
    training_batches,
)
from engine.log import RunLog
from engine.meter import StepMeter
from engine.optim import build_optimizer, lr_factor, set_lr
from engine.progress import Progress
from engine.provenance import note_start
from engine.resuming import metrics_if_finished, opened_run_folder, resume_run
from engine.run_files import CONFIG_FILE
from engine.run_lifecycle import (
    check_batch_size,
    divergence_advice,
    export_weights,
    load_weights_to_export,
    log_summary,
    start_notes,
)
from engine.run_state import RunState
from engine.schema import RunConfig
from engine.step import WeightAverage, move_task, training_step, wrap_losses
from engine.step_status import StepStatuses
from engine.task import Batch, Task
from engine.tracking import check_tracker


def fit(
    task: Task,
    config: RunConfig,
    *,
    output: Path,
    resume: bool = False,
    auto_resume: bool = False,
    replace: bool = False,
    device: str | None = None,
) -> dict[str, float]:
    """Train and evaluate a task, and write a run folder.

    Args:
        task: the task to train; its model is changed in place.
        config: the run's config.
        output: the run folder.
        resume: resume from the newest checkpoint in `output`, bit for bit.
        auto_resume: resume if `output` has a checkpoint of this config, otherwise start; waits
            for a process of the same job that has not ended yet.
        replace: unless resuming, rename an earlier run in `output`, after data and settings were
            validated.
        device: as `--device`; None picks a GPU if there is one.

    Returns:
        Final metrics by name.

    Raises:
        UserError: bad input, or another run writes to `output`.
        DivergedError: too many non-finite steps in a row, or non-finite weights.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    with (
        process_group(device, timeout_s=config.loop.collective_timeout_s) as world,
        backend_settings(config.loop, world.device),
    ):
        check_batch_size(config, world)
        check_tracker(config.loop.tracker)
        log = RunLog(output, is_main=world.is_main)
        run = _Run(task, config, output, world, log)
        with contextlib.ExitStack() as stack:
            if world.is_main:
                resume = stack.enter_context(
                    opened_run_folder(
                        run.state,
                        run.checkpoints,
                        output,
                        log,
                        resume=resume,
                        auto_resume=auto_resume,
                        replace=replace,
                    )
                )
            resume = broadcast_object(resume)
            stack.callback(log.close)
            return run.train(resume=resume)


class _Run:
    """One training run: its components, and the order of their actions."""

    def __init__(
        self, task: Task, config: RunConfig, output: Path, world: World, log: RunLog
    ) -> None:
        self.task, self.config, self.output, self.world, self.log = task, config, output, world, log
        self.data = task.train_data()
        # before the optimiser is built: its state follows the parameters' device and layout
        move_task(task, config.loop, world.device)
        task.model.train()
        self.losses_of = wrap_losses(task, config.loop, world)
        decay = config.loop.ema_decay
        self.state = RunState(
            task,
            config,
            world,
            build_optimizer(task.model, config.optim, batch_size=config.loop.batch_size),
            None if decay is None else WeightAverage(task.model, decay),
        )
        self.checkpoints = CheckpointFolder(
            output / "checkpoints", keep=config.loop.keep_checkpoints
        )
        self.statuses = StepStatuses(world, log, max_bad_steps=config.loop.max_bad_steps)
        self.reported: set[str] = set()  # reasons of skipped images; each is logged once
        self.final: dict[str, float] | None = None  # metrics of the weights to export

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def train(self, *, resume: bool) -> dict[str, float]:
        """Train from the first or the resumed step to the end; return the final metrics."""
        started, loop = time.monotonic(), self.config.loop
        if resume:
            changed = resume_run(self.state, self.checkpoints, self.output, self.log)
            finished = None if changed else metrics_if_finished(self.state, self.output, self.log)
            if finished is not None:
                return finished
            step, is_due = self.progress.step, self.progress.evaluation_due
            self.log.truncate_after(step, evaluated=not is_due)
        elif self.world.is_main and self.checkpoints.latest() is not None:
            raise UserError(f"{self.output}: holds a run; resume it, or choose another folder")
        if self.world.is_main:
            write_file(self.output / CONFIG_FILE, dump_config(self.config))
            note_start(self.output, step=self.progress.step, device=self.world.device)
            self.log.track(self.config)
        for note in start_notes(self.state):
            self.log.note(note)
        loaded_batches, progress = self._loaded_batches(), self.progress
        if resume and not progress.evaluation_due:  # the run may have resumed from best.pt
            self._save(in_bad_streak=True)
        with stop_requests() as stop:
            if progress.evaluation_due:
                self._check_end()
                self._evaluate(stop)
            while progress.step < loop.max_steps and not progress.is_out_of_patience(loop):
                self._one_step(self._next(loaded_batches), stop)
            return self._finish(stop, started=started)

    def _one_step(self, loaded_batches: list[LoadedBatch], stop: StopRequest) -> None:
        """Update the weights once, then do what is due, in the order of the module docstring."""
        loop, progress, step = self.config.loop, self.progress, self.progress.step
        factor = lr_factor(
            step, self.config.schedule, max_steps=loop.max_steps, drops=progress.rate_drops
        )
        set_lr(self.state.optimizer, factor)
        self._update(step, loaded_batches, stop=stop.requested)
        progress.step = step + 1
        # on a GPU this is an earlier step's: reading this one's would wait for the device
        stop_asked = self.statuses.read(progress, self.state.optimizer)
        # launched, and on a GPU the step before it is complete
        self.world.report_progress(f"step {progress.step}")
        self.log.advance(progress.step, loop.max_steps)
        if progress.step % loop.log_every == 0:
            self._log_step()
        is_last = progress.step == loop.max_steps
        progress.evaluation_due = is_last or self._is_scheduled()
        self._check_end()
        if stop_asked or progress.evaluation_due or progress.step % loop.checkpoint_every == 0:
            self._save(in_bad_streak=stop_asked or is_last)
        if stop_asked:
            self._interrupt()
        if progress.evaluation_due:
            self._evaluate(stop)

    def _next(self, loaded_batches: Iterator[list[LoadedBatch]]) -> list[LoadedBatch]:
        """Return the parts of the next batch; if reading fails, write a checkpoint first."""
        try:
            return next(loaded_batches)
        except UserError as error:
            step = self.progress.step
            # saving is a collective operation, but the other processes are in that of the step
            if step == 0 or self.world.size > 1:
                raise
            self._save(in_bad_streak=True)
            message = f"{error}; stopped at step {step}, checkpoint written: continue with --resume"
            raise type(error)(message) from error

    def _loaded_batches(self) -> Iterator[list[LoadedBatch]]:
        """Yield the loaded parts of each step's batch, and measure the time spent waiting."""
        loop = self.config.loop
        # every process plans the same global batches and takes its own share of each
        plan = split_batches(
            self.data,
            training_batches(
                self.data.groups,
                batch_size=loop.batch_size,
                seed=self.config.seed,
                repeats=self.config.loader.repeats,
                factors=repeat_factors_of(self.data),
                start=self.progress.step,
            ),
            rank=self.world.rank,
            world_size=self.world.size,
            accumulate=loop.accumulate,
        )
        loader, device = self.config.loader, self.world.device
        with contextlib.closing(
            read_batches(self.data, plan, config=loader, device=device, substitute=True)
        ) as parts:
            while True:
                wait_started = time.perf_counter()
                step_parts = [next(parts) for _ in range(loop.accumulate)]
                self.state.meter.data_seconds += time.perf_counter() - wait_started
                yield step_parts

    def _update(self, step: int, loaded_batches: list[LoadedBatch], *, stop: bool) -> None:
        for reason in (reason for loaded in loaded_batches for reason in loaded.skipped):
            self.state.meter.skipped += 1
            if reason not in self.reported:
                self.reported.add(reason)
                self.log.note(f"step {step + 1}: image skipped, replaced by the next one: {reason}")
        parts: list[Batch] = [loaded.batch for loaded in loaded_batches if loaded.batch is not None]
        result = training_step(
            self.losses_of,
            self.state.optimizer,
            parts,
            clip_grad_norm=self.config.optim.clip_grad_norm,
            stop=stop,
        )
        if self.state.average is not None:
            self.state.average.update(self.task.model, step=step, skipped=result.status[0])
        self.state.meter.add(result)
        self.statuses.add(step, result)

    def _interrupt(self) -> None:
        """Wait until the checkpoint is written, then raise InterruptedRunError."""
        barrier()
        raise InterruptedRunError(
            f"interrupted at step {self.progress.step}; continue with "
            f"--resume --output {self.output}"
        )

    def _log_step(self) -> None:
        """Log means since the last log line, and start new ones."""
        lr = max(group["lr"] for group in self.state.optimizer.param_groups)
        values = self.state.meter.means()  # waits for the device, so the time below is complete
        seconds = self.state.meter.seconds()
        speed = self.state.meter.timed_steps * self.config.loop.batch_size / seconds
        values["data_wait"] = self.state.meter.data_seconds / seconds
        if self.state.meter.skipped:
            values["images_skipped"] = self.state.meter.skipped
        step, last = self.progress.step, self.config.loop.max_steps
        self.log.step(step, last, values, lr=lr, images_per_second=speed)
        self.state.meter = StepMeter()

    def _evaluate(self, stop: StopRequest) -> None:
        """Evaluate this step's weights. A failure is logged; at the last step it ends the run."""
        progress, is_last = self.progress, self.progress.step == self.config.loop.max_steps
        started = time.perf_counter()
        try:
            metrics, main = self._score(stop, final=is_last, step=progress.step, record=True)
        except EvaluationError as error:
            if is_last:
                raise_evaluation_failure(error)
            progress.evaluations_failed += 1
            self.log.note(
                f"evaluation at step {progress.step} failed, training continues "
                f"({progress.evaluations_failed} failed so far): {error}"
            )
        else:
            self.final = metrics if is_last else None
            self._apply_score(metrics[main], main)
        self.state.meter.paused += time.perf_counter() - started
        if progress.evaluation_due:  # failed; the checkpoint keeps it due, so a resumed run retries
            progress.evaluation_due = False
        else:
            self._save(in_bad_streak=is_last)

    def _apply_score(self, score: float, name: str) -> None:
        """Use a score: for best.pt, for early stopping, and for the plateau schedule."""
        progress, schedule = self.progress, self.config.schedule
        scheduled = self._is_scheduled()
        if progress.add_score(score, scheduled=scheduled):
            payload = self.state.payload()
            if self.world.is_main:
                self.checkpoints.save_best(payload)
        elif math.isnan(score):
            self.log.note(
                f"{name} is NaN: learning rate, patience and best.pt ignore this evaluation"
            )
        elif scheduled and progress.drop_rate_on_plateau(schedule):
            self.log.note(
                f"learning rate multiplied by {schedule.gamma:g} after step {progress.step}: "
                f"no better score in {progress.evaluations_since_best} evaluations"
            )

    def _is_scheduled(self) -> bool:
        """Return whether `loop.eval_every` falls on this step."""
        every = self.config.loop.eval_every
        return bool(every) and self.progress.step % every == 0

    def _score(
        self, stop: StopRequest, *, final: bool, step: int, record: bool
    ) -> tuple[dict[str, float], str]:
        """Evaluate the weights or their average; return the metrics, and the main one's name."""
        try:
            with self.state.averaged():
                result = run_evaluation(
                    self.task,
                    self.config,
                    self.world,
                    self.log,
                    output=self.output,
                    final=final,
                    stop=stop,
                )
        except InterruptedRunError:
            self._interrupt()
        if self.world.is_main:
            table = result.evaluator.table()
            self.log.evaluation(step, result.metrics, table, record=record)
            self.log.images(step, result.images, "predictions")
        return result.metrics, result.evaluator.main_metric

    def _finish(self, stop: StopRequest, *, started: float) -> dict[str, float]:
        """Export the best or the last weights with their metrics; return the metrics."""
        step, patience = self.progress.step, self.config.loop.patience
        if self.progress.is_out_of_patience(self.config.loop):
            self.log.note(f"stopped at step {step}: no better score in {patience} evaluations")
        exported = load_weights_to_export(self.state, self.checkpoints, self.log)
        if self.final is None or exported != step:
            self.log.note(f"evaluating the exported weights, of step {exported}")
            try:
                self.final, _ = self._score(stop, final=True, step=exported, record=False)
            except EvaluationError as error:
                raise_evaluation_failure(error)
        self.log.final(exported, self.final)
        if self.world.is_main:
            export_weights(self.state, self.output, weights_step=exported)
        barrier()
        seconds = time.monotonic() - started
        log_summary(self.state, self.output, self.log, exported=exported, seconds=seconds)
        return self.final

    def _save(self, *, in_bad_streak: bool) -> None:
        """Write a checkpoint, after reading the status of every step in it.

        Args:
            in_bad_streak: whether to write it even if the last step was not finite. By default the
                checkpoints from before the non-finite steps are kept instead.

        Raises:
            DivergedError: the weights are not finite, and cannot recover.
        """
        started = time.perf_counter()
        self.statuses.read(self.progress, self.state.optimizer, all_of_them=True)
        if not self.state.is_finite():
            advice = divergence_advice(self.checkpoints)
            raise DivergedError(f"weights not finite at step {self.progress.step}: {advice}")
        if self.progress.bad_in_a_row and not in_bad_streak:
            self.log.note(f"no checkpoint at step {self.progress.step}: the step was not finite")
            return
        with self.world.unwatched():  # a slow disk is no dead process
            payload = self.state.payload()
            if self.world.is_main:
                self.checkpoints.save(self.progress.step, payload)
        self.state.meter.paused += time.perf_counter() - started

    def _check_end(self) -> None:
        """Raise DivergedError at the last step if training ends in skipped steps."""
        progress, last = self.progress, self.config.loop.max_steps
        if progress.step == last:
            self.statuses.read(progress, self.state.optimizer, all_of_them=True)
            if progress.bad_in_a_row >= min(2, last):
                raise DivergedError(
                    f"the last {progress.bad_in_a_row} steps were not finite: no weights are "
                    f"exported; {divergence_advice(self.checkpoints)}"
                )
