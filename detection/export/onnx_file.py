"""Writing of a model as an ONNX file, and running it with onnxruntime."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from detection.export.onnx_operators import OPSET, translations
from detection.export.program import Program


def write_onnx(program: Program, path: Path, *, metadata: Mapping[str, str]) -> None:
    """Write a model as one ONNX file of standard operators.

    Args:
        program: the model.
        path: an existing file is replaced.
        metadata: stored in the file's `metadata_props`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's and onnxscript's own code
        exported = torch.onnx.export(
            program.traced(),
            (),
            dynamo=True,
            verbose=False,
            input_names=list(program.inputs),
            output_names=list(program.outputs),
            opset_version=OPSET,
            custom_translation_table=translations(),
        )
    assert exported is not None
    exported.model.metadata_props.update(metadata)
    exported.save(path, external_data=False)


def open_session(path: Path, *, device: torch.device) -> Any:
    """Return an `onnxruntime.InferenceSession` of a file.

    device: on a GPU, its CUDA provider is used where onnxruntime has one.
    """
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; warnings are about the optimiser's own work
    return onnxruntime.InferenceSession(path, options, providers=providers)
