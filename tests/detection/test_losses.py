from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detection.localization.losses import localization_loss
from detection.losses import roi_loss, rpn_loss, smooth_l1
from tests.reference import boxes as reference_boxes
from tests.reference import localization as reference_localization
from tests.reference import losses as reference

BETAS = pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])


@BETAS
def test_smooth_l1_is_torchs(beta: float) -> None:
    pred, target = torch.randn(2, 50)
    expected = F.smooth_l1_loss(pred, target, beta=beta, reduction="none")
    torch.testing.assert_close(smooth_l1(pred, target, beta=beta), expected)
    at_beta = smooth_l1(torch.tensor(beta), torch.tensor(0.0), beta=beta)
    torch.testing.assert_close(at_beta, torch.tensor(beta / 2))


def rpn_case(*, valid_share: float = 0.7, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Two images of 8 sampled anchors."""
    valid = torch.rand(2, 8) < valid_share
    return {
        "objectness_logits": torch.randn(2, 8, dtype=dtype, requires_grad=True),
        "deltas": torch.randn(2, 8, 4, dtype=dtype, requires_grad=True),
        "target_deltas": torch.randn(2, 8, 4, dtype=dtype),
        "is_fg": (torch.rand(2, 8) < 0.5) & valid,
        "valid": valid,
    }


def roi_case(*, valid_share: float = 0.7, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Two images of 8 samples, 3 classes."""
    return {
        "class_logits": torch.randn(2, 8, 4, dtype=dtype, requires_grad=True),
        "deltas": torch.randn(2, 8, 3, 4, dtype=dtype, requires_grad=True),
        "labels": torch.arange(16).view(2, 8) % 4,
        "target_deltas": torch.randn(2, 8, 4, dtype=dtype),
        "valid": torch.rand(2, 8) < valid_share,
    }


@BETAS
@pytest.mark.parametrize("valid_share", [0.0, 0.5, 1.0])
def test_rpn_loss_is_the_reference(beta: float, valid_share: float) -> None:
    case = rpn_case(valid_share=valid_share)
    rows = []
    for i, s in case["valid"].nonzero().tolist():
        rows.append(
            (
                case["objectness_logits"][i, s].item(),
                case["deltas"][i, s].tolist(),
                case["target_deltas"][i, s].tolist(),
                case["is_fg"][i, s].item(),
            )
        )
    losses = rpn_loss(**case, beta=beta)
    assert list(losses) == ["rpn_objectness", "rpn_box"]
    found = tuple(loss.item() for loss in losses.values())
    torch.testing.assert_close(found, reference.rpn(rows, beta), rtol=1e-5, atol=1e-6)


@BETAS
@pytest.mark.parametrize("valid_share", [0.0, 0.5, 1.0])
def test_roi_loss_is_the_reference(beta: float, valid_share: float) -> None:
    case = roi_case(valid_share=valid_share)
    rows = [
        (
            case["class_logits"][i, s].tolist(),
            case["deltas"][i, s].tolist(),
            case["target_deltas"][i, s].tolist(),
            case["labels"][i, s].item(),
        )
        for i, s in case["valid"].nonzero().tolist()
    ]
    losses = roi_loss(**case, beta=beta)
    assert list(losses) == ["roi_class", "roi_box"]
    found = tuple(loss.item() for loss in losses.values())
    torch.testing.assert_close(found, reference.roi(rows, beta), rtol=1e-5, atol=1e-6)


def test_gradients() -> None:
    rpn, roi = rpn_case(dtype=torch.float64), roi_case(dtype=torch.float64)

    def rpn_losses(logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
        replaced = rpn | {"objectness_logits": logits, "deltas": deltas}
        return tuple(rpn_loss(**replaced, beta=0.1).values())

    def roi_losses(logits: Tensor, deltas: Tensor) -> tuple[Tensor, ...]:
        replaced = roi | {"class_logits": logits, "deltas": deltas}
        return tuple(roi_loss(**replaced, beta=0.1).values())

    assert torch.autograd.gradcheck(rpn_losses, (rpn["objectness_logits"], rpn["deltas"]))
    assert torch.autograd.gradcheck(roi_losses, (roi["class_logits"], roi["deltas"]))


@pytest.mark.parametrize(
    ("loss", "case"), [(rpn_loss, rpn_case), (roi_loss, roi_case)], ids=["rpn", "roi"]
)
def test_only_valid_samples_count(loss: Any, case: Any) -> None:
    inputs = case()
    expected = loss(**inputs, beta=0.1)
    targets = torch.where(inputs["valid"][..., None], inputs["target_deltas"], 1e30)
    losses = loss(**(inputs | {"target_deltas": targets}), beta=0.1)
    torch.testing.assert_close(losses, expected)
    for grad in torch.autograd.grad(sum(losses.values()), [inputs["deltas"]]):
        assert grad.isfinite().all()
    nothing = torch.zeros_like(inputs["valid"])
    losses = loss(**(inputs | {"valid": nothing}), beta=0.1)
    assert all(value == 0 for value in losses.values())


def test_background_has_no_box_loss() -> None:
    case = roi_case(valid_share=1.0)
    losses = roi_loss(**(case | {"labels": torch.full((2, 8), 3)}), beta=0.1)
    assert losses["roi_box"] == 0


def test_bfloat16_predictions_are_scored_in_float32() -> None:
    case = roi_case(dtype=torch.bfloat16)
    wide = {
        name: value.float() if value.is_floating_point() else value for name, value in case.items()
    }
    losses = roi_loss(**case, beta=0.1)
    assert losses["roi_class"].dtype == losses["roi_box"].dtype == torch.float32
    torch.testing.assert_close(losses, roi_loss(**wide, beta=0.1))


def localization_case(*, valid_share: float = 0.7, dtype: torch.dtype = torch.float32) -> Any:
    """Two images of 8 sampled anchors, each with the box that it is to be moved to."""
    corners = 20 * torch.rand(2, 2, 8, 2, dtype=dtype)
    sides = 5 + 10 * torch.rand(2, 2, 8, 2, dtype=dtype)
    anchors, gt_boxes = torch.cat([corners, corners + sides], dim=-1)
    valid = torch.rand(2, 8) < valid_share
    return {
        "logits": torch.randn(2, 8, dtype=dtype, requires_grad=True),
        "deltas": (0.3 * torch.randn(2, 8, 4, dtype=dtype)).requires_grad_(),
        "anchors": anchors,
        "gt_boxes": gt_boxes,
        "is_fg": (torch.rand(2, 8) < 0.5) & valid,
        "valid": valid,
    }


BOX_LOSSES = pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])


