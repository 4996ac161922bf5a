"""The later stages of the region head: each has its own threshold and scale of its boxes.

The network's outputs are set by hand. Every box moves right by shares of its width, the truth is
the only proposal in training, and so all boxes of all stages are known.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detection.models.proposals import make_proposals
from detection.structures import DetectionBatch, ImageBatch, Targets
from detection.tasks.detection import DetectionTask
from tests.detection.tasks.tiny import tiny_task

OBJECTS = torch.tensor([[20.0, 10.0, 60.0, 50.0], [30.0, 40.0, 80.0, 90.0]])
# what each stage's output says of dx, times the scale of the stage's boxes, 10, 20 or 30
MOVES = (2.0, 1.0, 3.0)
STEPS = (0.2, 0.05, 0.1)  # moves in widths of the box: MOVES over 10, 20 and 30


def make_task(folder: Path, stages: int) -> DetectionTask:
    """Return a task whose predictors say the same of every box: class 1, and one of MOVES."""
    model = {"rpn": {"min_size": 1e4}, "roi": {"stages": stages, "nms_thresh": 1.0}}
    task, _ = tiny_task(folder, "fpn", model=model)
    later = [task.model.get_submodule(f"later_stages.{n}") for n in range(stages - 1)]
    heads = [task.model, *later]
    for head, move in zip(heads, MOVES, strict=False):
        predictor = head.get_submodule("box_predictor")
        for name, bias in (("deltas", [move, 0.0, 0.0, 0.0]), ("class_logits", [0.0])):
            layer = predictor.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            count = layer.bias.numel() // len(bias)
            layer.bias.data.copy_(torch.tensor(bias).repeat(count))
        predictor.get_parameter("class_logits.bias").data[1] = 5.0
    return task


def make_batch() -> DetectionBatch:
    images = ImageBatch(
        pixels=torch.randint(256, (1, 3, 128, 160), dtype=torch.uint8),
        sizes=torch.tensor([[128, 160]]),
        original_sizes=torch.tensor([[128, 160]]),
        image_ids=torch.tensor([1]),
        seeds=torch.tensor([11]),
    )
    everywhere = torch.ones(1, 2, dtype=torch.bool)
    return DetectionBatch(
        images, Targets(OBJECTS[None], torch.tensor([[0, 1]]), everywhere, ~everywhere)
    )


def moved(boxes: Tensor, shares: float) -> Tensor:
    """Move boxes (N, 4) right by shares of their widths."""
    width = boxes[:, 2] - boxes[:, 0]
    return boxes + shares * width[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])


# after 0.2 widths the IoU is 0.8 / 1.2, above the second stage's 0.6; after 0.25 it is 0.75 / 1.25,
# below the third's 0.7
@pytest.mark.parametrize(
    ("stages", "shift", "scale", "is_fg"), [(2, 0.2, 20, True), (3, 0.25, 30, False)]
)
def test_samples_of_the_last_stage(
    tmp_path: Path, stages: int, shift: float, scale: float, is_fg: bool
) -> None:
    task, batch = make_task(tmp_path, stages), make_batch()
    samples = task.box_losses(batch)[1][-1].samples
    valid = samples.valid[0]
    assert valid.sum() == 2
    order = samples.gt_idxs[0, valid].argsort()
    boxes, deltas = (part[0, valid][order] for part in (samples.boxes, samples.target_deltas))
    torch.testing.assert_close(boxes, moved(OBJECTS, shift))
    back = torch.tensor([-shift * scale, 0.0, 0.0, 0.0]).expand(2, 4)
    torch.testing.assert_close(deltas, back, rtol=1e-4, atol=1e-4)
    assert samples.is_fg[0, valid].tolist() == [is_fg] * 2


@pytest.mark.parametrize("stages", [2, 3])
def test_detections_are_the_proposals_moved_by_every_stage(tmp_path: Path, stages: int) -> None:
    task, batch = make_task(tmp_path, stages), make_batch()
    task.eval()
    rpn_config = task.model.config.rpn.model_copy(
        update={"min_size": 1.0, "post_nms_topk_test": 30}
    )
    task.model.config = task.model.config.model_copy(update={"rpn": rpn_config})
    with torch.inference_mode():
        rpn = task.model.rpn(task.model.features(batch.images), batch.images)
        proposals = make_proposals(rpn, batch.images.sizes, config=rpn_config, training=False)
        (found,) = task.predict(batch)
    boxes = proposals.boxes[0, proposals.valid[0]]
    for shares in STEPS[:stages]:
        boxes = moved(boxes, shares)
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, 160)
    sized = boxes[:, 2] - boxes[:, 0] > 0.01
    found_class = found.boxes[found.labels == 1]
    assert len(found_class) == sized.sum() > 10
    distance = torch.cdist(found_class, boxes[sized], p=torch.inf)
    assert distance.amin(dim=1).max() < 1e-2
    assert distance.amin(dim=0).max() < 1e-2
