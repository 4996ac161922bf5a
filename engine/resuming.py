"""Resuming a run: whether to, from which checkpoint, and what has changed since."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

from engine.checkpoint import CheckpointFolder, load_checkpoint
from engine.checksum import checksum_note
from engine.config import differences, dump_config
from engine.distributed import broadcast_object
from engine.errors import DamagedFileError, UserError
from engine.log import RunLog
from engine.optim import effective_lr, lr_factor, spans_run
from engine.run_folder import LockedRunFolder, finished_metrics, is_start_without_checkpoint
from engine.run_state import RunState
from engine.schema import RunConfig

LOCK_WAIT_S = 60
"""Longest wait of a restarted job for the lock of its earlier process, seconds. torchrun and Slurm
kill a process 30 seconds after SIGTERM by default."""

_MAX_CHANGED = 5
"""Differences from an earlier run's config that an error names."""


@contextmanager
def opened_run_folder(
    state: RunState,
    checkpoints: CheckpointFolder,
    output: Path,
    log: RunLog,
    *,
    resume: bool,
    auto_resume: bool,
    replace: bool,
) -> Iterator[bool]:
    """Lock the run folder and decide whether the run resumes; for the main process only.

    Args:
        state: of the run that starts.
        checkpoints: those in the run folder.
        output: the run folder; created if missing.
        log: gets a line for everything that is done to the folder.
        resume: as for `fit`, like the other two.
        auto_resume: also waits for a process of the same job that has not ended yet, and sets
            damaged checkpoints aside.
        replace: unless resuming, rename an earlier run.

    Yields:
        Whether to resume.

    Raises:
        UserError: another run writes to the folder, it is not writable, or, with `auto_resume`, its
            checkpoint is of another config; the message names the differences.
    """
    wait_s = LOCK_WAIT_S if auto_resume else 0
    with LockedRunFolder(output, wait_s=wait_s, say=log.note) as folder:
        # under the lock: a process that had not ended yet may have written a checkpoint
        for note in set_damaged_aside(checkpoints) if auto_resume else ():
            log.note(note)
        resume = resume or (auto_resume and _can_resume(state, checkpoints, output))
        if auto_resume and not resume:
            if is_start_without_checkpoint(output, dump_config(state.config)):
                log.note(
                    f"{output}: the earlier start wrote no checkpoint: starting again at step 0"
                )
                log.truncate_after(0, evaluated=False)
                replace = False
            else:
                log.note(f"{output}: no checkpoint to resume from: starting a new run")
        if replace and not resume:
            folder.move_run_aside()
        for note in folder.notes:
            log.note(note)
        yield resume


def set_damaged_aside(checkpoints: CheckpointFolder) -> list[str]:
    """Rename damaged checkpoints to `NAME.damaged`, so that a run resumes from the one before.

    Otherwise every restart of a job would end with the same error. If all steps' checkpoints are
    damaged, the earliest keeps its name, and resuming from it is an error: only a person can decide
    to start again. Without best.pt, a run exports its last weights, and says so.

    Returns:
        A line for each renamed file.

    Raises:
        UserError: a checkpoint cannot be read or renamed.
    """
    best, lines = checkpoints.best(), []
    # the newest first, until one is not damaged; never the earliest
    for path in checkpoints.by_step()[:0:-1]:
        if (line := _set_aside_if_damaged(path)) is None:
            break
        lines.append(line)
    if best is not None and (line := _set_aside_if_damaged(best)) is not None:
        lines.append(line)
    return lines


def _set_aside_if_damaged(path: Path) -> str | None:
    try:
        load_checkpoint(path)
    except DamagedFileError as error:
        aside = path.with_name(f"{path.name}.damaged")
        try:
            path.replace(aside)
        except OSError as failed:
            raise UserError(f"{error}; it cannot be renamed: {failed.strerror}") from failed
        return f"{error}; renamed to {aside.name}"
    return None


def _can_resume(state: RunState, checkpoints: CheckpointFolder, output: Path) -> bool:
    """Return whether a run folder has a checkpoint of this run's config.

    Raises:
        UserError: it has a checkpoint of another config; the message names the differences.
    """
    payload = checkpoints.load_latest()
    if payload is None:
        return False
    changed = differences(state.saved_config(payload, source=output), state.config)
    if changed:
        more = len(changed) - _MAX_CHANGED
        named = [*changed[:_MAX_CHANGED], *([f"and {more} more"] if more > 0 else [])]
        raise UserError(
            f"{output}: holds a run of another config ({'; '.join(named)}); resume it with "
            "--resume, or choose another --output"
        )
    return True


