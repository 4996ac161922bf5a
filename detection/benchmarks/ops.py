"""Two operations that torchvision does on a CPU by scalar loops: RoIAlign, and NMS of proposals."""

import torch
import torchvision
from torch import Tensor

from detection.benchmarks.settings import Settings
from detection.ops.nms import nms_keep
from detection.ops.roi_pool import pool_rois
from engine.errors import DisagreementError
from engine.measure import Row, check_close, compare

PICTURE = (800, 1344)
"""Height and width in pixels of a COCO picture as detectors train on it, padded."""
STRIDES = (4, 8, 16, 32)
NMS_THRESH = 0.7


def roi_align(settings: Settings) -> list[Row]:
    """Pool a pyramid forward and backward, each side in its own model's memory layout."""
    count, channels = (16, 8) if settings.small else (512, 256)
    generator = torch.Generator().manual_seed(0)
    ours = [
        torch.randn(2, channels, PICTURE[0] // stride, PICTURE[1] // stride, generator=generator)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for stride in STRIDES
    ]
    peers = [feature.detach().contiguous().requires_grad_() for feature in ours]
    boxes = torch.stack([_scattered_boxes(count, generator) for _ in range(2)])
    grad = torch.randn(2 * count, channels, 7, 7, generator=generator)
    pooler = torchvision.ops.MultiScaleRoIAlign([str(s) for s in STRIDES], 7, sampling_ratio=2)
    by_name = {str(stride): feature for stride, feature in zip(STRIDES, peers, strict=True)}

    def pool() -> tuple[Tensor, ...]:
        pooled = pool_rois(
            ours, STRIDES, boxes, kind="roi_align", resolution=7, sampling_ratio=2, aligned=False
        )
        return pooled.detach(), *torch.autograd.grad(pooled, ours, grad)

    def pool_as_peer() -> tuple[Tensor, ...]:
        pooled = pooler(by_name, list(boxes), [PICTURE] * 2)
        return pooled.detach(), *torch.autograd.grad(pooled, peers, grad)

    for number, (mine, other) in enumerate(zip(pool(), pool_as_peer(), strict=True)):
        what = "regions" if number == 0 else f"gradient of p{number + 1}"
        check_close(f"RoIAlign, {what}", mine, other, rtol=1e-4, atol=1e-4)
    taken = compare(pool, pool_as_peer, rounds=settings.rounds)
    work = f"RoIAlign of 2 x {count} boxes, {channels} channels, forward and backward"
    return [Row(work, taken.ratio, at_least=10, aim=18, detail=str(taken))]


def nms(settings: Settings) -> list[Row]:
    """Thin out proposals of one picture, in training and at test."""
    counts = [(600, 100)] if settings.small else [(12000, 2000), (6000, 1000)]
    rows = []
    for count, topk in counts:
        boxes, scores = proposals_like(count)
        one_group = torch.zeros(1, count, dtype=torch.int64)
        batch = (boxes[None], scores[None], one_group, torch.ones_like(one_group).bool())

        def keep(batch: tuple[Tensor, ...] = batch, topk: int = topk) -> Tensor:
            return nms_keep(*batch, iou_thresh=NMS_THRESH, max_kept=topk)

        def keep_as_peer(
            boxes: Tensor = boxes, scores: Tensor = scores, topk: int = topk
        ) -> Tensor:
            best: Tensor = torchvision.ops.nms(boxes, scores, NMS_THRESH)[:topk]
            return best

        work = f"NMS {count} -> {topk}"
        check_same_boxes(work, keep()[0].nonzero()[:, 0], keep_as_peer().sort().values)
        taken = compare(keep, keep_as_peer, rounds=settings.rounds)
        at_least, aim = (8, 12) if topk == 2000 else (None, None)
        rows.append(Row(work, taken.ratio, at_least=at_least, aim=aim, detail=str(taken)))
    return rows


def check_same_boxes(work: str, ours: Tensor, peer: Tensor) -> None:
    """Raise DisagreementError unless both kept the same boxes, given as indices (N,)."""
    if not torch.equal(ours, peer):
        others = set(ours.tolist()) ^ set(peer.tolist())
        raise DisagreementError(
            f"{work}: expected the peer's {len(peer)} boxes, got {len(ours)}, {len(others)} differ"
        )


def proposals_like(count: int) -> tuple[Tensor, Tensor]:
    """Return boxes (count, 4) and scores (count,) as a region proposal network makes them.

    Three quarters lie around forty objects, the better the higher they score; the others anywhere.
    """
    generator = torch.Generator().manual_seed(0)
    objects = _scattered_boxes(40, generator)
    near = count * 3 // 4
    spread = 0.35 * torch.rand(near, 1, generator=generator)
    own = objects[torch.randint(40, (near,), generator=generator)]
    sides = (own[:, 2:] - own[:, :2]).repeat(1, 2)
    around = own + spread * sides * torch.randn(near, 4, generator=generator) / 2
    boxes = torch.cat([around, _scattered_boxes(count - near, generator)])
    boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])], 1)
    limits = torch.tensor([PICTURE[1], PICTURE[0]] * 2)
    trust = torch.cat([1 - spread[:, 0], torch.full((count - near,), 0.5)])
    scores = (trust + 0.3 * torch.randn(count, generator=generator)).sigmoid()
    return boxes.clamp(min=0).minimum(limits), scores


def _scattered_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Return (count, 4) anywhere in a picture: sides of 24 to 480 pixels, small ones as often."""
    height, width = PICTURE
    centers = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    sides = 24 * 20 ** torch.rand(count, 2, generator=generator)
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
    clipped: Tensor = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2))
    return clipped
