"""Transfer trials: how much a pretrained backbone improves each of the four tasks."""
