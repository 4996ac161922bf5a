"""fit(): the only training loop."""

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint import (
    CheckpointFolder,
    check_resumed,
    load_checkpoint,
    load_model,
    move_run_aside,
    prepare_output,
    rng_state,
    set_rng_state,
    write_safetensors,
)
from engine.config import differences, dump_config, parse_config
from engine.distributed import World, barrier, gather_objects, world
from engine.errors import DivergedError, InterruptedRunError, UserError
from engine.evaluate import run_evaluation
from engine.files import write_file
from engine.interrupt import stop_requests
from engine.loader import Delivery, read_batches, split_batches, training_batches
from engine.log import RunLog
from engine.meter import StepMeter
from engine.optim import (
    build_optimizer,
    load_optimizer_state,
    lr_factor,
    optimizer_state,
    set_lr,
)
from engine.optim import note as rate_note
from engine.schema import RunConfig
from engine.step import (
    HostCopy,
    StepResult,
    WeightAverage,
    memory_layout,
    training_step,
    wrap_losses,
)
from engine.task import Batch, Task


@dataclass
class Progress:
    """What a run remembers besides tensors."""

    step: int = 0
    best: float = float("-inf")
    best_step: int = 0
    evaluations_since_best: int = 0
    rate_drops: int = 0
    bad_in_a_row: int = 0
    evaluation_due: bool = False  # interrupted at a step after which the run is evaluated


def fit(
    task: Task,
    config: RunConfig,
    *,
    output: Path,
    resume: bool = False,
    replace: bool = False,
    device: str | None = None,
) -> dict[str, float]:
    """Train a task, evaluate it, and leave a run folder.

    Args:
        task: what to train.
        config: the run's config.
        output: the run folder.
        resume: go on from the newest checkpoint in `output`, bit for bit.
        replace: unless resumed, rename a run that lies in `output`, after device and batch size are
            checked.
        device: as `--device`; None picks a GPU when there is one.

    Returns:
        Final metrics by name.

    Raises:
        UserError: bad input.
        DivergedError: too many non-finite steps in a row.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint has been written.
    """
    with world(device, timeout_s=config.loop.collective_timeout_s) as here:
        _check_split(config, here)
        aside = None
        if here.is_main:
            aside = move_run_aside(output) if replace and not resume else None
            prepare_output(output)
        barrier()
        log = RunLog(output, is_main=here.is_main)
        if aside is not None:
            log.note(aside)
        try:
            return _Run(task, config, output, here, log).train(resume=resume)
        finally:
            log.close()


