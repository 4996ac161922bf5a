"""Tasks by the tag that a config carries, and how a run's config becomes a task."""

from detection.config import DetectionConfig
from detection.tasks.detection import DetectionTask
from engine.schema import RunConfig


def build_task(config: RunConfig) -> DetectionTask:
    """Make a config's task: reads annotations, makes the network, loads pretrained weights."""
    assert isinstance(config, DetectionConfig)
    return DetectionTask.for_training(config)
