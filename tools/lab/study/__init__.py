"""The paper's study of depth on CIFAR-10."""