def resume_run(
    state: RunState, checkpoints: CheckpointFolder, output: Path, log: RunLog
) -> list[str]:
    """Resume from the newest checkpoint; return the settings that differ from its config.

    Raises:
        UserError: there is no checkpoint, it does not fit, processes read different ones, or the
            run has finished and the changed settings affect training only.
    """
    payload = checkpoints.load_latest()
    if payload is None:
        raise UserError(f"--resume: no checkpoint in {checkpoints.directory}")
    before = state.saved_config(payload, source=output)
    step = payload["progress"]["step"]
    expected = broadcast_object(step)
    if step != expected:
        raise UserError(
            f"{checkpoints.directory}: expected the checkpoint of step {expected}, as process 0 "
            f"reads, got that of step {step} in process {state.world.rank} on {gethostname()}; all "
            "machines must see the same run folder"
        )
    changed = differences(before, state.config)
    for line in changed:
        log.note(f"resumed with a changed setting: {line}")
    for line in state.changed_data(payload):
        log.note(f"resumed with changed data: {line}")
    state.load(payload, source=checkpoints.directory)
    _check_not_idle(state, changed, output=output)
    log.note(_resume_note(step, checkpoints))
    rate = rate_change_note(before, state.config, step=step, drops=state.progress.rate_drops)
    if rate is not None:
        log.note(rate)
    return changed


def rate_change_note(
    before: RunConfig, after: RunConfig, *, step: int, drops: int = 0
) -> str | None:
    """Return a log line on the learning rate of a run that continues with other settings.

    Args:
        before: the config of the steps up to `step`.
        after: the config of the steps from there on.
        step: updates so far.
        drops: of the plateau schedule.

    Returns:
        The line; None if nothing that determines the rate has changed, or no step precedes or
        follows.
    """
    old, new = (
        (config.optim, config.schedule, config.loop.max_steps, config.loop.batch_size)
        for config in (before, after)
    )
    if old == new or not 0 < step < after.loop.max_steps:
        return None
    last, following = (
        effective_lr(config.optim, config.loop.batch_size)
        * lr_factor(update, config.schedule, max_steps=config.loop.max_steps, drops=drops)
        for config, update in ((before, step - 1), (after, step))
    )
    reach = "does not depend on loop.max_steps"
    if spans_run(after.schedule):
        reach = f"spans {after.loop.max_steps} steps, before {before.loop.max_steps}"
    return (
        f"learning rate of step {step + 1}: {following:.4g}, of step {step}: {last:.4g}; "
        f"the {after.schedule.kind} schedule {reach}"
    )


def metrics_if_finished(state: RunState, output: Path, log: RunLog) -> dict[str, float] | None:
    """Return the final metrics of a run that finished before it was resumed, otherwise None."""
    if not _has_ended(state):
        return None
    step = state.progress.step
    # read on the main process and broadcast, so that all processes agree
    on_main = finished_metrics(output, run_step=step) if state.world.is_main else None
    metrics: dict[str, float] | None = broadcast_object(on_main)
    if metrics is not None:
        log.note(f"{output}: already finished at step {step}; {_how_to_continue(state)}")
    return metrics


def _has_ended(state: RunState) -> bool:
    """Return whether a run has no step and no evaluation left."""
    progress, loop = state.progress, state.config.loop
    ended = progress.step == loop.max_steps or progress.is_out_of_patience(loop)
    return ended and not progress.evaluation_due  # due: killed before its last evaluation


def _check_not_idle(state: RunState, changed: Sequence[str], *, output: Path) -> None:
    """Raise UserError if a run has no step left in which the changed settings would matter."""
    ended_early = state.progress.is_out_of_patience(state.config.loop)
    training = ("optim.", "schedule.", *(["loop.max_steps"] if ended_early else []))
    idle = [line.partition(":")[0] for line in changed if line.startswith(training)]
    if idle and _has_ended(state):
        raise UserError(
            f"{output}: finished at step {state.progress.step}, where {', '.join(idle)} no longer "
            f"matters; {_how_to_continue(state)}"
        )


def _how_to_continue(state: RunState) -> str:
    progress, loop = state.progress, state.config.loop
    if progress.is_out_of_patience(loop):
        waited = progress.evaluations_since_best
        return f"to train further: --resume loop.patience=N, above {waited}, or null"
    return f"to train further: --resume loop.max_steps=N, above {progress.step}"


def _resume_note(step: int, checkpoints: CheckpointFolder) -> str:
    """Return the log line of a resumed run, with a note if its checkpoint has no checksum."""
    newest = checkpoints.latest()
    unchecked = None if newest is None else checksum_note(newest)
    return f"resumed at step {step}" + ("" if unchecked is None else f"; {unchecked}")
