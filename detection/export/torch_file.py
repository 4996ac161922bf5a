"""Writing of a model as a torch.export program, and as a library compiled by AOTInductor."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detection.export.model import Arrays
from detection.export.program import Program
from detection.ops.nms import public_nms
from engine.errors import UserError
from engine.text import one_line, shortened

METADATA_FILE = "metadata.json"
"""Name of the metadata inside a program's file."""


def write_program(program: Program, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a model as a torch.export program of torch's and torchvision's operators.

    Args:
        program: the model.
        path: an existing file is replaced.
        metadata: stored in the file as JSON, `METADATA_FILE`.
    """
    with public_nms():
        exported = program.traced()
    torch.export.save(exported, path, extra_files={METADATA_FILE: json.dumps(dict(metadata))})


def write_compiled(program: Program, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a model as an AOTInductor package for this processor; takes minutes and a compiler.

    Args:
        program: the model.
        path: an existing file is replaced.
        metadata: stored in the package.

    Raises:
        UserError: there is no C++ compiler, or it fails.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InductorError

    with public_nms():
        exported = program.traced()
    configs = {"aot_inductor.metadata": dict(metadata)}
    try:
        aoti_compile_and_package(exported, package_path=str(path), inductor_configs=configs)
    except InductorError as error:  # no C++ compiler, or one that failed
        reason = shortened(one_line(error))
        raise UserError(f"--format aoti: torch cannot compile the model: {reason}") from error


def program_runner(path: Path, outputs: Sequence[str]) -> Callable[[Arrays], Arrays]:
    """Return a function that runs a file of `write_program`; outputs: names, in order."""
    import torchvision  # noqa: F401  registers its operators

    return _runner(torch.export.load(path).module(), outputs)


def compiled_runner(path: Path, outputs: Sequence[str]) -> Callable[[Arrays], Arrays]:
    """Return a function that runs a file of `write_compiled`; outputs: names, in order."""
    import torchvision  # noqa: F401  registers its operators
    from torch._inductor import aoti_load_package

    return _runner(aoti_load_package(str(path)), outputs)


def _runner(module: Callable[..., Any], outputs: Sequence[str]) -> Callable[[Arrays], Arrays]:
    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            found = module(*(torch.from_numpy(values) for values in inputs.values()))
        found = (found,) if isinstance(found, Tensor) else found
        return {name: values.numpy() for name, values in zip(outputs, found, strict=True)}

    return run
