"""Box, mask and RoI operators: pure, batched tensor functions without parameters.

`torchvision.ops` is used only here.
"""
