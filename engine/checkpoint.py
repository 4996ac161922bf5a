"""Saving and loading of checkpoints and weights.

Files are written atomically, so a kill at any moment leaves a valid one. Reading runs no code from
the file.
"""

import logging
import re
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from engine.checksum import (
    CHECKSUM_KEY,
    checksum_note,
    safetensors_with_checksum,
    verify_checksum,
    verify_safetensors,
    write_with_checksum,
)
from engine.distributed import is_main_process
from engine.errors import DamagedFileError, UserError
from engine.files import write_atomically
from engine.paths import exists, is_file, is_folder, names_in, open_file
from engine.run_files import WEIGHTS_FILE
from engine.text import one_line

_STEP_FILE = re.compile(r"step_(\d+)\.pt")


def prepare_output(directory: Path) -> None:
    """Create a folder and check that it is writable.

    Raises:
        UserError: it cannot be created or written to.
    """
    if exists(directory) and not is_folder(directory):
        raise UserError(f"{directory}: expected a writable folder, got a file")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        message = f"{directory}: expected a writable folder, got: {error.strerror}"
        raise UserError(message) from error


def save_checkpoint(path: Path, payload: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically, with its checksum.

    Args:
        path: the file to write; replaced if it exists.
        payload: tensors, numbers, text, None, and dicts, lists and tuples of these.

    Raises:
        UserError: the file cannot be written; an earlier file at `path` is unchanged.
    """

    def write(file: BinaryIO) -> None:
        write_with_checksum(file, lambda writer: torch.save(dict(payload), writer))

    write_atomically(path, write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of `save_checkpoint`, or another file of torch.save, onto the CPU.

    Runs no code from the file. The checksum is verified if the file has one.

    Raises:
        DamagedFileError: the file is truncated, altered, or not of torch.save.
        UserError: the file is missing or cannot be read, or not a checkpoint.
    """
    with open_file(path) as file:
        is_verified = verify_checksum(file, path)
        _refuse_compressed(file, path)
        try:
            payload = torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"{path}: cannot read the checkpoint: {error.strerror}") from error
        except Exception as error:  # foreign bytes make the unpickler raise any exception
            # with the right checksum the cause is not the file, but for example too little memory
            kind = UserError if is_verified else DamagedFileError
            raise kind(f"{path}: expected a checkpoint, got a damaged or foreign file") from error
        size = file.seek(0, 2)
    if not isinstance(payload, dict):
        raise UserError(f"{path}: expected a checkpoint, got a saved {type(payload).__name__}")
    _check_tensors(payload, path, size=size)
    return payload


def _refuse_compressed(file: BinaryIO, path: Path) -> None:
    """Reject a compressed zip file: it may expand to far more memory than its size.

    torch.save never compresses, but torch.load would decompress the whole file.
    """
    is_zip = file.read(4) == b"PK\x03\x04"
    try:
        entries = zipfile.ZipFile(file).infolist() if is_zip else []
    except Exception as error:
        raise DamagedFileError(
            f"{path}: expected a checkpoint, got a damaged or foreign file"
        ) from error
    size = file.seek(0, 2)
    file.seek(0)
    if any(entry.compress_type for entry in entries) or sum(e.file_size for e in entries) > size:
        raise UserError(f"{path}: expected a checkpoint, got a compressed zip file")


def _check_tensors(payload: Mapping[Any, Any], path: Path, *, size: int) -> None:
    """Reject sparse, quantised, nested and expanded tensors, which later code cannot handle.

    size: of the file in bytes. A tensor that is larger is a view that repeats its memory.
    """
    pending: list[Any] = [payload]
    seen: set[int] = set()  # ids of containers: a foreign payload may contain itself
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            plain = value.layout == torch.strided and value.device.type == "cpu"
            plain = plain and not value.is_quantized and not value.is_nested
            if not plain or value.numel() * value.element_size() > size:
                raise UserError(f"{path}: expected dense CPU tensors, got another kind")
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            pending += [*value.keys(), *value.values()] if isinstance(value, dict) else value


