"""Run by test_nms_kernel.py with TRITON_INTERPRET=1: the kernel of NMS on the CPU."""

import torch

from detection.ops.kernels.nms_triton import keep_on_device
from detection.ops.nms import nms_keep
from tests.detection.ops.crowded_boxes import CASES


def main() -> None:
    """Compare with the plain version."""
    torch.set_num_threads(1)
    for name, (batch, iou_thresh, max_kept) in CASES.items():
        expected = nms_keep(*batch, iou_thresh=iou_thresh, max_kept=max_kept)
        limit = batch[0].shape[1] if max_kept is None else max_kept
        found = keep_on_device(*batch, iou_thresh=iou_thresh, max_kept=limit)
        assert torch.equal(found, expected), f"{name}: {found.sum(1)} kept, not {expected.sum(1)}"


if __name__ == "__main__":
    main()
