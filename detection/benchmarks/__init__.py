"""What the project promises about its speed, measured against its peers: one function a row.

Every benchmark checks first that both sides give the same result. With `small` it runs at sizes
that take a second, to show that the sides agree; its times then say nothing.
"""

from collections.abc import Callable, Sequence

from detection.benchmarks.annotations import annotation_loading
from detection.benchmarks.gpu import gpu_classify, gpu_inference, gpu_trace, gpu_train
from detection.benchmarks.inference import inference
from detection.benchmarks.input import input_pipeline
from detection.benchmarks.memory import worker_memory
from detection.benchmarks.ops import nms, roi_align
from detection.benchmarks.padding import padding
from detection.benchmarks.scoring import evaluation
from detection.benchmarks.settings import Settings
from detection.benchmarks.start_up import start_up
from detection.benchmarks.training import train
from engine.measure import Row

Benchmark = Callable[[Settings], Sequence[Row]]
BENCHMARKS: dict[str, Benchmark] = {  # the quick ones first
    "nms": nms,
    "roi-align": roi_align,
    "start-up": start_up,
    "padding": padding,
    "input": input_pipeline,
    "train": train,
    "inference": inference,
    "annotations": annotation_loading,
    "worker-memory": worker_memory,
    "evaluation": evaluation,
    "gpu-train": gpu_train,
    "gpu-inference": gpu_inference,
    "gpu-classify": gpu_classify,
    "gpu-trace": gpu_trace,
}
