"""Exported files of every kind against the model, on images of coco128; and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from detection.export.detector import ExportedDetector
from detection.export.files import ExportOptions, copy_script, write_proved
from detection.export.model import Arrays, Differences, ExportedModel
from detection.export.onnx_file import onnx_runner, write_onnx
from detection.export.onnx_precision import write_half, write_int8
from detection.export.program import ImageSize, Program
from detection.export.proof import ProofRow, prove
from detection.export.torch_file import program_runner, write_program
from engine.errors import DisagreementError
from engine.log import RunLog
from engine.schema import RunConfig
from tests.detection.export.models import coco_images, make_images, make_trained

KINDS: dict[str, dict[str, Any]] = {
    "resnet18, fpn": {},
    "resnet34, c4, roi_pool": {"kind": "resnet34", "neck": "c4", "roi": {"pool": "roi_pool"}},
    "resnet50, c4, masks": {"kind": "resnet50", "neck": "c4", "task": "segmentation"},
    "resnet101, fpn, masks": {"kind": "resnet101", "task": "segmentation"},
    "resnet152, fpn, cascade": {
        "kind": "resnet152",
        "roi": {"stages": 3, "class_agnostic_boxes": True},
    },
}
FORMATS = {"onnx": (write_onnx, onnx_runner), "torch": (write_program, program_runner)}


def prove_file(
    model: ExportedDetector, path: Path, images: list[np.ndarray], format_name: str
) -> list[ProofRow]:
    write, open_file = FORMATS[format_name]
    program = model.program()
    write(program, path, metadata=model.metadata())
    return list(prove(open_file(path, program.outputs), model, images, batch=None))


@pytest.mark.extended
@pytest.mark.data
@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_file_agrees_with_the_detector(
    kind: dict[str, Any], format_name: str, data_dir: Path, tmp_path: Path
) -> None:
    images = coco_images(data_dir)
    rows = prove_file(ExportedDetector(make_trained(**kind)), tmp_path / "m", images, format_name)
    assert {row.batch for row in rows} == {1, 3}
    assert len({row.size for row in rows}) > 5
    assert all(row.differences.are_allowed() for row in rows), rows
    assert sum(row.differences.count for row in rows) > 30


@pytest.mark.extended
@pytest.mark.parametrize("format_name", FORMATS)
def test_images_without_detections(format_name: str, tmp_path: Path) -> None:
    model = ExportedDetector(make_trained(task="segmentation", roi={"score_thresh": 0.9999}))
    rows = prove_file(model, tmp_path / "m", make_images(), format_name)
    assert sum(row.differences.count for row in rows) == 0
    assert all(row.differences.are_allowed() for row in rows), rows


@pytest.fixture(scope="module")
def raw_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedDetector, Path]:
    model = ExportedDetector(make_trained(), raw=True)
    path = tmp_path_factory.mktemp("raw") / "raw.onnx"
    write_onnx(model.program(), path, metadata=model.metadata() | {"license": "ours"})
    return model, path


@pytest.mark.extended
def test_raw_file_agrees(raw_file: tuple[ExportedDetector, Path]) -> None:
    model, path = raw_file
    run = onnx_runner(path, ("scores", "boxes", "valid"))
    rows = list(prove(run, model, make_images(), batch=None))
    assert all(row.differences.are_allowed() for row in rows), rows


@pytest.mark.extended
def test_file_has_standard_operators_and_says_what_it_is(
    raw_file: tuple[ExportedDetector, Path],
) -> None:
    loaded = onnx.load(raw_file[1])
    assert {node.domain for node in loaded.graph.node} == {""}
    assert [each.domain for each in loaded.opset_import] == [""]
    onnx.checker.check_model(loaded)
    props = {each.key: each.value for each in loaded.metadata_props}
    assert json.loads(props["class_names"]) == ["cat", "dog", "bird"]
    assert json.loads(props["category_ids"]) == [1, 5, 9]
    assert json.loads(props["config"])["task"] == props["task"] == "detection"
    assert props["score_thresh"] == "0.1"
    assert props["license"] == "ours"
    # no stack traces, which hold the paths of the machine
    assert str(Path(__file__).parents[3]).encode() not in raw_file[1].read_bytes()


@pytest.mark.extended
def test_other_precisions_are_near(raw_file: tuple[ExportedDetector, Path], tmp_path: Path) -> None:
    model, path = raw_file
    inputs = [model.inputs(image[None]) for image in make_images()]
    exact = onnx_runner(path, ("scores", "boxes", "valid"))(inputs[0])
    half, int8 = tmp_path / "half.onnx", tmp_path / "int8.onnx"
    write_half(path, half)
    write_int8(path, int8, inputs)
    for other, smaller in ((half, 0.6), (int8, 0.5)):
        found = onnx_runner(other, ("scores", "boxes", "valid"))(inputs[0])
        assert 0 < np.abs(found["scores"].max() - exact["scores"].max()) < 0.2
        assert other.stat().st_size < smaller * path.stat().st_size


class Doubling(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.sum(dim=(1, 2, 3)) * 2.0


class DoublingModel(ExportedModel):
    """A model whose file gives twice the sum of an image, while the model gives `factor` times.

    count: of results that are said to be compared.
    """

    config = RunConfig()

    def __init__(self, factor: float, count: int = 1) -> None:
        self._factor, self._count = factor, count

    def program(self, *, batch: int | None = None, size: ImageSize | None = None) -> Program:
        count = 2 if batch is None else batch
        images = torch.zeros(count, 6, 8, 3, dtype=torch.uint8)
        return Program(Doubling(), {"images": images}, {"images": (3,)}, ("sums",), batch)

    def metadata(self) -> dict[str, str]:
        return {}

    def inputs(self, images: np.ndarray) -> Arrays:
        return {"images": images}

    def differences(self, images: np.ndarray, outputs: Arrays) -> Differences:
        expected = images.sum(axis=(1, 2, 3)) * self._factor
        largest = float(np.abs(outputs["sums"] - expected).max())
        return Differences({"sums": largest}, {"sums": 1e-3}, self._count)


@pytest.fixture
def log() -> Iterator[RunLog]:
    log = RunLog(None, is_main=True)
    yield log
    log.close()


@pytest.mark.extended
def test_file_that_differs_is_not_written(tmp_path: Path, log: RunLog) -> None:
    output, images = tmp_path / "model.pt2", make_images()[:2]
    options = ExportOptions("torch")
    output.write_text("an earlier file")
    with pytest.raises(DisagreementError, match=r"model\.pt2: not written.* 2 of 2 images"):
        write_proved(DoublingModel(3), output, options, metadata={}, images=images, log=log)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert output.read_text() == "an earlier file"
    write_proved(DoublingModel(2), output, options, metadata={}, images=images, log=log)
    run = program_runner(output, ("sums",))
    assert run({"images": np.ones((1, 2, 5, 3), np.uint8)})["sums"] == [60]


@pytest.mark.extended
@pytest.mark.parametrize("count", [0, 1])
def test_comparison_of_nothing_is_said(
    count: int, tmp_path: Path, log: RunLog, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = DoublingModel(2, count), tmp_path / "model.pt2"
    options, images = ExportOptions("torch"), make_images()[:2]
    write_proved(model, output, options, metadata={}, images=images, log=log)
    assert ("so nothing was compared" in capsys.readouterr().out) == (count == 0)


def test_script_of_the_user_is_kept(tmp_path: Path) -> None:
    assert "a script that runs it" in copy_script(tmp_path)
    assert "a script that runs it" in copy_script(tmp_path)
    (tmp_path / "run_onnx.py").write_text("mine")
    assert "is kept" in copy_script(tmp_path)
    assert (tmp_path / "run_onnx.py").read_text() == "mine"
