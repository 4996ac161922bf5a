"""A loss is divided by the mean count of a step's parts, which may be below one."""

import pytest
import torch

from detection.losses import mask_loss


@pytest.mark.parametrize("count", [0.25, 0.5, 1.0, 3.0])
def test_masks_are_divided_by_the_count_that_is_given(count: float) -> None:
    logits, targets = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4)
    valid = torch.tensor([[True, False]])
    found = mask_loss(logits, targets, valid, count=torch.tensor(count))["mask"]
    torch.testing.assert_close(found, torch.tensor(2.0).log() / count)
