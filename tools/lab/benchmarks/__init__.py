"""What the project promises about its speed, measured against its peers: one function a row.

Every benchmark checks first that both sides give the same result. With `small` it runs at sizes
that take a second, to show that the sides agree; its times then say nothing.
"""

from tools.lab.benchmarks.settings import Benchmark

BENCHMARKS = {  # the quick ones first
    "nms": Benchmark("ops.nms", needs=("torchvision",)),
    "roi-align": Benchmark("ops.roi_align", needs=("torchvision",)),
    "start-up": Benchmark("start_up.start_up", needs=("albumentations",)),
    "padding": Benchmark("padding.padding", on_coco128=True),
    "input": Benchmark(
        "input.input_pipeline", needs=("albumentations", "torchvision"), on_coco128=True
    ),
    "train": Benchmark(
        "training.train",
        ("r101_c4", "r50_fpn", "mask_r50_fpn"),
        precisions=True,
        needs=("torchvision",),
    ),
    "inference": Benchmark(
        "inference.inference", ("r101_c4", "r50_fpn"), precisions=True, needs=("torchvision",)
    ),
    "annotations": Benchmark("annotations.annotation_loading", needs=("pycocotools",)),
    "busy": Benchmark("busy.busy", needs=("albumentations",)),
    "worker-memory": Benchmark("memory.worker_memory", needs=("albumentations",)),
    "evaluation": Benchmark("scoring.evaluation", needs=("pycocotools",)),
    "gpu-train": Benchmark(
        "gpu.gpu_train", ("r101_fpn", "r101_c4"), on_gpu=True, needs=("albumentations",)
    ),
    "gpu-inference": Benchmark("gpu.gpu_inference", ("r50_fpn", "r101_fpn"), on_gpu=True),
    "gpu-classify": Benchmark("gpu.gpu_classify", on_gpu=True),
    "gpu-trace": Benchmark("gpu.gpu_trace", ("r101_fpn", "r101_c4"), on_gpu=True),
}