@BOX_LOSSES
@pytest.mark.parametrize("valid_share", [0.0, 0.5, 1.0])
def test_localization_loss_is_the_reference(
    box_loss: Literal["smooth_l1", "giou"], valid_share: float
) -> None:
    case = localization_case(valid_share=valid_share)
    rows = []
    giou = 0.0
    for i, s in case["valid"].nonzero().tolist():
        anchor, gt_box = case["anchors"][i, s].tolist(), case["gt_boxes"][i, s].tolist()
        delta, is_fg = case["deltas"][i, s].tolist(), case["is_fg"][i, s].item()
        target = reference_boxes.encode(gt_box, anchor, (1, 1, 1, 1))
        rows.append((case["logits"][i, s].item(), delta, target, is_fg))
        decoded = reference_boxes.decode(delta, anchor, (1, 1, 1, 1))
        giou += (1 - reference_localization.giou(decoded, gt_box)) * is_fg
    objectness, box = reference.rpn(rows, 1 / 9)
    box = giou / max(len(rows), 1) if box_loss == "giou" else box
    losses = localization_loss(**case, box_loss=box_loss, beta=1 / 9)
    assert losses["localization_class"].item() == pytest.approx(objectness, abs=1e-5)
    assert losses["localization_box"].item() == pytest.approx(box, abs=1e-5)


@BOX_LOSSES
def test_localization_loss_has_the_gradient_of_its_value(
    box_loss: Literal["smooth_l1", "giou"],
) -> None:
    case = localization_case(dtype=torch.float64)

    def loss(logits: Tensor, deltas: Tensor) -> Tensor:
        changed = {**case, "logits": logits, "deltas": deltas}
        return torch.stack([*localization_loss(**changed, box_loss=box_loss, beta=1.0).values()])

    assert torch.autograd.gradcheck(loss, (case["logits"], case["deltas"]))
