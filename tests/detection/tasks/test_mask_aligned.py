"""`model.mask.aligned` reaches the masks that are learnt and those that are predicted.

`model.mask.binary_targets` reaches those that are learnt.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detection.ops.masks import unpack_bits
from detection.structures import DetectionBatch
from detection.tasks.segmentation import SegmentationTask
from tests.detection.tasks.tiny import tiny_task
from tests.reference.masks import paste_mask

BIAS = 3.0


def make_task(
    folder: Path, *, aligned: bool, binary: bool = False
) -> tuple[SegmentationTask, DetectionBatch]:
    """Return a task whose mask logits are all BIAS, and a batch."""
    mask = {"aligned": aligned, "binary_targets": binary, "num_convs": 1, "hidden_dim": 16}
    model = {"mask": mask}
    task, batch = tiny_task(folder, "fpn", task="segmentation", model=model)
    assert isinstance(task, SegmentationTask)
    assert task.model.mask_head is not None
    with torch.no_grad():
        task.model.mask_head.logits.weight.zero_()
        task.model.mask_head.get_parameter("logits.bias").fill_(BIAS)
    return task, batch


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("aligned", [True, False])
def test_masks_are_learnt_from_roi_align_of_the_annotations(
    tmp_path: Path, aligned: bool, binary: bool
) -> None:
    """Binary targets are detectron2's of masks that are not polygons: half a cell or more is 1."""
    task, batch = make_task(tmp_path, aligned=aligned, binary=binary)
    _, ((_, samples, _),) = task.box_losses(batch)
    assert batch.targets.masks is not None
    bits = unpack_bits(batch.targets.masks, width=batch.images.pixels.shape[3]).float()
    targets = []
    for image, sample in samples.is_fg.nonzero().tolist():
        mask = bits[image, samples.gt_idxs[image, sample]][None, None]
        roi = torch.cat([torch.zeros(1), samples.boxes[image, sample]])[None]
        targets.append(torchvision.ops.roi_align(mask, roi, 28, aligned=aligned))
    wanted = torch.cat(targets)
    assert ((wanted > 0) & (wanted < 1)).any()
    if binary:
        wanted = (wanted >= 0.5).float()
    expected = F.binary_cross_entropy_with_logits(torch.full_like(wanted, BIAS), wanted)
    torch.testing.assert_close(task.losses(batch)["mask"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("aligned", [True, False])
def test_predicted_masks_are_pasted_by_the_same_rule(tmp_path: Path, aligned: bool) -> None:
    """Every cell is full, and so a mask is what the rule makes of its box."""
    task, batch = make_task(tmp_path, aligned=aligned)
    found = task.eval().predict(batch)[0]
    assert found.masks is not None
    cells = torch.full((1, 1, 28, 28), BIAS).sigmoid()
    height, width = found.masks.size
    differ = 0
    for mask, box in list(zip(found.masks, found.boxes, strict=True))[:12]:
        by_theirs = paste_masks_in_image(cells, box[None], (height, width))[0, 0].numpy() > 0.5
        by_ours = paste_mask(cells[0, 0].numpy(), tuple(box.tolist()), (height, width))
        np.testing.assert_array_equal(mask, by_ours if aligned else by_theirs)
        differ += not np.array_equal(by_ours, by_theirs)
    assert differ > 0