class CheckpointFolder:
    """The checkpoint folder of a run: the newest steps, `step_00001000.pt`, and `best.pt`."""

    def __init__(self, directory: Path, keep: int) -> None:
        """Manage `directory`, created at the first save; the `keep` newest steps are kept."""
        self.directory = directory
        self.keep = keep

    def save(self, step: int, payload: Mapping[str, Any]) -> None:
        """Write the checkpoint of `step`, and remove old ones.

        Raises:
            UserError: the file cannot be written; the earlier checkpoints are unchanged.
        """
        prepare_output(self.directory)
        save_checkpoint(self.directory / f"step_{step:08d}.pt", payload)
        leftovers = self._named("*.partial")  # left by processes killed while saving
        # after the new one is complete, so a failed save loses nothing
        for path in [*self.by_step()[: -self.keep], *leftovers]:
            with suppress(FileNotFoundError):
                path.unlink()

    def save_best(self, payload: Mapping[str, Any]) -> None:
        """Write `best.pt`.

        Raises:
            UserError: the file cannot be written; the earlier one is unchanged.
        """
        prepare_output(self.directory)
        save_checkpoint(self.directory / "best.pt", payload)

    def latest(self) -> Path | None:
        """Return the path of the newest checkpoint; None if there is none."""
        return self.by_step()[-1] if self.by_step() else None

    def best(self) -> Path | None:
        """Return the path of the checkpoint with the best main metric; None if there is none."""
        path = self.directory / "best.pt"
        return path if exists(path) else None

    def load_latest(self) -> dict[str, Any] | None:
        """Return the payload of the newest checkpoint; None if there is none.

        Normally this is the highest step's file. If that file was written before the evaluation of
        its step (`evaluation_due`) and `best.pt` after it, `best.pt` is newer and is returned: the
        run was killed before it wrote the step's file again.

        Raises:
            UserError: the checkpoint cannot be read; the message names the one before it.
        """
        paths = self.by_step()
        if not paths:
            return None
        try:
            payload = load_checkpoint(paths[-1])
        except UserError as error:
            hint = (
                f"remove it to resume from {paths[-2]}" if paths[1:] else "there is no earlier one"
            )
            raise UserError(f"{error}; {hint}") from error
        step, is_due = (_progress_of(payload, key) for key in ("step", "evaluation_due"))
        best = self.best() if is_due else None
        if best is not None:
            newer = load_checkpoint(best)
            if _progress_of(newer, "step") == step:
                return newer
        return payload

    def _named(self, pattern: str) -> list[Path]:
        return [self.directory / name for name in names_in(self.directory, pattern)]

    def by_step(self) -> list[Path]:
        """Return the paths of the steps' checkpoints, the newest last; without best.pt."""
        found = {
            int(match[1]): path
            for path in self._named("step_*.pt")
            if (match := _STEP_FILE.fullmatch(path.name))
        }
        return [found[step] for step in sorted(found)]


def _progress_of(payload: Mapping[str, Any], key: str) -> Any:
    progress = payload.get("progress")
    return progress.get(key) if isinstance(progress, dict) else None


def check_resumed(
    payload: Mapping[str, Any], metadata: Mapping[str, str], *, max_steps: int
) -> None:
    """Check that a run can resume: same classes, and `max_steps` not below the checkpoint's step.

    Args:
        payload: the checkpoint.
        metadata: of the task, with `class_names` and perhaps `category_ids`.
        max_steps: `loop.max_steps` of the config.

    Raises:
        UserError: the message names the difference.
    """
    for key in ("class_names", "category_ids"):
        expected, got = payload["metadata"].get(key), metadata.get(key)
        if expected != got:
            raise UserError(f"--resume: expected the checkpoint's {key}, {expected}, got {got}")
    step = payload["progress"]["step"]
    if step > max_steps:
        raise UserError(
            f"loop.max_steps: expected at least the checkpoint's step, {step}, got {max_steps}"
        )


