"""Checkpoints and weights: files that survive a kill at any moment, and hold no code."""

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
    KEY,
    check_safetensors,
    check_sum,
    checksum_note,
    summed_safetensors,
    write_with_sum,
)
from engine.distributed import is_main_process
from engine.errors import UserError
from engine.files import write_atomically
from engine.paths import exists, is_file, is_folder, names_in, open_file

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

    def write(file: BinaryIO) -> None:
        write_with_sum(file, lambda summing: torch.save(dict(payload), summing))

    write_atomically(path, write)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, or another file of torch.save, on the CPU.

    Runs no code from the file. The checksum is compared where the file has one.

    Raises:
        UserError: missing, cut short, altered, or not a checkpoint.
    """
    with open_file(path) as file:
        check_sum(file, path)
        _refuse_compressed(file, path)
        try:
            payload = torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"{path}: cannot read the checkpoint: {error.strerror}") from error
        except Exception as error:  # bytes of another kind make the unpickler raise anything
            raise UserError(
                f"{path}: expected a checkpoint, got a damaged or foreign file"
            ) from error
        size = file.seek(0, 2)
    if not isinstance(payload, dict):
        raise UserError(f"{path}: expected a checkpoint, got a saved {type(payload).__name__}")
    _check_tensors(payload, path, size=size)
    return payload


def _refuse_compressed(file: BinaryIO, path: Path) -> None:
    """Refuse a zip whose entries are more than the file: torch writes none, and reads it all."""
    is_zip = file.read(4) == b"PK\x03\x04"
    try:
        entries = zipfile.ZipFile(file).infolist() if is_zip else []
    except Exception as error:
        raise UserError(f"{path}: expected a checkpoint, got a damaged or foreign file") from error
    size = file.seek(0, 2)
    file.seek(0)
    if any(entry.compress_type for entry in entries) or sum(e.file_size for e in entries) > size:
        raise UserError(f"{path}: expected a checkpoint, got a compressed zip file")


def _check_tensors(payload: Mapping[Any, Any], path: Path, *, size: int) -> None:
    """Refuse tensors that others' code would stumble over: sparse, quantised, or all view.

    size: of the file in bytes; no tensor of it holds more.
    """
    waiting: list[Any] = [payload]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            plain = value.layout == torch.strided and value.device.type == "cpu"
            plain = plain and not value.is_quantized and not value.is_nested
            if not plain or value.numel() * value.element_size() > size:
                raise UserError(f"{path}: expected plain tensors, got one of another kind")
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else value


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
        step, is_due = (_progress_of(payload, key) for key in ("step", "evaluation_due"))
        best = self.best() if is_due else None
        if best is not None:
            newer = load_checkpoint(best)
            if _progress_of(newer, "step") == step:
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


def _progress_of(payload: Mapping[str, Any], key: str) -> Any:
    progress = payload.get("progress")
    return progress.get(key) if isinstance(progress, dict) else None


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
    """Write weights, text beside them and a checksum, in one piece.

    Equal weights and text give equal bytes.

    Raises:
        UserError: the disk refuses; what was at `path` is still there.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    header, data = summed_safetensors(safetensors.torch.save(tensors, dict(metadata)))

    def write(file: BinaryIO) -> None:
        file.write(header)
        file.write(data)

    write_atomically(path, write)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights, on the CPU, and the text beside them ({} when there is none).

    The checksum is compared where the file has one.

    Raises:
        UserError: missing, cut short, altered, or not a safetensors file.
    """
    check_safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except Exception as error:  # of a kind of number that torch has not, too
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: expected a safetensors file, got: {reason}") from error
    return tensors, {key: text for key, text in metadata.items() if key != KEY}


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
    _warn_once(checksum_note(path))
    if path.suffix == ".safetensors":
        return path, *read_safetensors(path)
    found = trained_of(load_checkpoint(path))
    if found is None:
        raise UserError(f"{path}: expected a checkpoint of a run, got another file of torch.save")
    return path, *found


@cache
def _warn_once(note: str | None) -> None:
    """Tell on the error stream, or where the host's logging leads; some calls read a file twice."""
    if note is not None and is_main_process():
        logging.getLogger(__name__).warning(note)


def trained_of(payload: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return a checkpoint's weights, averaged where they are, and metadata; None: not of a run."""
    model, metadata, average = (payload.get(key) for key in ("model", "metadata", "average"))
    average = {} if average is None else average
    if not isinstance(metadata, dict) or not all(
        isinstance(part, str) for entry in metadata.items() for part in entry
    ):
        return None
    if not holds_tensors(model) or not holds_tensors(average):
        return None
    return model | average, metadata


def holds_tensors(value: Any) -> TypeGuard[dict[str, Tensor]]:
    """Return whether it is a dict of names and tensors."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def rng_state() -> dict[str, Tensor]:
    """Return the state of torch's generators: `cpu`, and `cuda` (this process's GPU) if there."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    """Put torch's generators back; a GPU's state is skipped where there is no GPU.

    Raises:
        UserError: it is no such state.
    """
    try:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
    except (KeyError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--resume: expected the state of torch's generators, got: {reason}"
        ) from error
