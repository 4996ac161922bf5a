"""Pure, batched tensor functions without parameters; `torchvision.ops` is used here alone."""
