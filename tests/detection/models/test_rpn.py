import pytest
import torch
from torch import Tensor
from torchvision.models.detection.rpn import RPNHead as TorchvisionHead
from torchvision.models.detection.rpn import concat_box_prediction_layers

from detection.models.rpn import RPNHead


@pytest.mark.parametrize("num_convs", [1, 2])
def test_order_of_outputs_is_that_of_torchvisions_anchors(num_convs: int) -> None:
    ours = RPNHead(8, 3, num_convs=num_convs)
    theirs = TorchvisionHead(8, 3, conv_depth=num_convs)
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


def test_first_weights_of_more_convolutions() -> None:
    head = RPNHead(256, 3, num_convs=3)
    names = [name for name in head.state_dict() if name.endswith("weight")]
    convs = ["conv.weight", "later_convs.0.weight", "later_convs.1.weight"]
    assert names == [*convs, "objectness.weight", "deltas.weight"]
    for name, parameter in head.named_parameters():
        if name.endswith("weight"):
            assert 0.009 < parameter.std().item() < 0.011
        else:
            assert not parameter.any()


def test_outputs_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, deltas = RPNHead(8, 3)([torch.randn(1, 8, 4, 4)])
    assert logits.dtype == deltas.dtype == torch.float32


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("num_convs", [1, 2, 3, 4])
def test_some_anchors_at_all_borders_in_float64(num_convs: int) -> None:
    head = RPNHead(3, 2, num_convs=num_convs).double()
    for parameter in head.parameters():  # biases too: what they give outside the map must be 0
        torch.nn.init.normal_(parameter, std=0.4)
    sizes = [(3, 6), (7, 1), (2, 2), (1, 1)]
    features = [torch.randn(2, 3, *size, dtype=torch.float64).requires_grad_() for size in sizes]
    count = 2 * sum(height * width for height, width in sizes)
    idxs = torch.stack([torch.arange(count), torch.randperm(count)])
    leaves = [*features, *head.parameters()]
    logits, deltas = head(features)
    logits, deltas = logits.gather(1, idxs), deltas.gather(1, idxs[..., None].expand(-1, -1, 4))
    results = []
    for outputs in (head.at(features, idxs), (logits, deltas)):
        total = (outputs[0] * outputs[0]).sum() + (outputs[1] * torch.arange(4.0)).sum()
        results.append([*outputs, *torch.autograd.grad(total, leaves)])
    # the outputs are float32
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_convs", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_some_anchors_are_those_of_all_with_their_gradients(
    layout: torch.memory_format, precision: str, num_convs: int
) -> None:
    head = RPNHead(8, 3, num_convs=num_convs)
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
