"""Benchmarks: RoIAlign and NMS, which torchvision computes on a CPU with scalar loops."""

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor

from detection.models.anchors import AnchorGenerator
from detection.ops.box_coder import decode_boxes, encode_boxes
from detection.ops.boxes import box_iou, clip_boxes
from detection.ops.nms import nms_keep
from detection.ops.roi_pool import assign_levels, pool_rois
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.measure import Row, check_close, compare
from tools.lab.benchmarks.settings import Settings

Pool = Callable[[list[Tensor]], Tensor]

IMAGE = (800, 1344)
"""Height and width in pixels of a COCO image in training, after resize and padding."""
STRIDES = (4, 8, 16, 32)
NMS_THRESH = 0.7


def roi_align(settings: Settings) -> list[Row]:
    """Measure RoIAlign on a pyramid, forward and backward, and with an adaptive number of samples.

    Each side gets the memory layout of its own model: channels last, or contiguous.
    """
    count, channels = (16, 8) if settings.small else (512, 256)
    generator = torch.Generator().manual_seed(0)
    ours = [
        torch.randn(2, channels, IMAGE[0] // stride, IMAGE[1] // stride, generator=generator)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
        for stride in STRIDES
    ]
    peers = [feature.detach().contiguous().requires_grad_() for feature in ours]
    boxes = torch.stack([_scattered_boxes(count, generator) for _ in range(2)])
    grad = torch.randn(2 * count, channels, 7, 7, generator=generator)
    # torchvision takes the levels by name; the names here are the strides
    pooler = torchvision.ops.MultiScaleRoIAlign([str(s) for s in STRIDES], 7, sampling_ratio=2)
    by_name = {str(stride): feature for stride, feature in zip(STRIDES, peers, strict=True)}

    def pool() -> tuple[Tensor, ...]:
        pooled = pool_rois(
            ours, STRIDES, boxes, kind="roi_align", resolution=7, sampling_ratio=2, aligned=False
        )
        return pooled.detach(), *torch.autograd.grad(pooled, ours, grad)

    def pool_as_peer() -> tuple[Tensor, ...]:
        pooled = pooler(by_name, list(boxes), [IMAGE] * 2)
        gradients: tuple[Tensor, ...] = torch.autograd.grad(pooled, peers, grad)
        return pooled.detach(), *gradients

    for number, (mine, other) in enumerate(zip(pool(), pool_as_peer(), strict=True)):
        what = "regions" if number == 0 else f"gradient of p{number + 1}"
        check_close(f"RoIAlign, {what}", mine, other, rtol=1e-4, atol=1e-4)
    taken = compare(pool, pool_as_peer, rounds=settings.rounds, log=settings.log)
    work = f"RoIAlign of 2 x {count} boxes, {channels} channels, forward and backward"
    rows = [Row(work, taken.ratio, promised=10, aim=18, detail=str(taken))]
    # images, boxes per image, resolution
    cases = [(1, 8, 7)] if settings.small else [(1, 300, 7), (2, 300, 7), (1, 300, 14)]
    for case in cases:
        rows += _adaptive_roi_align(
            *case, channels=64 if settings.small else 256, settings=settings
        )
    return rows


def _adaptive_roi_align(
    images: int, count: int, resolution: int, *, channels: int, settings: Settings
) -> list[Row]:
    """Measure RoIAlign with sampling_ratio 0 on a pyramid, against pooling level by level.

    The peer always gets contiguous maps, as its model has them. This project's are channels-last,
    as its own model has them, or contiguous, which its kernel copies first.
    """
    generator = torch.Generator().manual_seed(0)
    contiguous = [
        torch.randn(images, channels, IMAGE[0] // stride, IMAGE[1] // stride, generator=generator)
        for stride in STRIDES
    ]
    for feature in contiguous:
        feature.requires_grad_()
    channels_last = [
        feature.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        for feature in contiguous
    ]
    boxes = torch.stack([_scattered_boxes(count, generator) for _ in range(images)])
    grad = torch.randn(images * count, channels, resolution, resolution, generator=generator)

    def pool(features: list[Tensor]) -> Tensor:
        return pool_rois(
            features, STRIDES, boxes, kind="roi_align", resolution=resolution, sampling_ratio=0
        )

    def pool_by_level(features: list[Tensor]) -> Tensor:
        """Pool the regions of each level alone and put them in their place, as detectron2 does."""
        levels = assign_levels(boxes, num_levels=len(STRIDES)).flatten()
        image_of = torch.arange(images).repeat_interleave(count)
        rois = torch.cat([image_of[:, None], boxes.flatten(0, 1)], dim=1)
        pooled = torch.zeros_like(grad)
        for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=True)):
            idxs = (levels == level).nonzero()[:, 0]
            part = torchvision.ops.roi_align(feature, rois[idxs], resolution, 1 / stride, 0, True)
            pooled.index_put_((idxs,), part)
        return pooled

    @torch.no_grad()
    def forward(pool: Pool, features: list[Tensor]) -> tuple[Tensor, ...]:
        return (pool(features),)

    def step(pool: Pool, features: list[Tensor]) -> tuple[Tensor, ...]:
        gradients: tuple[Tensor, ...] = torch.autograd.grad(pool(features), features, grad)
        return gradients

    work = f"RoIAlign of {images} x {count} boxes to {resolution}x{resolution}, sampling_ratio 0"
    runs = [
        (f"{work}, forward", forward, channels_last),
        (f"{work}, forward, contiguous maps", forward, contiguous),
        (f"{work}, forward and backward", step, channels_last),
    ]
    rows = []
    for name, run, features in runs:
        ours, peer = partial(run, pool, features), partial(run, pool_by_level, contiguous)
        for mine, other in zip(ours(), peer(), strict=True):
            check_close(name, mine, other, rtol=1e-4, atol=1e-4)
        taken = compare(ours, peer, rounds=settings.rounds, log=settings.log)
        rows.append(Row(name, taken.ratio, promised=1, aim=2, detail=str(taken)))
    return rows


