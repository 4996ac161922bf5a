"""Networks and batches of the benchmarks: our detector, and the same one of torchvision's parts.

Both have the same random weights and get the same images. B images of one size.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN as PeerRCNN
from torchvision.models.detection import MaskRCNN as PeerMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from detection.config import (
    BackboneConfig,
    DetectionConfig,
    MaskConfig,
    ModelConfig,
    NeckConfig,
    RoIConfig,
    RPNConfig,
)
from detection.data.coco import ClassMap
from detection.data.collate import Sample, collate_detection
from detection.models.build import build_faster_rcnn
from detection.ops.masks import unpack_bits
from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask
from detection.tasks.segmentation import SegmentationTask
from detection.weights import to_torchvision_fasterrcnn
from tools.lab.benchmarks.settings import Settings

NUM_CLASSES, NUM_OBJECTS = 80, 7
"""As in COCO: its number of classes, and about its number of objects per image."""
SIZE, SMALL_SIZE = (800, 1333), (128, 157)
SIZES = (32, 64, 128, 256, 512)
RATIOS = (0.5, 1.0, 2.0)
SIZE_DIVISOR = 32
"""The padded sides of images are multiples of it, for both networks."""


@dataclass(frozen=True)
class Case:
    """Settings of a detector.

    name: the value of --model. kind: of the residual network. topk_train, topk_test: proposals
    before NMS (per level) and after it (per image). num_samples: RoIs per image that the head is
    trained on.
    """

    name: str
    kind: Literal["resnet50", "resnet101"]
    neck: Literal["c4", "fpn"]
    topk_train: tuple[int, int]
    topk_test: tuple[int, int]
    masks: bool = False
    num_samples: int = 512

    def smaller(self) -> "Case":
        """Return a version that runs in a second."""
        return replace(
            self, kind="resnet50", topk_train=(200, 100), topk_test=(100, 50), num_samples=32
        )


R101_C4 = Case("r101_c4", "resnet101", "c4", (12000, 2000), (6000, 1000))
R50_FPN = Case("r50_fpn", "resnet50", "fpn", (2000, 2000), (1000, 1000))
R101_FPN = replace(R50_FPN, name="r101_fpn", kind="resnet101")
MASK_R50_FPN = replace(R50_FPN, name="mask_r50_fpn", masks=True)


def chosen_cases(settings: Settings, *cases: Case) -> list[Case]:
    """Return the case named `settings.model`, or all of them; smaller ones if `settings.small`."""
    chosen = [case for case in cases if settings.model in (None, case.name)]
    return [case.smaller() for case in chosen] if settings.small else chosen


def make_task(case: Case) -> DetectionTask:
    """Return our network with random weights, in training mode."""
    config = DetectionConfig(
        task="segmentation" if case.masks else "detection",
        model=ModelConfig(
            backbone=BackboneConfig(kind=case.kind),
            neck=NeckConfig(kind=case.neck),
            rpn=RPNConfig(
                pre_nms_topk_train=case.topk_train[0],
                post_nms_topk_train=case.topk_train[1],
                pre_nms_topk_test=case.topk_test[0],
                post_nms_topk_test=case.topk_test[1],
            ),
            roi=RoIConfig(aligned=False, num_samples=case.num_samples),
            mask=MaskConfig(aligned=False),
        ),
    )
    torch.manual_seed(0)
    model = build_faster_rcnn(
        config.model, num_classes=NUM_CLASSES, size_divisor=SIZE_DIVISOR, with_masks=case.masks
    )
    # Larger weights spread the scores as in a trained network; otherwise all are nearly equal.
    with torch.no_grad():
        model.rpn_head.objectness.weight *= 10
        model.rpn_head.deltas.weight *= 3
        model.box_predictor.class_logits.weight *= 60
        model.box_predictor.deltas.weight *= 5
    names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    classes = ClassMap(names, tuple(range(1, NUM_CLASSES + 1)))
    kind = SegmentationTask if case.masks else DetectionTask
    return kind(config, model, classes)


def make_peer(case: Case, task: DetectionTask, *, size: tuple[int, int]) -> PeerRCNN:
    """Return the network of torchvision's parts with the weights of `task`, in training mode.

    size: (height, width) of the images.
    """
    body = getattr(resnet, case.kind)(weights=None, norm_layer=FrozenBatchNorm2d)
    for name, parameter in body.named_parameters():  # conv1 and layer1 are frozen, as in ours
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    settings = {
        "rpn_pre_nms_top_n_train": case.topk_train[0],
        "rpn_post_nms_top_n_train": case.topk_train[1],
        "rpn_pre_nms_top_n_test": case.topk_test[0],
        "rpn_post_nms_top_n_test": case.topk_test[1],
        "box_batch_size_per_image": case.num_samples,
        # both sides get images of the final size
        "_skip_resize": True,  # only has an effect in training
        "min_size": size[0],
        "max_size": size[1],
    }
    state = to_torchvision_fasterrcnn(task.model.state_dict())
    if case.neck == "fpn":
        channels = [256, 512, 1024, 2048]
        layers = {f"layer{i + 1}": str(i) for i in range(4)}
        backbone: nn.Module = BackboneWithFPN(body, layers, channels, 256)
        kind = PeerMaskRCNN if case.masks else PeerRCNN
        peer = kind(backbone, NUM_CLASSES + 1, **settings)
    else:
        backbone = nn.Sequential(OrderedDict(body=IntermediateLayerGetter(body, {"layer3": "0"})))
        backbone.out_channels = 1024  # type: ignore[assignment]
        # C4: conv5 is the head of the RoIs, so it moves from the backbone to the box head
        conv5 = OrderedDict(layer4=body.layer4, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
        peer = PeerRCNN(
            backbone,
            rpn_anchor_generator=AnchorGenerator((SIZES,), (RATIOS,)),
            rpn_head=RPNHead(1024, len(SIZES) * len(RATIOS)),
            box_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
            box_head=nn.Sequential(conv5),
            box_predictor=FastRCNNPredictor(2048, NUM_CLASSES + 1),
            **settings,
        )
        before, after = "backbone.body.layer4.", "roi_heads.box_head.layer4."
        state = {name.replace(before, after): tensor for name, tensor in state.items()}
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    # FrozenBatchNorm2d has no counters
    peer.load_state_dict({n: t for n, t in state.items() if n not in counters}, strict=True)
    return peer


def make_batch(count: int, *, size: tuple[int, int], masks: bool = False) -> DetectionBatch:
    """Return `count` smooth random images of `size` with NUM_OBJECTS boxes each, and their masks.

    A mask is the left half of its box. The batch is one of the loader: the same padding and memory
    layout, so that a step that was compiled for it takes the loader's batches as well.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = size
    # few random pixels, enlarged
    coarse = torch.rand(count, 3, 24, 40, generator=generator) * 255
    smooth = nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 255).byte()
    scale = torch.tensor([width, height, width, height])
    # fractions of the sides: centers in the middle 60 %, half sides of 4 % to 20 %
    centre = torch.rand(count, NUM_OBJECTS, 2, generator=generator) * 0.6 + 0.2
    half = torch.rand(count, NUM_OBJECTS, 2, generator=generator) * 0.16 + 0.04
    boxes = torch.cat([centre - half, centre + half], dim=2) * scale
    labels = torch.randint(NUM_CLASSES, (count, NUM_OBJECTS), generator=generator)
    samples = [
        Sample(
            pixels=smooth[number].permute(1, 2, 0).numpy(),
            boxes=boxes[number].numpy(),
            labels=labels[number].numpy(),
            is_crowd=np.zeros(NUM_OBJECTS, np.bool_),
            original_size=size,
            image_id=number,
            seed=number,
            masks=_left_halves(boxes[number], size) if masks else None,
        )
        for number in range(count)
    ]
    return collate_detection(samples, size_divisor=SIZE_DIVISOR)


