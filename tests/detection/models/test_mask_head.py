"""Layers of the mask head."""

import pytest
import torch
from torch import nn

from detection.models.mask_head import MaskHead


def test_layers_and_first_weights_do_not_depend_on_there_being_norms() -> None:
    torch.manual_seed(0)
    head = MaskHead(4, num_convs=2, hidden_dim=32, num_classes=3)
    convs = [f"convs.conv{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")]
    assert [name for name in head.state_dict() if name.startswith("convs")] == convs
    x = torch.randn(2, 4, 5, 5)
    hidden = x
    for number in (1, 2):
        hidden = head.get_submodule(f"convs.conv{number}")(hidden).relu()
    torch.testing.assert_close(head(x), head.logits(head.deconv(hidden).relu()))
    std = head.get_parameter("convs.conv2.weight").std().item()
    assert std == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)


def test_batch_norm_of_foreground_rows() -> None:
    head = MaskHead(4, num_convs=2, hidden_dim=6, num_classes=3, norm="batch").double()
    x, valid = torch.randn(5, 4, 6, 6).double(), torch.tensor([1, 0, 0, 1, 1]).bool()
    hidden = x[valid]
    for number in (1, 2):
        conv = head.get_submodule(f"convs.conv{number}")
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is None
        hidden = nn.functional.batch_norm(conv(hidden), None, None, training=True).relu()
    nn.init.normal_(head.logits.weight)
    torch.testing.assert_close(head(x, valid)[valid], head.logits(head.deconv(hidden).relu()))


def test_group_norm_does_not_depend_on_other_rows() -> None:
    head = MaskHead(4, num_convs=1, hidden_dim=6, num_classes=3, norm="group")
    x = torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(head(x)[:1], head(x[:1]))