def nms(settings: Settings) -> list[Row]:
    """Measure NMS on the proposals of one image, with the counts of training and of testing."""
    counts = [(600, 100)] if settings.small else [(12000, 2000), (6000, 1000)]
    rows = []
    for count, topk in counts:
        boxes, scores = best_proposals(count)
        one_group = torch.zeros(1, count, dtype=torch.int64)
        batch = (boxes[None], scores[None], one_group, torch.ones_like(one_group).bool())

        def keep(batch: tuple[Tensor, ...] = batch, topk: int = topk) -> Tensor:
            kept: Tensor = nms_keep(*batch, iou_thresh=NMS_THRESH, max_kept=topk)
            return kept

        def keep_as_peer(
            boxes: Tensor = boxes, scores: Tensor = scores, topk: int = topk
        ) -> Tensor:
            best: Tensor = torchvision.ops.nms(boxes, scores, NMS_THRESH)[:topk]
            return best

        work = f"NMS {count} -> {topk}"
        check_same_boxes(work, keep()[0].nonzero()[:, 0], keep_as_peer().sort().values)
        taken = compare(keep, keep_as_peer, rounds=settings.rounds, log=settings.log)
        promised, aim = (8, 12) if topk == 2000 else (None, None)
        rows.append(Row(work, taken.ratio, promised=promised, aim=aim, detail=str(taken)))
    return rows


def check_same_boxes(work: str, ours: Tensor, peer: Tensor) -> None:
    """Raise DisagreementError if the kept boxes differ; both are sorted indices (N,)."""
    if not torch.equal(ours, peer):
        others = set(ours.tolist()) ^ set(peer.tolist())
        raise DisagreementError(
            f"{work}: expected the peer's {len(peer)} boxes, got {len(ours)}, {len(others)} differ"
        )


def best_proposals(count: int) -> tuple[Tensor, Tensor]:
    """Return boxes (count, 4) and scores (count,) that resemble a trained RPN's on c4.

    There are forty random objects. An anchor that overlaps one moves most of the way towards it;
    the others stay about where they are. The score rises with the overlap.
    """
    generator = torch.Generator().manual_seed(0)
    sizes, ratios = [(32.0, 64.0, 128.0, 256.0, 512.0)], (0.5, 1.0, 2.0)
    anchors = AnchorGenerator(sizes, ratios=ratios, strides=(16,))(
        [(IMAGE[0] // 16, IMAGE[1] // 16)]
    )
    objects = _scattered_boxes(40, generator)
    # per anchor: its best object
    overlap, own = box_iou(objects, anchors).max(dim=0)
    share = 0.7 * (overlap > 0.3)
    noise = 0.1 * torch.randn(len(anchors), 5, generator=generator)
    # part of the way from the anchor to the object, plus noise; no movement below an IoU of 0.3
    deltas = share[:, None] * encode_boxes(objects[own], anchors) + noise[:, :4]
    scores, best = (overlap + noise[:, 4]).sigmoid().topk(count)
    boxes = decode_boxes(deltas[best], anchors[best])
    return clip_boxes(boxes[None], torch.tensor([IMAGE]))[0], scores


def _scattered_boxes(count: int, generator: torch.Generator) -> Tensor:
    """Return (count, 4) boxes anywhere in an image, with log-uniform sides of 24 to 480 pixels."""
    height, width = IMAGE
    centers = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    # 20^u is log-uniform in 1..20
    sides = 24 * 20 ** torch.rand(count, 2, generator=generator)
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
    return clip_boxes(boxes[None], torch.tensor([IMAGE]))[0]
