"""The engine runs any task and knows none: config, loader, optimiser, training, evaluation."""
