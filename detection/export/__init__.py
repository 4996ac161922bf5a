"""Export of trained models to files that run without this repository: ONNX and torch.export."""
