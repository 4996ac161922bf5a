"""The formats that a model is exported to, and the way from a model to a proved file."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from detection.export.model import ExportedModel
from detection.export.onnx_file import onnx_runner, write_onnx
from detection.export.program import Program
from detection.export.proof import Runner, proof_table, prove
from detection.export.torch_file import (
    compiled_runner,
    program_runner,
    write_compiled,
    write_program,
)
from engine.errors import DisagreementError, UserError
from engine.files import write_file
from engine.log import RunLog, make_console
from engine.paths import exists, read_text


@dataclass(frozen=True)
class Format:
    """A format of files.

    file_name: default name. write: writes a program with its metadata. open: returns the runner of
    a file. packages: that must be installed.
    """

    file_name: str
    write: Callable[..., None]
    open: Callable[[Path, Sequence[str]], Runner]
    packages: tuple[str, ...] = ()


SCRIPT = "run_onnx.py"
"""A script for users of ONNX files; a module of this package that is not imported."""
FORMATS = {
    "onnx": Format("model.onnx", write_onnx, onnx_runner, ("onnx", "onnxscript", "onnxruntime")),
    "torch": Format("model.pt2", write_program, program_runner),
    "aoti": Format("model_aoti.pt2", write_compiled, compiled_runner),
}
"""Formats by name: ONNX, torch.export program, package compiled by AOTInductor."""


def check_packages(name: str) -> None:
    """Raise UserError unless the packages of a format are installed."""
    missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
    if missing:
        raise UserError(
            f"--format {name}: expected the package {missing[0]}, which is not installed: "
            "pip install 'resdet[export]'"
        )


def write_proved(
    model: ExportedModel,
    output: Path,
    *,
    format_name: str,
    metadata: Mapping[str, str],
    images: Sequence[np.ndarray],
    batch: int | None,
    log: RunLog,
) -> None:
    """Write a model to a file, after the file was compared with the model on images.

    Args:
        model: the model.
        output: an existing file is replaced, but only by one that agrees with the model.
        format_name: a name of `FORMATS`.
        metadata: stored in the file.
        images: (H, W, 3) uint8 RGB, of several sizes.
        batch: images in a batch of the file; None: any number.
        log: shows what happens.

    Raises:
        DisagreementError: the results differ; nothing is written.
    """
    kind, program = FORMATS[format_name], model.program(batch)
    # beside the output, so that the file only has to be renamed
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export_") as folder:
        path = Path(folder) / output.name
        log.note(f"writing {output.name}: takes a minute or more")
        kind.write(program, path, metadata=metadata)
        run = kind.open(path, program.outputs)
        comparisons = prove(run, model, images, batch=batch)
        rows = list(log.progress(comparisons, len(images), "comparing the file with the model"))
        title = f"Largest differences between {output.name} and the model"
        make_console().print(proof_table(rows, title), soft_wrap=False)
        differing = sum(not row.differences.are_allowed() for row in rows)
        if differing:
            raise DisagreementError(
                f"{output}: not written: its results differ from the model's on {differing} of "
                f"{len(rows)} images, see the table"
            )
        path.replace(output)
    size = output.stat().st_size / 1e6
    log.note(f"written: {output}, {size:.0f} MB")


def copy_script(folder: Path) -> str:
    """Copy the script that runs ONNX files to a folder; return a line that says so.

    A file of the same name and another content is kept.
    """
    text = read_text(Path(__file__).with_name(SCRIPT))
    script = folder / SCRIPT
    if exists(script) and read_text(script) != text:
        return f"{script} is kept: it was changed, or is of another version"
    write_file(script, text)
    return f"a script that runs it: {script}"
