"""Benchmark: an exported detector in onnxruntime against our own prediction, on the CPU."""

from functools import partial
from pathlib import Path

import numpy as np

from backbones.images import read_image
from detection.export.detector import ExportedDetector
from detection.export.onnx_file import onnx_runner, write_onnx
from detection.inference.trained import TrainedDetector
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.images import coco128
from tools.lab.benchmarks.measure import Row, compare
from tools.lab.benchmarks.networks import R50_FPN, R101_C4, chosen_cases, make_task
from tools.lab.benchmarks.settings import Settings

PROMISED, AIM = 1.2, 1.0  # times our own time


def export(settings: Settings) -> list[Row]:
    """Measure the prediction of one coco128 image, from pixels to boxes, in float32."""
    image = _image()
    rows = []
    for case in chosen_cases(settings, R101_C4, R50_FPN):
        task = make_task(case)
        config = task.config.model_copy(
            update={"loop": task.config.loop.model_copy(update={"precision": "fp32"})}
        )
        model = ExportedDetector(TrainedDetector(config, task.classes, task.model.eval()))
        path = settings.folder / f"{case.name}.onnx"
        program = model.program()
        write_onnx(program, path, metadata=model.metadata())
        run = onnx_runner(path, program.outputs)
        inputs = model.inputs(image[None])
        found = model.differences(image[None], run(inputs))
        if not found.are_allowed():
            raise DisagreementError(f"{case.name}: the exported file differs: {found.values}")
        settings.log(f"{case.name}: the same {found.count} objects, up to {found.values}")
        ours = partial(model.detector.predict, [image])
        comparison = compare(
            ours,
            partial(run, inputs),
            rounds=settings.rounds,
            freed_memory="kept",
            log=settings.log,
        )
        rows.append(
            Row(
                f"{case.name} one image in onnxruntime, fp32",
                1 / comparison.ratio,
                unit="times our time",
                promised=PROMISED,
                aim=AIM,
                smaller_is_better=True,
                detail=f"ours against the file: {comparison}",
            )
        )
    return rows


def _image() -> np.ndarray:
    """Return an image of coco128, 480 x 640."""
    return read_image(Path(coco128().images) / "000000000009.jpg")
