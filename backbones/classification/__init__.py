"""Image classification: config, data, network, metrics and task."""
