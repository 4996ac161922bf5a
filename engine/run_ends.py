"""The two ends of a run: whether it goes on from a checkpoint, and what it leaves and says last."""

from datetime import timedelta
from pathlib import Path

from engine.checkpoint import CheckpointFolder, load_checkpoint, write_safetensors
from engine.checksum import checksum_note
from engine.distributed import broadcast_object
from engine.errors import UserError
from engine.kernels import kernels_note
from engine.log import RunLog
from engine.optim import note as rate_note
from engine.payload import check_payload
from engine.precision import precision_note
from engine.run_folder import EXPORT, finished_metrics
from engine.run_state import RunState


def introduction(state: RunState) -> list[str]:
    """Return the lines at the start of a training."""
    task, config, here = state.task, state.config, state.here
    trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    fixed = sum(p.numel() for p in task.model.parameters() if not p.requires_grad)
    first = (
        f"{len(task.train_data())} training images, {len(task.class_names)} classes; "
        f"{trained / 1e6:.1f} M trained parameters, {fixed / 1e6:.1f} M frozen; "
        f"{here.size} process(es) on {here.device.type}"
    )
    rate = rate_note(config.optim, config.loop.batch_size)
    precision = precision_note(here.device, config.loop.precision)
    return [
        first,
        kernels_note(),
        *task.notes(),
        *(note for note in (rate, precision) if note is not None),
    ]


def can_resume(state: RunState, checkpoints: CheckpointFolder, output: Path) -> bool:
    """Return whether a folder has a checkpoint of this run's config.

    Raises:
        UserError: it has one of another config.
    """
    payload = checkpoints.load_latest()
    if payload is None:
        return False
    changed = state.changed_settings(payload, source=output)
    if changed:
        raise UserError(
            f"{output}: holds a run of another config ({'; '.join(changed)}); go on with --resume, "
            "or choose another --output"
        )
    return True


def resumed_note(step: int, checkpoints: CheckpointFolder) -> str:
    """Return the line of a run that went on from a step; it says where nothing could be checked."""
    newest = checkpoints.latest()
    unchecked = None if newest is None else checksum_note(newest)
    return f"resumed at step {step}" + ("" if unchecked is None else f"; {unchecked}")


def advice(checkpoints: CheckpointFolder) -> str:
    """Return what to do about a run that diverged."""
    newest = checkpoints.latest()
    kept = "there is no checkpoint" if newest is None else f"the newest checkpoint is {newest}"
    return f"{kept}; try a lower optim.lr, or set optim.clip_grad_norm"


def load_exported(state: RunState, checkpoints: CheckpointFolder, log: RunLog) -> int:
    """Put the weights to export into the network, as `loop.export` says; return their step."""
    progress = state.progress
    if state.config.loop.export == "last" or progress.best_step in (0, progress.step):
        return progress.step
    path = checkpoints.best()
    best = None if path is None else load_checkpoint(path)
    if path is not None and best is not None:
        check_payload(best, source=path)
    if best is None or best["progress"]["step"] != progress.best_step:
        log.note(
            f"best.pt is missing or not of step {progress.best_step}, the best one: the last "
            "weights are exported"
        )
        return progress.step
    state.load_weights(best, source=checkpoints.directory)
    return progress.best_step


def export(state: RunState, output: Path, *, weights_step: int) -> None:
    """Write model.safetensors, the last file of a run, whose metadata names both steps."""
    steps = {"weights_step": str(weights_step), "run_step": str(state.progress.step)}
    metadata = {**state.task.metadata(), **steps}
    with state.averaged():
        write_safetensors(output / EXPORT, state.task.model.state_dict(), metadata)


def already_finished(state: RunState, output: Path, log: RunLog) -> dict[str, float] | None:
    """Return the metrics of a run that had ended before it was resumed; None: it had not."""
    progress, loop = state.progress, state.config.loop
    ended = progress.step == loop.max_steps or progress.is_out_of_patience(loop)
    if not ended or progress.evaluation_due:
        return None
    found = finished_metrics(output, run_step=progress.step) if state.here.is_main else None
    metrics: dict[str, float] | None = broadcast_object(found)
    if metrics is not None:
        log.note(
            f"{output}: finished at step {progress.step} already; a higher loop.max_steps trains on"
        )
    return metrics


def say_goodbye(
    state: RunState, output: Path, log: RunLog, *, exported: int, seconds: float
) -> None:
    """Tell the last lines: duration, scores, and what model.safetensors holds."""
    progress = state.progress
    scores = "" if progress.score is None else f"; last score {progress.score:.4f}"
    if progress.best_step:
        scores += f", best {progress.best:.4f} at step {progress.best_step}"
    if progress.evaluations_failed:
        scores += f"; {progress.evaluations_failed} evaluations failed"
    log.note(f"{progress.step} steps, {timedelta(seconds=round(seconds))}{scores}")
    which = "the last" if exported == progress.step else "the best; loop.export=last for the last"
    log.note(f"{output / EXPORT}: weights of step {exported} ({which})")
