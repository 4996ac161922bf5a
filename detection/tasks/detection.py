"""Detection task: training, prediction and data of Faster R-CNN.

The losses follow the paper's figure: features, proposals, regions, classes and boxes.

B images, G ground-truth boxes, A anchors, P proposals, S samples per image, K classes.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from backbones.weights import WeightsReport, load_configured_weights
from detection.config import DetectionConfig
from detection.data.coco import ClassMap
from detection.data.coco_json import check_any
from detection.data.dataset import CocoDetection
from detection.datasets.demo import make_demo
from detection.evaluation.coco_ap import CocoEvaluator
from detection.evaluation.coco_engines import choose_engine
from detection.evaluation.ground_truth import ground_truth_of
from detection.losses import roi_loss, rpn_loss
from detection.models.box_head import refine_boxes
from detection.models.build import build_detector
from detection.models.faster_rcnn import FasterRCNN
from detection.models.proposals import make_proposals
from detection.models.rpn import RPNOutput
from detection.ops.masks import unpack_bits
from detection.samples import Samples, SampleSettings, draw_samples, with_ground_truth
from detection.structures import DetectionBatch, Detections, Proposals
from detection.tasks.start_checks import check_detector
from detection.visualize import draw_comparison
from detection.weights import load_detector_weights
from engine.errors import UserError
from engine.paths import resolved, status_of

# Random streams of each image's seed: anchors and regions must not use the same random numbers.
_ANCHOR_STREAM, _ROI_STREAM = 0, 1


class Regions(NamedTuple):
    """Inputs of the region head's last stage in training.

    features: feature maps of the images, by level. samples: the boxes, foreground first. pooled:
    (B, S, C, h, w), the `region_features` of these boxes.
    """

    features: dict[str, Tensor]
    samples: Samples
    pooled: Tensor


class DetectionTask(nn.Module):
    """Training, prediction and data of a detector."""

    with_masks: ClassVar[bool] = False

    def __init__(self, config: DetectionConfig, model: FasterRCNN, classes: ClassMap) -> None:
        super().__init__()
        choose_engine(config.evaluation.engine, final=True)  # fails now if it is not installed
        self.config = config
        self.model = model
        self.classes = classes
        self.class_names = classes.names
        self._train_data: CocoDetection | None = None
        self._val_data: CocoDetection | None = None
        self._loaded: list[WeightsReport] = []

    @classmethod
    def for_training(cls, config: DetectionConfig) -> Self:
        """Read the annotations, build the network for their classes and load pretrained weights.

        Raises:
            UserError: bad annotations or weights, or a config that cannot be trained.
        """
        check_detector(config)
        make_demo_if_asked(config)
        data = CocoDetection(
            config.data.train,
            config=config.data,
            training=True,
            with_masks=cls.with_masks,
            batch_size=config.loop.batch_size,
        )
        data.check_images()
        torch.manual_seed(config.seed)
        model = build_detector(config, len(data.classes))
        task = cls(config, model, data.classes)
        task._train_data = data
        found = task.val_data().annotations  # read now, to report mistakes before training
        check_any(len(found.boxes), "to score against", found.path)
        task._loaded += load_configured_weights(task.model.backbone, config.model.backbone)
        if config.model.weights is not None:
            report = load_detector_weights(
                task.model,
                config.model.weights,
                class_names=data.classes.names,
                category_ids=data.classes.category_ids,
            )
            task._loaded.append(report)
        return task

    def losses(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """Return `rpn_objectness`, `rpn_box`, `roi_class` and `roi_box` of a batch.

        The losses of the region head's second and third stage are named `roi_class_2` and so on.
        """
        return self.box_losses(batch)[0]

    def box_losses(self, batch: DetectionBatch) -> tuple[dict[str, Tensor], Regions]:
        """Return the losses, and the last stage's samples for other heads (masks)."""
        model, sizes = self.model, batch.images.sizes
        features = model.features(batch.images)
        # Without gradients: proposals are constants, and the losses recompute the few anchors that
        # they use.
        with torch.no_grad():
            rpn = model.rpn(features, batch.images)
        losses = self._rpn_losses(features, self.sample_anchors(rpn, batch))
        proposals = make_proposals(rpn, sizes, config=self.config.model.rpn, training=True)
        rois = self.sample_rois(proposals, batch)
        regions = model.region_features(features, rois.boxes)
        class_logits, deltas = model.box_outputs(regions)
        losses |= self._roi_losses(class_logits, deltas, rois, batch)
        for stage in range(1, model.num_stages):
            weights = self.config.model.roi.box_weights_of(stage - 1)
            boxes = refine_boxes(class_logits, deltas, rois.boxes, sizes, box_weights=weights)
            # the moved boxes of this stage are the samples of the next: (B, S, 4) throughout
            rois = self._match_again(boxes, rois.valid, batch, stage=stage)
            regions = model.region_features(features, rois.boxes)
            class_logits, deltas = model.box_outputs(regions, stage=stage)
            later = self._roi_losses(class_logits, deltas, rois, batch)
            losses |= {f"{name}_{stage + 1}": value for name, value in later.items()}
        return losses, Regions(features, rois, regions)

    def _rpn_losses(self, features: dict[str, Tensor], anchors: Samples) -> dict[str, Tensor]:
        config = self.config.model.rpn
        losses = rpn_loss(
            *self.model.rpn_at(features, anchors.idxs),
            anchors.target_deltas,
            anchors.is_fg,
            anchors.valid,
            beta=config.smooth_l1_beta,
        )
        weights = {"rpn_objectness": config.objectness_weight, "rpn_box": config.box_weight}
        return {name: value * weights[name] for name, value in losses.items()}

    def _roi_losses(
        self, class_logits: Tensor, deltas: Tensor, rois: Samples, batch: DetectionBatch
    ) -> dict[str, Tensor]:
        config = self.config.model.roi
        # (B, S) labels: that of the matched ground truth if foreground, otherwise K
        background = torch.full_like(rois.gt_idxs, len(self.class_names))
        gt_labels = batch.targets.labels.gather(1, rois.gt_idxs)
        losses = roi_loss(
            class_logits,
            deltas,
            torch.where(rois.is_fg, gt_labels, background),
            rois.target_deltas,
            rois.valid,
            beta=config.smooth_l1_beta,
        )
        weights = {"roi_class": config.class_weight, "roi_box": config.box_weight}
        return {name: value * weights[name] for name, value in losses.items()}

    def predict(self, batch: DetectionBatch) -> list[Detections]:
        """Return the objects found in each image, in the pixels of its file."""
        return self.model.predict(batch.images)

    def sample_anchors(self, rpn: RPNOutput, batch: DetectionBatch) -> Samples:
        """Sample the anchors for the losses of the region proposal network."""
        config = self.config.model.rpn
        settings = SampleSettings(
            fg_thresh=config.fg_iou_thresh,
            bg_thresh=config.bg_iou_thresh,
            allow_low_quality=True,
            crowd_ioa_thresh=self.config.model.crowd_ioa_thresh,
            num_samples=config.num_samples,
            fg_fraction=config.fg_fraction,
        )
        return draw_samples(
            batch.targets,
            rpn.anchors,
            rpn.anchor_valid,
            batch.images.seeds,
            settings=settings,
            stream=_ANCHOR_STREAM,
        )

    def sample_rois(self, proposals: Proposals, batch: DetectionBatch) -> Samples:
        """Sample the regions for the losses of the region head from proposals and ground truth."""
        targets, fg_fraction = batch.targets, self.config.model.roi.fg_fraction
        return draw_samples(
            targets,
            *with_ground_truth(proposals, targets),
            batch.images.seeds,
            settings=self._roi_settings(stage=0, fg_fraction=fg_fraction),
            stream=_ROI_STREAM,
        )

    def _match_again(
        self, boxes: Tensor, exists: Tensor, batch: DetectionBatch, *, stage: int
    ) -> Samples:
        """Return all boxes moved by the stage before, matched again, as samples of this stage."""
        # There are as many samples as boxes and no limit on foreground, so only boxes in crowd
        # regions are dropped.
        settings = self._roi_settings(stage=stage, fg_fraction=1.0)
        seeds = batch.images.seeds
        return draw_samples(
            batch.targets, boxes, exists, seeds, settings=settings, stream=_ROI_STREAM + stage
        )

    def _roi_settings(self, *, stage: int, fg_fraction: float) -> SampleSettings:
        config = self.config.model.roi
        return SampleSettings(
            fg_thresh=config.fg_thresh_of(stage),
            bg_thresh=config.fg_thresh_of(stage),
            allow_low_quality=False,
            crowd_ioa_thresh=self.config.model.crowd_ioa_thresh,
            num_samples=config.num_samples,
            fg_fraction=fg_fraction,
            box_weights=config.box_weights_of(stage),
        )

    def train_data(self) -> CocoDetection:
        """Return the training images."""
        if self._train_data is None:
            data = self.config.data
            self._train_data = CocoDetection(
                data.train,
                config=data,
                training=True,
                classes=self.classes,
                with_masks=self.with_masks,
                batch_size=self.config.loop.batch_size,
            )
        return self._train_data

    def val_data(self) -> CocoDetection:
        """Return the validation images; their classes must be the training classes.

        The JSON file is read only once, so that all evaluations use the same annotations even if
        the file changes later.
        """
        if self._val_data is None:
            make_demo_if_asked(self.config)
            path = self.config.data.val.annotations
            before = _state_of(path)
            try:
                found = CocoDetection(
                    self.config.data.val,
                    config=self.config.data,
                    training=False,
                    classes=self.classes,
                    with_masks=self.with_masks,
                )
                found.check_images()
            finally:
                if _state_of(path) != before:
                    raise UserError(
                        f"{path}: expected an unchanged file, got one that was changed while it "
                        "was read; start again"
                    )
            self._val_data = found
        return self._val_data

    def evaluator(self, *, final: bool = True) -> CocoEvaluator:
        """Return a COCO evaluator of the validation images; see `choose_engine`."""
        data = self.val_data()
        return CocoEvaluator(
            ground_truth_of(data.annotations, with_masks=self.with_masks),
            self.classes,
            data.image_ids.tolist(),
            allow_missing=self.config.data.on_bad_image == "skip",
            protocols=self.config.evaluation.protocols,
            with_masks=self.with_masks,
            engine=choose_engine(self.config.evaluation.engine, final=final),
        )

    def metadata(self) -> dict[str, str]:
        """Return class names, category ids, config and the origin of pretrained weights."""
        origin = [
            {"path": report.path, "sha256": report.sha256, "source": report.source}
            for report in self._loaded
        ]
        return {
            "task": self.config.task,
            "class_names": json.dumps(list(self.classes.names)),
            "category_ids": json.dumps(list(self.classes.category_ids)),
            "config": self.config.model_dump_json(),
            "pretrained": json.dumps(origin),
        }

    def notes(self) -> list[str]:
        """Return lines on the loaded weights, and on what the data filters removed or filled in."""
        notes = [line for report in self._loaded for line in report.lines()]
        for name, data in (("training", self.train_data()), ("validation", self.val_data())):
            notes += data.notes(name)
        return notes

    def draw(self, batch: DetectionBatch, predictions: Sequence[Detections]) -> list[np.ndarray]:
        """Draw ground truth and predictions side by side, at the network's input size."""
        images, targets = batch.images, batch.targets
        drawn = []
        for row, found in enumerate(predictions):
            height, width = images.sizes[row].tolist()
            # detections are in original pixels: (4,) factors of x1, y1, x2, y2 to network input
            scale = (images.sizes[row].flip(0) / images.original_sizes[row].flip(0)).repeat(2)
            gt_valid = targets.valid[row]
            gt_masks = None
            if targets.masks is not None:
                # (G, H, W) of the padded batch, cut to the image
                bits = unpack_bits(targets.masks[row][gt_valid], width=images.pixels.shape[3])
                gt_masks = bits[:, :height, :width].bool().cpu().numpy()
            drawn.append(
                draw_comparison(
                    images.pixels[row, :, :height, :width].permute(1, 2, 0).cpu().numpy(),
                    replace(found, boxes=found.boxes * scale.cpu()),
                    gt_boxes=targets.boxes[row][gt_valid].cpu(),
                    gt_labels=targets.labels[row][gt_valid].cpu(),
                    gt_masks=gt_masks,
                    class_names=self.class_names,
                    score_thresh=self.config.evaluation.draw_score_thresh,
                )
            )
        return drawn


def _state_of(path: str) -> tuple[int, ...] | None:
    """Return inode, size and time of a file, which change with its content; None if missing."""
    status = status_of(path)
    return None if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)


def make_demo_if_asked(config: DetectionConfig) -> None:
    """Generate the demo images if the config has a demo and a split lies in its folder."""
    demo = config.data.demo
    if demo is None:
        return
    root = resolved(demo.root)
    splits = (config.data.train, config.data.val)
    if any(root in resolved(split.annotations).parents for split in splits):
        make_demo(demo)