def load_model(model: nn.Module, state: Mapping[str, Tensor], *, source: Path) -> None:
    """Load a checkpoint's weights into `model`.

    Raises:
        UserError: the weights belong to another network; the message names `source`.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = str(error).split("\n\t")
        message = f"{source}: the checkpoint does not fit the config's network: {lines[-1].strip()}"
        raise UserError(message) from error


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write weights, metadata and a checksum to a safetensors file, atomically.

    Equal weights and metadata give equal bytes.

    Raises:
        UserError: the file cannot be written; an earlier file at `path` is unchanged.
    """
    # the format stores row-major bytes, so channels-last weights are copied
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    header, data = safetensors_with_checksum(safetensors.torch.save(tensors, dict(metadata)))

    def write(file: BinaryIO) -> None:
        file.write(header)
        file.write(data)

    write_atomically(path, write)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights of a safetensors file, on the CPU, and its metadata ({} if none).

    The checksum is verified if the file has one.

    Raises:
        UserError: the file is missing, truncated, altered, or not a safetensors file.
    """
    verify_safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except Exception as error:  # including a dtype that torch does not have
        raise UserError(f"{path}: expected a safetensors file, got: {one_line(error)}") from error
    return tensors, {key: text for key, text in metadata.items() if key != CHECKSUM_KEY}


def find_weights_file(path: Path) -> Path:
    """Return the weights file: model.safetensors of a run folder, otherwise `path` itself.

    Raises:
        UserError: the path does not exist, or the run has not finished.
    """
    if not exists(path):
        raise UserError(f"{path}: no such run folder or file")
    if not is_folder(path):
        return path
    weights = path / WEIGHTS_FILE
    if not is_file(weights):
        raise UserError(
            f"{path}: expected model.safetensors of a finished run, got none; for an unfinished "
            f"run give a file in {path / 'checkpoints'}"
        )
    return weights


def read_trained_weights(path: Path) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    """Read weights from a run folder (model.safetensors), a checkpoint or a .safetensors file.

    Returns:
        The file that was read; its weights (of a checkpoint the averaged ones, if it has any); and
        its metadata.

    Raises:
        UserError: the path does not exist, the run has not finished, or the file is not of a run.
    """
    path = find_weights_file(path)
    _warn_once(checksum_note(path))
    if path.suffix == ".safetensors":
        return path, *read_safetensors(path)
    found = weights_of_checkpoint(load_checkpoint(path))
    if found is None:
        raise UserError(f"{path}: expected a checkpoint of a run, got another file of torch.save")
    return path, *found


@cache
def _warn_once(note: str | None) -> None:
    """Log a warning once per process: some commands read the same file twice."""
    if note is not None and is_main_process():
        logging.getLogger(__name__).warning(note)


def weights_of_checkpoint(
    payload: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return a checkpoint's weights and metadata; None if it is not a run's checkpoint.

    Weights that have an exponential moving average are replaced by it.
    """
    model, metadata, average = (payload.get(key) for key in ("model", "metadata", "average"))
    average = {} if average is None else average
    if not isinstance(metadata, dict) or not all(
        isinstance(text, str) for entry in metadata.items() for text in entry
    ):
        return None
    if not is_tensor_dict(model) or not is_tensor_dict(average):
        return None
    return model | average, metadata  # the average lacks integer buffers, which `model` has


def is_tensor_dict(value: Any) -> TypeGuard[dict[str, Tensor]]:
    """Return whether `value` is a dict from names to tensors."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def rng_state() -> dict[str, Tensor]:
    """Return the state of torch's random generators: `cpu`, and `cuda` for this process's GPU."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    """Restore torch's random generators; a GPU's state is ignored if there is no GPU.

    Raises:
        UserError: `state` is not a generator state.
    """
    try:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(
            f"--resume: expected the state of torch's generators, got: {one_line(error)}"
        ) from error
