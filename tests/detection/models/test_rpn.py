import torch
from torchvision.models.detection.rpn import RPNHead as TorchvisionHead
from torchvision.models.detection.rpn import concat_box_prediction_layers

from detection.models.rpn import RPNHead


def test_order_of_outputs_is_that_of_torchvisions_anchors() -> None:
    ours, theirs = RPNHead(8, 3), TorchvisionHead(8, 3)
    pairs = zip(theirs.parameters(), ours.parameters(), strict=True)
    for their_parameter, parameter in pairs:
        their_parameter.data.copy_(parameter)
    features = [torch.randn(2, 8, 4, 6), torch.randn(2, 8, 2, 3)]
    logits, deltas = ours(features)
    # their function flattens the images into the rows
    expected_logits, expected_deltas = concat_box_prediction_layers(*theirs(features))
    torch.testing.assert_close(logits.flatten(), expected_logits.flatten())
    torch.testing.assert_close(deltas.flatten(0, 1), expected_deltas)


def test_first_weights() -> None:
    head = RPNHead(256, 15)
    assert list(head.state_dict()) == [
        f"{layer}.{kind}"
        for layer in ("conv", "objectness", "deltas")
        for kind in ("weight", "bias")
    ]
    for layer in (head.conv, head.objectness, head.deltas):
        assert 0.009 < layer.weight.std().item() < 0.011
        assert layer.bias is not None
        assert layer.bias.count_nonzero() == 0


def test_outputs_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, deltas = RPNHead(8, 3)([torch.randn(1, 8, 4, 4)])
    assert logits.dtype == deltas.dtype == torch.float32