class _Run:
    """One run: its parts, and the order in which they move."""

    def __init__(
        self, task: Task, config: RunConfig, output: Path, here: World, log: RunLog
    ) -> None:
        torch.use_deterministic_algorithms(config.loop.deterministic)
        self.task, self.config, self.output, self.here, self.log = task, config, output, here, log
        self.data = task.train_data()
        layout = memory_layout(config.loop)
        task.model.to(here.device, memory_format=layout)  # type: ignore[call-overload]
        task.model.train()
        self.losses_of = wrap_losses(task, config.loop, here)
        self.optimizer = build_optimizer(
            task.model, config.optim, batch_size=config.loop.batch_size
        )
        decay = config.loop.ema_decay
        self.average = None if decay is None else WeightAverage(task.model, decay)
        self.checkpoints = CheckpointFolder(
            output / "checkpoints", keep=config.loop.keep_checkpoints
        )
        self.progress = Progress()
        self.unread: deque[tuple[int, StepResult, HostCopy]] = deque()
        self.meter = StepMeter()

    def train(self, *, resume: bool) -> dict[str, float]:
        """Run from the first or the resumed step to the end."""
        loop = self.config.loop
        if resume:
            self._resume()
        elif self.checkpoints.latest() is not None:
            raise UserError(f"{self.output}: holds a run; resume it, or choose another folder")
        if self.here.is_main:
            write_file(self.output / "config.yaml", dump_config(self.config))
        self._introduce()
        deliveries = self._deliveries()
        metrics: dict[str, float] = {}
        with stop_requests() as stop:
            if self.progress.evaluation_due:
                metrics = self._evaluate(final=False)
            while self.progress.step < loop.max_steps and not self._out_of_patience():
                step = self.progress.step
                drops, schedule = self.progress.rate_drops, self.config.schedule
                factor = lr_factor(step, schedule, max_steps=loop.max_steps, drops=drops)
                set_lr(self.optimizer, factor)
                self._step(step, next(deliveries), stop=stop.requested)
                self.progress.step = step + 1
                stop_asked = self._asked_to_stop(step)
                if (step + 1) % loop.log_every == 0:
                    self._log_step()
                is_last = step + 1 == loop.max_steps
                is_due = bool(loop.eval_every) and (step + 1) % loop.eval_every == 0
                if stop_asked:
                    self.progress.evaluation_due = is_due and not is_last
                    self._interrupt()
                if is_due:
                    metrics = self._evaluate(final=is_last)
                if (step + 1) % loop.checkpoint_every == 0 or is_last:
                    self._save()
        return self._finish(metrics)

    def _deliveries(self) -> Iterator[list[Delivery]]:
        """Yield the parts of each step's batch."""
        loop = self.config.loop
        plan = split_batches(
            self.data,
            training_batches(
                self.data.groups,
                batch_size=loop.batch_size,
                seed=self.config.seed,
                repeats=self.config.loader.repeats,
                start=self.progress.step,
            ),
            rank=self.here.rank,
            world_size=self.here.size,
            accumulate=loop.accumulate,
        )
        parts = read_batches(
            self.data, plan, config=self.config.loader, device=self.here.device, substitute=True
        )
        while True:
            waiting = time.perf_counter()
            step_parts = [next(parts) for _ in range(loop.accumulate)]
            self.meter.data_seconds += time.perf_counter() - waiting
            yield step_parts

    def _step(self, step: int, deliveries: list[Delivery], *, stop: bool) -> None:
        for reason in (reason for delivery in deliveries for reason in delivery.skipped):
            self.meter.skipped += 1
            self.log.note(f"step {step + 1}: picture skipped, the next one taken: {reason}")
        parts: list[Batch] = [d.batch for d in deliveries if d.batch is not None]
        result = training_step(
            self.losses_of,
            self.optimizer,
            parts,
            clip_grad_norm=self.config.optim.clip_grad_norm,
            stop=stop,
        )
        if self.average is not None:
            self.average.update(self.task.model, step=step, skipped=result.status[0])
        self.meter.add(result)
        self.unread.append((step, result, HostCopy(result.status)))

    def _asked_to_stop(self, step: int) -> bool:
        """Read the last step's status; on a GPU the one before, which has finished meanwhile."""
        lag = 1 if self.here.device.type == "cuda" else 0
        stop = False
        while self.unread and self.unread[0][0] <= step - lag:
            stop |= self._read_status()
        return stop

    def _read_status(self) -> bool:
        step, result, status = self.unread.popleft()
        skipped, stop = status.tolist()
        if not skipped:
            self.progress.bad_in_a_row = 0
            return bool(stop)
        self.progress.bad_in_a_row += 1
        values = {name: value.item() for name, value in result.losses.items()}
        values["grad_norm"] = result.grad_norm.item()
        ids = [i for part in result.image_ids for i in part.tolist()]
        everywhere = gather_objects((ids, values))
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        told = "; ".join(
            f"images {ids}, " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            for ids, values in everywhere
        )
        self.log.note(f"step {step + 1} skipped, not finite: {told}; rate {rate:.3g}")
        if self.progress.bad_in_a_row >= self.config.loop.max_bad_steps:
            raise DivergedError(
                f"{self.progress.bad_in_a_row} non-finite steps in a row, "
                f"the last at step {step + 1}; try a lower optim.lr (now {rate:.3g}) "
                "or set optim.clip_grad_norm"
            )
        return bool(stop)

    def _interrupt(self) -> None:
        self._save()
        barrier()
        raise InterruptedRunError(
            f"interrupted at step {self.progress.step}; go on with --resume --output {self.output}"
        )

    def _log_step(self) -> None:
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        values = self.meter.means()
        seconds = self.meter.seconds()
        speed = self.meter.steps * self.config.loop.batch_size / seconds
        values["data_wait"] = self.meter.data_seconds / seconds
        if self.meter.skipped:
            values["pictures_skipped"] = self.meter.skipped
        self.log.step(
            self.progress.step,
            self.config.loop.max_steps,
            values,
            lr=lr,
            images_per_second=speed,
        )
        self.meter = StepMeter()

    def _evaluate(self, *, final: bool) -> dict[str, float]:
        started = time.perf_counter()
        with self._averaged():
            result = run_evaluation(self.task, self.config, self.here, self.log, final=final)
        metrics, progress = result.metrics, self.progress
        progress.evaluation_due = False
        score = metrics[result.evaluator.main_metric]
        progress.evaluations_since_best += 1
        if score > progress.best:
            progress.best, progress.best_step = score, progress.step
            progress.evaluations_since_best = 0
        self._drop_rate_on_plateau()
        if self.here.is_main:
            self.log.evaluation(progress.step, metrics, result.evaluator.table())
            self.log.pictures(progress.step, result.pictures, "predictions")
            result.evaluator.write(self.output)
        if progress.evaluations_since_best == 0:
            self._save(best=True)
        self.meter.paused += time.perf_counter() - started
        return metrics

    def _drop_rate_on_plateau(self) -> None:
        schedule, waited = self.config.schedule, self.progress.evaluations_since_best
        if schedule.kind == "plateau" and waited and waited % schedule.plateau_evaluations == 0:
            self.progress.rate_drops += 1
            self.log.note(
                f"learning rate times {schedule.gamma:g} after step {self.progress.step}: "
                f"no better score in {waited} evaluations"
            )

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        if self.average is None:
            return contextlib.nullcontext()
        return self.average.applied(self.task.model)

    def _out_of_patience(self) -> bool:
        patience = self.config.loop.patience
        if patience is None or self.progress.evaluations_since_best < patience:
            return False
        self.log.note(
            f"stopped at step {self.progress.step}: no better score in {patience} evaluations; "
            f"the best was {self.progress.best:.4f} at step {self.progress.best_step}"
        )
        return True

    def _finish(self, metrics: dict[str, float]) -> dict[str, float]:
        while self.unread:
            self._read_status()
        best = self.checkpoints.best() if self.config.loop.patience is not None else None
        if best is not None and self.progress.best_step != self.progress.step:
            self.log.note(f"exporting the best weights, of step {self.progress.best_step}")
            self._load_tensors(load_checkpoint(best))
            metrics = {}
        step, loop = self.progress.step, self.config.loop
        evaluated = metrics and step == loop.max_steps and step % loop.eval_every == 0
        if not evaluated:
            metrics = self._evaluate(final=True)
        if self.here.is_main:
            with self._averaged():
                write_safetensors(
                    self.output / "model.safetensors",
                    self.task.model.state_dict(),
                    self.task.metadata(),
                )
        barrier()
        return metrics

    def _introduce(self) -> None:
        trained = sum(p.numel() for p in self.task.model.parameters() if p.requires_grad)
        fixed = sum(p.numel() for p in self.task.model.parameters() if not p.requires_grad)
        self.log.note(
            f"{len(self.data)} training pictures, {len(self.task.class_names)} classes; "
            f"{trained / 1e6:.1f} M trained parameters, {fixed / 1e6:.1f} M frozen; "
            f"{self.here.size} process(es) on {self.here.device.type}"
        )
        rate = rate_note(self.config.optim, self.config.loop.batch_size)
        for note in [*self.task.notes(), *([] if rate is None else [rate])]:
            self.log.note(note)

    def _save(self, *, best: bool = False) -> None:
        """Write a checkpoint, after reading the status of every step that it holds."""
        while self.unread:
            self._read_status()
        if not self.here.is_main:
            return
        payload: dict[str, Any] = {
            "model": self.task.model.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "average": None if self.average is None else self.average.values,
            "progress": vars(self.progress).copy(),
            "rng": rng_state(),
            "config": self.config.model_dump(mode="json"),
            "metadata": self.task.metadata(),
        }
        self.checkpoints.save(self.progress.step, payload, best=best)

    def _resume(self) -> None:
        payload = self.checkpoints.load_latest()
        if payload is None:
            raise UserError(f"--resume: no checkpoint in {self.output / 'checkpoints'}")
        tag = payload["config"].get("task", "run")
        old = parse_config(
            payload["config"], schemas={tag: type(self.config)}, source=str(self.output)
        )
        for line in differences(old, self.config):
            self.log.note(f"resumed with another setting: {line}")
        check_resumed(payload, self.task.metadata(), max_steps=self.config.loop.max_steps)
        self._load_tensors(payload)
        load_optimizer_state(self.optimizer, payload["optimizer"])
        self.progress = Progress(**payload["progress"])
        set_rng_state(payload["rng"])
        self.log.truncate_after(self.progress.step)
        self.log.note(f"resumed at step {self.progress.step}")

    def _load_tensors(self, payload: Mapping[str, Any]) -> None:
        load_model(self.task.model, payload["model"], source=self.checkpoints.directory)
        if self.average is not None and payload["average"] is not None:
            for name, value in self.average.values.items():
                value.copy_(payload["average"][name])


def _check_split(config: RunConfig, here: World) -> None:
    loop = config.loop
    if loop.batch_size % (here.size * loop.accumulate):
        raise UserError(
            f"loop.batch_size: expected a multiple of processes x loop.accumulate = "
            f"{here.size} x {loop.accumulate}, got {loop.batch_size}"
        )
