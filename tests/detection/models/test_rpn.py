import pytest
import torch
from torch import Tensor
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_some_anchors_are_those_of_all_with_their_gradients(
    layout: torch.memory_format, precision: str
) -> None:
    head = RPNHead(8, 3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    sizes = [(4, 6), (2, 3), (1, 2)]
    features = [torch.randn(2, 8, *s).to(memory_format=layout).requires_grad_() for s in sizes]
    idxs = torch.randint(3 * 32, (2, 20))
    leaves = [*features, *head.parameters()]

    def by_itself() -> tuple[Tensor, ...]:
        with torch.no_grad():  # as in training; autocast may keep no cast of that
            head(features)
        return head.at(features, idxs)

    def of_all() -> tuple[Tensor, ...]:
        logits, deltas = head(features)
        return logits.gather(1, idxs), deltas.gather(1, idxs[..., None].expand(-1, -1, 4))

    results = []
    for run in (by_itself, of_all):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            outputs = run()
        total = torch.stack([(each * each.detach().cos()).sum() for each in outputs]).sum()
        results.append([*outputs, *torch.autograd.grad(total, leaves)])
    assert results[0][0].dtype == torch.float32
    if precision == "fp32":
        torch.testing.assert_close(*results)
    else:
        for found, expected in zip(*results, strict=True):
            assert (found - expected).norm() < 0.05 * expected.norm()
