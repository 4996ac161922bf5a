"""Checkpoints and weights: files that survive a kill at any moment, and hold no code."""

import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.files import write_atomically, write_file
from engine.paths import exists, is_file, is_folder, names_in

_STEP_FILE = re.compile(r"step_(\d+)\.pt")


def prepare_output(directory: Path) -> None:
    """Make a folder and prove that it can be written to.

    Raises:
        UserError: it cannot be made or written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        message = f"{directory}: expected a folder that can be written to, got: {error.strerror}"
        raise UserError(message) from error


def save_checkpoint(path: Path, payload: Mapping[str, Any]) -> None:
    """Write a checkpoint in one piece.

    Args:
        path: replaced when it exists.
        payload: tensors, numbers, text, None, and dicts, lists and tuples of these.

    Raises:
        UserError: the disk refuses; what was at `path` is still there.
    """
    write_atomically(path, lambda file: torch.save(dict(payload), file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, on the CPU; runs no code from the file.

    Raises:
        UserError: missing, cut short, or not a checkpoint.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot read the checkpoint: {error.strerror}") from error
    except Exception as error:  # bytes of another kind make the unpickler raise whatever it meets
        raise UserError(f"{path}: expected a checkpoint, got a damaged or foreign file") from error
    if not isinstance(payload, dict):
        raise UserError(f"{path}: expected a checkpoint, got a saved {type(payload).__name__}")
    return payload


class CheckpointFolder:
    """The newest checkpoints of a run, `step_00001000.pt`, and `best.pt`."""

    def __init__(self, directory: Path, keep: int) -> None:
        """Look after `directory`, made at the first save; the `keep` newest steps stay."""
        self.directory = directory
        self.keep = keep

    def save(self, step: int, payload: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step`, and remove old ones.

        Raises:
            UserError: the disk refuses; the earlier checkpoints are still there.
        """
        prepare_output(self.directory)
        save_checkpoint(self.directory / f"step_{step:08d}.pt", payload)
        leftovers = self._named("*.partial")  # of a process killed while saving
        for path in [*self._by_step()[: -self.keep], *leftovers]:
            with suppress(FileNotFoundError):
                path.unlink()

    def save_best(self, payload: Mapping[str, Any]) -> None:
        """Write `best.pt`; UserError: the disk refuses, and the earlier one is still there."""
        prepare_output(self.directory)
        save_checkpoint(self.directory / "best.pt", payload)

    def latest(self) -> Path | None:
        """Return the checkpoint of the highest step; None when there is none."""
        return self._by_step()[-1] if self._by_step() else None

    def best(self) -> Path | None:
        """Return the checkpoint with the best main metric; None when there is none."""
        path = self.directory / "best.pt"
        return path if exists(path) else None

    def load_latest(self) -> dict[str, Any] | None:
        """Return the content of the highest step's checkpoint; None when there is none.

        Where that was written before an evaluation which `best.pt` was written after, `best.pt` is
        the newer of the two and is returned: the run was killed between its writing and the next.

        Raises:
            UserError: it cannot be read; the message names the one before it.
        """
        paths = self._by_step()
        if not paths:
            return None
        try:
            payload = load_checkpoint(paths[-1])
        except UserError as error:
            hint = (
                f"remove it to resume from {paths[-2]}" if paths[1:] else "there is none before it"
            )
            raise UserError(f"{error}; {hint}") from error
        progress = payload.get("progress", {})
        best = self.best() if progress.get("evaluation_due") else None
        if best is not None:
            newer = load_checkpoint(best)
            if newer.get("progress", {}).get("step") == progress["step"]:
                return newer
        return payload

    def _named(self, pattern: str) -> list[Path]:
        return [self.directory / name for name in names_in(self.directory, pattern)]

    def _by_step(self) -> list[Path]:
        found = {
            int(match[1]): path
            for path in self._named("step_*.pt")
            if (match := _STEP_FILE.fullmatch(path.name))
        }
        return [found[step] for step in sorted(found)]


def check_resumed(
    payload: Mapping[str, Any], metadata: Mapping[str, str], *, max_steps: int
) -> None:
    """Refuse to go on with other classes than a checkpoint's, or to a step that it is beyond.

    Raises:
        UserError: names what differs.
    """
    for key in ("class_names", "category_ids"):
        expected, got = payload["metadata"].get(key), metadata.get(key)
        if expected != got:
            raise UserError(f"--resume: expected the checkpoint's {key}, {expected}, got {got}")
    step = payload["progress"]["step"]
    if step > max_steps:
        raise UserError(
            f"loop.max_steps: expected at least {step}, where the checkpoint is, got {max_steps}"
        )


def load_model(model: nn.Module, state: Mapping[str, Tensor], *, source: Path) -> None:
    """Load a checkpoint's weights; UserError where they are of another network."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).split("\n\t")
        message = f"{source}: checkpoint of another network than the config's: {lines[-1].strip()}"
        raise UserError(message) from error


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write weights, and text beside them, in one piece.

    Raises:
        UserError: the disk refuses; what was at `path` is still there.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_file(path, safetensors.torch.save(tensors, dict(metadata)))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights, on the CPU, and the text beside them ({} when there is none).

    Raises:
        UserError: missing, cut short, or not a safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: expected a safetensors file, got: {error}") from error


def find_trained(path: Path) -> Path:
    """Return the file of weights: a run folder's model.safetensors, else `path` itself.

    Raises:
        UserError: no such file or folder, or a run that has not finished.
    """
    if not exists(path):
        raise UserError(f"{path}: no such run folder or file")
    if not is_folder(path):
        return path
    weights = path / "model.safetensors"
    if not is_file(weights):
        raise UserError(
            f"{path}: expected model.safetensors in it, which a finished run leaves; of an "
            f"unfinished one give a file in {path / 'checkpoints'}"
        )
    return weights


def read_trained(path: Path) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    """Read a run folder (its model.safetensors), a run's checkpoint or a .safetensors file.

    Returns:
        The file that was read; its weights, of a checkpoint the averaged ones where it has them;
        and the text beside them.

    Raises:
        UserError: no such file or folder, a run that has not finished, or a foreign file.
    """
    path = find_trained(path)
    if path.suffix == ".safetensors":
        return path, *read_safetensors(path)
    found = trained_of(load_checkpoint(path))
    if found is None:
        raise UserError(f"{path}: expected a checkpoint of a run, got another file of torch.save")
    return path, *found


def trained_of(payload: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return a checkpoint's weights, averaged where they are, and metadata; None: not of a run."""
    if not isinstance(payload.get("model"), dict) or not isinstance(payload.get("metadata"), dict):
        return None
    return payload["model"] | (payload.get("average") or {}), payload["metadata"]


def rng_state() -> dict[str, Tensor]:
    """Return the state of torch's generators: `cpu`, and `cuda` (this process's GPU) if there."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    """Put torch's generators back; a GPU's state is left out where there is no GPU."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
