"""Detection and instance segmentation as tasks for `engine.trainer`."""
