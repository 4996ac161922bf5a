"""Writing of a model as an ONNX file, and running it with onnxruntime."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from detection.export.model import Arrays
from detection.export.onnx_operators import IR_VERSION, OPSET, translations
from detection.export.program import Program

NAMESPACE = "namespace"
"""The key of a node's metadata that names the module of the network it belongs to."""


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
    exported.model.ir_version = IR_VERSION
    exported.model.metadata_props.update(metadata)
    for node in exported.model.graph:  # stack traces, with the paths of this machine
        for key in [key for key in node.metadata_props if key != NAMESPACE]:
            del node.metadata_props[key]
    exported.save(path, external_data=False)


def onnx_runner(path: Path, outputs: Sequence[str]) -> Callable[[Arrays], Arrays]:
    """Return a function that runs an ONNX file with onnxruntime, on a GPU if it can.

    Args:
        path: the file.
        outputs: names of its outputs, in order.
    """
    import onnxruntime

    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; warnings are about its own optimisation
    session = onnxruntime.InferenceSession(path, options, providers=providers)

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(outputs, session.run(list(outputs), dict(inputs)), strict=True))

    return run
