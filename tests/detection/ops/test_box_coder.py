import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from detection.ops.box_coder import decode_boxes, encode_boxes
from tests.reference import boxes as reference

WEIGHTS = {"unit": (1.0, 1.0, 1.0, 1.0), "head": (10.0, 10.0, 5.0, 5.0)}
parametrize_weights = pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)


def random_boxes(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    corners = torch.rand(*shape, 2, dtype=dtype) * 50
    return torch.cat([corners, corners + torch.rand(*shape, 2, dtype=dtype) * 40 + 1], dim=-1)


@parametrize_weights
def test_is_the_reference_and_torchvisions(weights: tuple[float, float, float, float]) -> None:
    gt, anchors = random_boxes(20), random_boxes(20)
    deltas = encode_boxes(gt, anchors, weights=weights)
    rows = zip(gt.tolist(), anchors.tolist(), strict=True)
    expected = [reference.encode(box, anchor, weights) for box, anchor in rows]
    torch.testing.assert_close(deltas, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    coder = BoxCoder(weights)
    torch.testing.assert_close(deltas, coder.encode_single(gt, anchors))

    deltas = torch.randn(20, 4) * 10  # beyond the cap too
    boxes = decode_boxes(deltas, anchors, weights=weights)
    rows = zip(deltas.tolist(), anchors.tolist(), strict=True)
    expected = [reference.decode(delta, anchor, weights) for delta, anchor in rows]
    torch.testing.assert_close(boxes, torch.tensor(expected), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(boxes, coder.decode_single(deltas, anchors))


@parametrize_weights
def test_decode_undoes_encode(weights: tuple[float, float, float, float]) -> None:
    gt, anchors = random_boxes(2, 7), random_boxes(7)
    deltas = encode_boxes(gt, anchors, weights=weights)
    torch.testing.assert_close(decode_boxes(deltas, anchors, weights=weights), gt)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)], ids=str)
def test_no_boxes(shape: tuple[int, ...]) -> None:
    none = torch.zeros(shape)
    assert encode_boxes(none, none).shape == decode_boxes(none, none).shape == shape


def test_boxes_without_area_encode_to_finite_deltas() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 0], [5, 5, 5, 9], [0, 0, 1300, 800]])
    assert encode_boxes(boxes[:, None], boxes).isfinite().all()


def test_bfloat16_deltas_decode_in_float32() -> None:
    anchors = random_boxes(5)
    deltas = torch.randn(5, 4).bfloat16()
    torch.testing.assert_close(decode_boxes(deltas, anchors), decode_boxes(deltas.float(), anchors))


def test_gradients() -> None:
    gt = random_boxes(3, dtype=torch.float64).requires_grad_()
    anchors = random_boxes(3, dtype=torch.float64)
    deltas = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: encode_boxes(x, anchors), (gt,))
    assert torch.autograd.gradcheck(lambda x: decode_boxes(x, anchors), (deltas,))
