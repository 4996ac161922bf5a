"""The formats that a model is exported to, and the way from a model to a proved file."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from backbones.images import resize_pixels
from detection.export.model import ExportedModel
from detection.export.onnx_file import onnx_runner, write_onnx
from detection.export.onnx_precision import write_half, write_int8
from detection.export.program import ImageSize
from detection.export.proof import Runner, proof_table, prove
from detection.export.run_images import run_images
from detection.export.scoring import check_can_score, print_ap
from detection.export.torch_file import (
    compiled_runner,
    program_runner,
    write_compiled,
    write_program,
)
from engine.errors import DisagreementError, UserError
from engine.files import write_file
from engine.log import RunLog
from engine.paths import exists, read_text
from engine.run_files import DETECTIONS_FILE

Precision = Literal["fp32", "half", "int8"]


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
NUM_CALIBRATION_IMAGES = 32
FORMATS = {
    "onnx": Format("model.onnx", write_onnx, onnx_runner, ("onnx", "onnxscript", "onnxruntime")),
    "torch": Format("model.pt2", write_program, program_runner),
    "aoti": Format("model_aoti.pt2", write_compiled, compiled_runner),
}
"""Formats by name: ONNX, torch.export program, package compiled by AOTInductor."""


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    format: a name of `FORMATS`. batch: images in a batch; None: any number. size: (height, width)
    of all images; None: any. AOTInductor needs both: with symbols it compiled wrong code (torch
    2.14). precision: of the network's layers, for ONNX. with_ap: measure the AP of a detector's
    file.
    """

    format: str = "onnx"
    batch: int | None = None
    size: ImageSize | None = None
    precision: Precision = "fp32"
    with_ap: bool = False


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
    options: ExportOptions,
    *,
    metadata: Mapping[str, str],
    images: Sequence[np.ndarray],
    log: RunLog,
) -> None:
    """Write a model to a file, after the file was compared with the model on images.

    A file in another precision than float32 is made from a float32 file that agrees, and its own
    differences are shown.

    Args:
        model: the model.
        output: an existing file is replaced, but only by one that agrees with the model.
        options: of the file.
        metadata: stored in the file.
        images: (H, W, 3) uint8 RGB, of several sizes.
        log: shows what happens.

    Raises:
        DisagreementError: the results differ; nothing is written.
        UserError: AP is wanted, and the run's validation images are not there.
    """
    kind = FORMATS[options.format]
    program = model.program(batch=options.batch, size=options.size)
    if options.with_ap:
        check_can_score(model)
    images = _of_size(images, options.size)
    # beside the output, so that the file only has to be renamed
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export_") as folder:
        path = Path(folder) / output.name
        log.note(f"writing {output.name}; this takes a minute or more")
        kind.write(program, path, metadata=metadata)
        runners = {"fp32": kind.open(path, program.outputs)}
        compare = partial(_compare, model, images, name=output.name, batch=options.batch, log=log)
        differing = compare(runners["fp32"], precision="fp32")
        if differing:
            raise DisagreementError(
                f"{output}: not written: its results differ from the model's on {differing} of "
                f"{len(images)} images, see the table"
            )
        if options.precision != "fp32":
            path = _converted(path, model, options, log=log)
            runners[options.precision] = kind.open(path, program.outputs)
            compare(runners[options.precision], precision=options.precision)
        if options.with_ap:
            results = output.with_name(f"{output.stem}_{DETECTIONS_FILE}")
            print_ap(model, runners, results=results, batch=options.batch or 1, log=log)
        path.replace(output)
    size = output.stat().st_size / 1e6
    log.note(f"written: {output}, {size:.0f} MB")


def _compare(
    model: ExportedModel,
    images: Sequence[np.ndarray],
    run: Runner,
    *,
    name: str,
    precision: Precision,
    batch: int | None,
    log: RunLog,
) -> int:
    """Print how a file's results differ from the model's; return on how many images too much."""
    comparisons = prove(run, model, images, batch=batch)
    rows = list(log.progress(comparisons, len(images), "comparing the file with the model"))
    title = f"Largest differences between {name} in {precision} and the model"
    log.table(proof_table(rows, title, with_limits=precision == "fp32"))
    if not any(row.differences.count for row in rows):
        log.note("warning: the model finds nothing on these images, so nothing was compared")
    return sum(not row.differences.are_allowed() for row in rows)


def _converted(path: Path, model: ExportedModel, options: ExportOptions, *, log: RunLog) -> Path:
    """Write a float32 file in another precision, beside it; return its path."""
    target = path.with_name(f"{options.precision}_{path.name}")
    if options.precision == "half":
        write_half(path, target)
        return target
    images, origin = run_images(None, model.config, split="train", count=NUM_CALIBRATION_IMAGES)
    log.note(f"ranges for 8-bit integers: {origin}")
    count = options.batch or 1
    batches = (np.stack([image] * count) for image in _of_size(images, options.size))
    write_int8(path, target, map(model.inputs, batches))
    return target


def _of_size(images: Sequence[np.ndarray], size: ImageSize | None) -> list[np.ndarray]:
    """Return images, resized if they have to have one size."""
    return [image if size is None else resize_pixels(image, size) for image in images]


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
