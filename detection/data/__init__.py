"""Detection data: COCO annotation files, data set, transforms and batches."""

import backbones  # noqa: F401  (before albumentations: it turns off that package's network check)
