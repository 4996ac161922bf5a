"""What the project promises about its speed, measured against its peers: one function a row.

Every benchmark checks first that both sides give the same result. With `small` it runs at sizes
that take a second, to show that the sides agree; its times then say nothing.
"""

from detection.benchmarks.annotations import annotation_loading
from detection.benchmarks.busy import busy
from detection.benchmarks.gpu import gpu_classify, gpu_inference, gpu_trace, gpu_train
from detection.benchmarks.inference import inference
from detection.benchmarks.input import input_pipeline
from detection.benchmarks.memory import worker_memory
from detection.benchmarks.ops import nms, roi_align
from detection.benchmarks.padding import padding
from detection.benchmarks.scoring import evaluation
from detection.benchmarks.settings import Benchmark
from detection.benchmarks.start_up import start_up
from detection.benchmarks.training import train

BENCHMARKS = {  # the quick ones first
    "nms": Benchmark(nms),
    "roi-align": Benchmark(roi_align),
    "start-up": Benchmark(start_up),
    "padding": Benchmark(padding),
    "input": Benchmark(input_pipeline),
    "train": Benchmark(train, ("r101_c4", "r50_fpn", "mask_r50_fpn"), precisions=True),
    "inference": Benchmark(inference, ("r101_c4", "r50_fpn"), precisions=True),
    "annotations": Benchmark(annotation_loading),
    "busy": Benchmark(busy),
    "worker-memory": Benchmark(worker_memory),
    "evaluation": Benchmark(evaluation),
    "gpu-train": Benchmark(gpu_train, ("r101_fpn", "r101_c4"), on_gpu=True),
    "gpu-inference": Benchmark(gpu_inference, ("r50_fpn", "r101_fpn"), on_gpu=True),
    "gpu-classify": Benchmark(gpu_classify, on_gpu=True),
    "gpu-trace": Benchmark(gpu_trace, ("r101_fpn", "r101_c4"), on_gpu=True),
}
