"""What the project promises about its speed, measured against its peers: one function a row.

Every benchmark checks first that both sides give the same result. With `small` it runs at sizes
that take a second, to show that the sides agree; its times then say nothing.
"""

from collections.abc import Callable, Sequence

from detection.benchmarks.annotations import annotation_loading
from detection.benchmarks.input import input_pipeline
from detection.benchmarks.memory import worker_memory
from detection.benchmarks.padding import padding
from detection.benchmarks.settings import Settings
from engine.measure import Row

BENCHMARKS: dict[str, Callable[[Settings], Sequence[Row]]] = {
    "worker-memory": worker_memory,
    "annotations": annotation_loading,
    "padding": padding,
    "input": input_pipeline,
}
