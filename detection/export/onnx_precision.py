"""Half precision and 8-bit integers for the layers of an ONNX file."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detection.export.model import Arrays
from detection.export.onnx_file import NAMESPACE

_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_BETWEEN = ("Relu", "MaxPool")
"""Operators that compute in the precision of the layers around them."""
_SUMS_IN = ("network.backbone", "network.fpn", "backbone.layer")
"""Modules whose additions are of feature maps, not of boxes."""
_LAST = ("objectness", "deltas", "class_logits", "mask_head.logits", "fc")
"""Names of the last layers, whose outputs decide scores and boxes: they are few, and stay."""


def write_half(source: Path, target: Path) -> None:
    """Write an ONNX file whose layers compute in float16; boxes and scores stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    kept = [
        node.name
        for node in model.graph.node
        if node.op_type not in (*_LAYERS, *_BETWEEN)
        and not (node.op_type == "Add" and any(name in _module(node) for name in _SUMS_IN))
    ]
    half = convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
    onnx.save(half, target)


def write_int8(source: Path, target: Path, inputs: Iterable[Arrays]) -> None:
    """Write an ONNX file whose layers compute with 8-bit integers: static quantisation.

    Weights have a scale for each channel, activations one for each map, from the ranges that they
    have for `inputs`. The last layers stay float32.

    Args:
        source: an ONNX file in float32.
        target: the file to write.
        inputs: of the file, for calibration.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._inputs: Iterator[Arrays] = iter(inputs)

        def get_next(self) -> Any:
            found = next(self._inputs, None)
            return None if found is None else dict(found)

    nodes = onnx.load(source).graph.node
    last = [node.name for node in nodes if any(name in _module(node) for name in _LAST)]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a step that this file does not need
    try:
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_LAYERS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=last,
        )
    finally:
        logging.disable(disabled)


def _module(node: Any) -> str:
    """Return the names of the modules that a node belongs to."""
    return next((each.value for each in node.metadata_props if each.key == NAMESPACE), "")
