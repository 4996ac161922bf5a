"""The paper's study of depth on CIFAR-10: plain and residual networks (section 4.2)."""
