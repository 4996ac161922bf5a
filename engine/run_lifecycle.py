"""Start and end of a training run: checks, log lines, export of the weights."""

from datetime import timedelta
from pathlib import Path

from engine.checkpoint import CheckpointFolder, load_checkpoint, write_safetensors
from engine.distributed import World
from engine.errors import UserError
from engine.kernels import kernels_note
from engine.log import RunLog
from engine.optim import layer_decay_note
from engine.optim import lr_note as rate_note
from engine.payload import check_payload
from engine.precision import precision_note
from engine.run_files import WEIGHTS_FILE
from engine.run_state import RunState
from engine.schema import RunConfig
from engine.step import num_compiled_graphs
from engine.sync_norm import accumulated_norms_note


def check_batch_size(config: RunConfig, world: World) -> None:
    """Raise UserError unless `loop.batch_size` splits evenly over processes and their parts."""
    loop = config.loop
    if loop.batch_size % (world.size * loop.accumulate):
        raise UserError(
            f"loop.batch_size: expected a multiple of processes x loop.accumulate = "
            f"{world.size} x {loop.accumulate}, got {loop.batch_size}"
        )


def start_notes(state: RunState) -> list[str]:
    """Return the log lines at the start of training: data, parameters, processes, notes."""
    task, config, world = state.task, state.config, state.world
    num_trained = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    num_frozen = sum(p.numel() for p in task.model.parameters() if not p.requires_grad)
    first = (
        f"{len(task.train_data())} training images, {len(task.class_names)} classes; "
        f"{num_trained / 1e6:.1f} M trained parameters, {num_frozen / 1e6:.1f} M frozen; "
        f"{world.size} process(es) on {world.device.type}"
    )
    rate = rate_note(config.optim, config.loop.batch_size)
    stage_rates = layer_decay_note(state.optimizer, config.optim)
    precision = precision_note(world.device, config.loop.precision)
    graphs = None
    if config.loop.compile:
        graphs = "loop.compile: 1 graph, compiled in the first step, which may take minutes"
    norms = accumulated_norms_note(task.model, config.loop)
    optional = (note for note in (rate, stage_rates, precision, norms, graphs) if note is not None)
    return [first, kernels_note(), *task.notes(), *optional]


def divergence_advice(checkpoints: CheckpointFolder) -> str:
    """Return advice for a diverged run: the newest checkpoint, and which settings to change."""
    newest = checkpoints.latest()
    kept = "there is no checkpoint" if newest is None else f"the newest checkpoint is {newest}"
    return f"{kept}; try a lower optim.lr, or set optim.clip_grad_norm"


def load_weights_to_export(state: RunState, checkpoints: CheckpointFolder, log: RunLog) -> int:
    """Load the weights that `loop.export` selects into the network; return their step.

    With `best`, falls back to the last weights, with a log line, if best.pt is missing or of
    another step.

    Raises:
        UserError: best.pt is damaged.
    """
    progress = state.progress
    if state.config.loop.export == "last" or progress.best_step in (0, progress.step):
        return progress.step
    path = checkpoints.best()
    best = None if path is None else load_checkpoint(path)
    if path is not None and best is not None:
        check_payload(best, source=path)
    if best is None or best["progress"]["step"] != progress.best_step:
        log.note(
            f"best.pt is missing or not of the best step {progress.best_step}: exporting the last "
            "weights instead"
        )
        return progress.step
    state.load_weights(best, source=checkpoints.directory)
    return progress.best_step


def export_weights(state: RunState, output: Path, *, weights_step: int) -> None:
    """Write model.safetensors, the last file of a run.

    Its metadata has `weights_step`, the step of the weights, and `run_step`, the last step.

    Raises:
        UserError: the file cannot be written.
    """
    steps = {"weights_step": str(weights_step), "run_step": str(state.progress.step)}
    metadata = {**state.task.metadata(), **steps}
    with state.averaged():
        write_safetensors(output / WEIGHTS_FILE, state.task.model.state_dict(), metadata)


def log_summary(
    state: RunState, output: Path, log: RunLog, *, exported: int, seconds: float
) -> None:
    """Log the last lines: duration, scores, and the step of the weights in model.safetensors.

    seconds: wall clock of the run.
    """
    progress = state.progress
    scores = "" if progress.score is None else f"; last score {progress.score:.4f}"
    if progress.best_step:
        scores += f", best {progress.best:.4f} at step {progress.best_step}"
    if progress.evaluations_failed:
        scores += f"; {progress.evaluations_failed} evaluations failed"
    if state.config.loop.compile:
        log.note(f"loop.compile: {num_compiled_graphs()} graph(s) compiled in this process")
    log.note(f"{progress.step} steps, {timedelta(seconds=round(seconds))}{scores}")
    which = "the last" if exported == progress.step else "the best; loop.export=last for the last"
    log.note(f"{output / WEIGHTS_FILE}: weights of step {exported} ({which})")
