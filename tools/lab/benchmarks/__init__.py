"""Benchmarks: speed and memory of this project against other libraries ("the peer").

Every benchmark with a peer first checks that both sides give the same result. With `small` a
benchmark runs at sizes that take about a second; its times then mean nothing.
"""

from tools.lab.benchmarks.settings import Benchmark

BENCHMARKS = {  # the quick ones first
    "nms": Benchmark("ops.nms", requires=("torchvision",)),
    "roi-align": Benchmark("ops.roi_align", requires=("torchvision",)),
    "start-up": Benchmark("start_up.start_up", requires=("albumentations",)),
    "padding": Benchmark("padding.padding", on_coco128=True),
    "input": Benchmark(
        "input.input_pipeline", requires=("albumentations", "torchvision"), on_coco128=True
    ),
    "pretraining-input": Benchmark(
        "pretraining_input.pretraining_input", requires=("albumentations",)
    ),
    "train": Benchmark(
        "training.train",
        ("r101_c4", "r50_fpn", "mask_r50_fpn"),
        precisions=True,
        requires=("torchvision",),
    ),
    "inference": Benchmark(
        "inference.inference", ("r101_c4", "r50_fpn"), precisions=True, requires=("torchvision",)
    ),
    "export": Benchmark(
        "export.export",
        ("r101_c4", "r50_fpn"),
        on_coco128=True,
        requires=("onnx", "onnxruntime", "onnxscript"),
    ),
    "predict": Benchmark("predict.prediction", on_coco128=True),
    "annotations": Benchmark("annotations.annotation_loading", requires=("pycocotools",)),
    "data-stats": Benchmark("annotations.annotation_statistics"),
    "data-check": Benchmark("data_check.data_check"),
    "busy": Benchmark("busy.busy", requires=("albumentations",)),
    "worker-memory": Benchmark("memory.worker_memory", requires=("albumentations",)),
    "evaluation": Benchmark("scoring.evaluation", requires=("pycocotools",)),
    "report": Benchmark("report.report"),
    "service": Benchmark("service.service", requires=("fastapi", "uvicorn")),
    "gpu-train": Benchmark(
        "gpu.gpu_train", ("r101_fpn", "r101_c4"), on_gpu=True, requires=("albumentations",)
    ),
    "gpu-inference": Benchmark("gpu.gpu_inference", ("r50_fpn", "r101_fpn"), on_gpu=True),
    "gpu-classify": Benchmark("gpu.gpu_classify", on_gpu=True),
    "gpu-trace": Benchmark("gpu.gpu_trace", ("r101_fpn", "r101_c4"), on_gpu=True),
}
