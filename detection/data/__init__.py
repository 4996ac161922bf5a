"""Pictures and their truth: COCO files, the drawn demo, transforms and batches."""

import backbones  # noqa: F401  (before albumentations: it turns off that package's network check)
