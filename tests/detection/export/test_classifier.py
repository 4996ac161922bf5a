"""Export of classifiers: the graph run by torch, and an ONNX file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backbones.classification.config import ClassificationConfig
from backbones.classification.task import ClassificationTask, build_classifier
from detection.export.classifier import ExportedClassifier
from detection.export.model import Arrays
from detection.export.onnx_file import onnx_runner, write_onnx
from detection.export.proof import prove
from engine.errors import UserError
from tests.detection.export.models import make_images

KINDS: dict[str, dict[str, Any]] = {
    "folder": {"data": {"kind": "folder"}, "model": {"backbone": {"kind": "resnet18"}}},
    "cifar": {
        "data": {"kind": "cifar10"},
        "augment": {"crop": 32},
        "model": {"backbone": {"kind": "cifar_resnet20"}},
    },
}


def make_model(kind: str, *, raw: bool = False, view: str = "center") -> ExportedClassifier:
    values = KINDS[kind] | {"evaluation": {"resize": 48, "crop": 40, "view": view}}
    config = ClassificationConfig.model_validate(values)
    torch.manual_seed(0)
    model = build_classifier(config, num_classes=3).eval()
    return ExportedClassifier(ClassificationTask(config, model, ("a", "b", "c")), raw=raw)


def run_graph(model: ExportedClassifier, inputs: Arrays) -> Arrays:
    program = model.program()
    tensors = [torch.from_numpy(np.ascontiguousarray(each)) for each in inputs.values()]
    with torch.no_grad():
        return {program.outputs[0]: program.graph(*tensors).numpy()}


@pytest.mark.parametrize("raw", [False, True], ids=["whole", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_classifier(kind: str, raw: bool) -> None:
    model = make_model(kind, raw=raw)
    for image in make_images():
        images = np.stack([image, image[::-1], image[:, ::-1]])
        outputs = run_graph(model, model.inputs(images))
        assert model.differences(images, outputs).are_allowed()
        outputs = {name: values + 0.01 for name, values in outputs.items()}
        assert not model.differences(images, outputs).are_allowed()


def test_other_views_are_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation\.view: expected center.*got ten_crop"):
        make_model("folder", view="ten_crop")


@pytest.mark.extended
@pytest.mark.parametrize("kind", KINDS)
def test_file_agrees_with_the_classifier(kind: str, tmp_path: Path) -> None:
    model, path = make_model(kind), tmp_path / "model.onnx"
    program = model.program()
    write_onnx(program, path, metadata=model.metadata())
    rows = list(prove(onnx_runner(path, program.outputs), model, make_images(), batch=None))
    assert {row.batch for row in rows} == {1, 3}
    assert all(row.differences.are_allowed() for row in rows), rows