def _left_halves(boxes: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Return the masks (N, *size) bool of the left halves of some boxes (N, 4)."""
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    # (N, 1, 1) each, which broadcast with rows and columns
    x1, y1, x2, y2 = boxes[..., None, None].unbind(1)
    drawn = (rows >= y1) & (rows < y2) & (columns >= x1) & (columns < (x1 + x2) / 2)
    return drawn.numpy()


def peer_inputs(batch: DetectionBatch) -> list[Tensor]:
    """Return the images as torchvision takes them: (3, H, W) float in 0..1, without padding."""
    height, width = batch.images.sizes[0].tolist()
    pixels = batch.images.pixels[:, :, :height, :width].float() / 255
    return list(pixels.contiguous())  # ours are channels last in memory


def peer_targets(batch: DetectionBatch) -> list[dict[str, Tensor]]:
    """Return the targets as torchvision takes them: its label 0 is the background.

    They are without the rows that pad the ground truth of a batch.
    """
    height, width = batch.images.sizes[0].tolist()
    targets = batch.targets
    dicts = [
        {"boxes": boxes[valid], "labels": labels[valid] + 1}
        for boxes, labels, valid in zip(targets.boxes, targets.labels, targets.valid, strict=True)
    ]
    if targets.masks is not None:
        masks = unpack_bits(targets.masks, width=width)[:, :, :height]
        dicts = [
            {**each, "masks": mask[valid]}
            for each, mask, valid in zip(dicts, masks, targets.valid, strict=True)
        ]
    return dicts


def peer_image_list(peer: PeerRCNN, batch: DetectionBatch) -> ImageList:
    """Return the normalised, padded batch, as the peer's own transform makes it."""
    images, _ = peer.transform(peer_inputs(batch))
    assert np.prod(images.tensors.shape) == batch.images.pixels.numel()
    return images
