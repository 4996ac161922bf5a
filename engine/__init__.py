"""Training engine for any task: config, data loader, optimiser, training loop, evaluation loop."""
