"""What the project promises about its speed, measured against its peers: one function a row.

Every benchmark checks first that both sides give the same result. With `small` it runs at sizes
that take a second, to show that the sides agree; its times then say nothing.
"""

from collections.abc import Callable, Sequence

from detection.benchmarks.memory import worker_memory
from detection.benchmarks.ops import nms, roi_align
from detection.benchmarks.settings import Settings
from engine.measure import Row

BENCHMARKS: dict[str, Callable[[Settings], Sequence[Row]]] = {
    "worker-memory": worker_memory,
    "roi-align": roi_align,
    "nms": nms,
}
