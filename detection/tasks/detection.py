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
from detection.data.lvis_json import FederatedLabels, read_federated_labels
from detection.datasets.demo import make_demo
from detection.evaluation.coco_ap import CocoEvaluator
from detection.evaluation.coco_backends import choose_backend
from detection.evaluation.ground_truth import ground_truth_of
from detection.evaluation.lvis_ap import check_lvis, check_lvis_objects, lvis_notes
from detection.inference.pipeline import InferencePipeline
from detection.losses import roi_loss, rpn_loss, weighted
from detection.models.box_head import next_stage_boxes
from detection.models.build import build_detector
from detection.models.faster_rcnn import FasterRCNN
from detection.models.proposals import make_proposals
from detection.models.rpn import RPNOutput
from detection.ops.boxes import box_area
from detection.ops.gradients import scale_gradient
from detection.ops.masks import unpack_bits
from detection.samples import (
    SampledBoxes,
    class_labels,
    sample_anchors,
    sample_rois,
    with_ground_truth,
)
from detection.structures import DetectionBatch, Detections
from detection.tasks.start_checks import check_detector
from detection.visualize import draw_comparison
from detection.weights import load_detector_weights
from engine.errors import UserError
from engine.paths import resolved, status_of


class Regions(NamedTuple):
    """Inputs of a stage of the region head in training.

    features: feature maps of the images, by level. samples: the boxes, foreground first. pooled:
    (B, S, C, h, w), the `region_features` of these boxes.
    """

    features: dict[str, Tensor]
    samples: SampledBoxes
    pooled: Tensor


class DetectionTask(nn.Module):
    """Training, prediction and data of a detector."""

    with_masks: ClassVar[bool] = False

    def __init__(
        self,
        config: DetectionConfig,
        model: FasterRCNN,
        classes: ClassMap,
        *,
        ensemble: Sequence[FasterRCNN] = (),
    ) -> None:
        """Store the network to train; with an `ensemble`, predictions are of all networks."""
        super().__init__()
        # these two fail now if a package is not installed
        choose_backend(config.evaluation.backend, final=True)
        check_lvis(config.evaluation.protocols)
        self.config = config
        self.model = model
        self.others = nn.ModuleList(ensemble)
        self._pipeline = InferencePipeline([model, *ensemble], config)
        self.classes = classes
        self.class_names = classes.names
        roi = config.model.roi
        self._stage_configs = tuple(roi.stage_config(stage) for stage in range(roi.stages))
        self._train_data: CocoDetection | None = None
        self._val_data: CocoDetection | None = None
        self._federated: FederatedLabels | None = None  # of the validation images, for LVIS's AP
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
        torch.manual_seed(config.seed)  # of the random weights
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
                config=config,
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

    def box_losses(self, batch: DetectionBatch) -> tuple[dict[str, Tensor], list[Regions]]:
        """Return the losses, and the inputs of each stage for other heads (masks).

        As in detectron2 and the code of Cascade R-CNN's authors, the gradient from each stage into
        the features is divided by the number of stages. With C4 it is that into conv5's output,
        which is the input of the stages.
        """
        model, images, targets = self.model, batch.images, batch.targets
        config, crowd_ioa_thresh = self.config.model, self.config.model.crowd_ioa_thresh
        features = model.features(images)
        # Without gradients: proposals are constants, and the losses recompute the few anchors that
        # they use.
        with torch.no_grad():
            rpn = model.rpn(features, images)
        anchors = sample_anchors(
            rpn.anchors,
            rpn.anchor_valid,
            batch,
            config=config.rpn,
            crowd_ioa_thresh=crowd_ioa_thresh,
        )
        losses = self._rpn_losses(*model.rpn_at(features, anchors.idxs), anchors)
        boxes, valid = self._candidates(rpn, batch)
        context = model.context_features(features, images.sizes)
        if context is not None:
            context = scale_gradient(context, 1 / model.num_stages)
        inputs: list[Regions] = []
        for stage, loss_config in enumerate(self._stage_configs):
            rois = self._sample(boxes, valid, batch, stage=stage)
            regions = model.region_features(features, rois.boxes)  # (B, S, C, h, w)
            inputs.append(Regions(features, rois, regions))
            class_logits, deltas = model.box_outputs(
                scale_gradient(regions, 1 / model.num_stages),
                stage=stage,
                context=context,
                valid=rois.valid,
            )
            labels = class_labels(rois, targets, num_classes=len(self.class_names))
            losses |= self._roi_losses(class_logits, deltas, rois, labels, stage=stage)
            if stage < model.num_stages - 1:
                # this stage's samples, moved by it, are the next one's candidates: (B, S, 4)
                boxes = next_stage_boxes(
                    class_logits,
                    deltas,
                    rois.boxes,
                    images.sizes,
                    box_weights=loss_config.box_weights,
                )
                valid = rois.valid & (box_area(boxes) > 0)
        return losses, inputs

    @torch.no_grad()
    def first_stage_samples(self, batch: DetectionBatch) -> SampledBoxes:
        """Return the samples of the region head's first stage, which `box_losses` takes too."""
        rpn = self.model.rpn(self.model.features(batch.images), batch.images)
        return self._sample(*self._candidates(rpn, batch), batch, stage=0)

    def _candidates(self, rpn: RPNOutput, batch: DetectionBatch) -> tuple[Tensor, Tensor]:
        """Return proposals and ground truth (B, P + G, 4), and which of them are valid."""
        config = self.config.model.rpn
        proposals = make_proposals(rpn, batch.images.sizes, config=config, training=True)
        return with_ground_truth(proposals, batch.targets)

    def _sample(
        self, boxes: Tensor, valid: Tensor, batch: DetectionBatch, *, stage: int
    ) -> SampledBoxes:
        return sample_rois(
            boxes,
            valid,
            batch,
            config=self._stage_configs[stage],
            crowd_ioa_thresh=self.config.model.crowd_ioa_thresh,
            stage=stage,
        )

    def _rpn_losses(
        self, objectness_logits: Tensor, deltas: Tensor, anchors: SampledBoxes
    ) -> dict[str, Tensor]:
        config = self.config.model.rpn
        losses = rpn_loss(
            objectness_logits,
            deltas,
            anchors.target_deltas,
            anchors.is_fg,
            anchors.valid,
            beta=config.smooth_l1_beta,
        )
        weights = {"rpn_objectness": config.objectness_weight, "rpn_box": config.box_weight}
        return weighted(losses, weights)

    def _roi_losses(
        self,
        class_logits: Tensor,
        deltas: Tensor,
        rois: SampledBoxes,
        labels: Tensor,
        *,
        stage: int,
    ) -> dict[str, Tensor]:
        config = self.config.model.roi
        losses = roi_loss(
            class_logits,
            deltas,
            labels,
            rois.target_deltas,
            rois.valid,
            beta=config.smooth_l1_beta,
        )
        weights = {"roi_class": config.class_weight, "roi_box": config.box_weight}
        suffix = "" if stage == 0 else f"_{stage + 1}"
        return {f"{name}{suffix}": loss for name, loss in weighted(losses, weights).items()}

    def varying_dims(self, batch: DetectionBatch) -> list[tuple[Tensor, int]]:
        """Return the dimensions of images and targets that differ between batches: H, W and G."""
        pixels, targets = batch.images.pixels, batch.targets
        dims = [(pixels, 2), (pixels, 3)]
        dims += [(x, 1) for x in (targets.boxes, targets.labels, targets.valid, targets.is_crowd)]
        if targets.masks is not None:  # (B, G, H, bytes of a row)
            dims += [(targets.masks, dim) for dim in (1, 2, 3)]
        return dims

    def predict(self, batch: DetectionBatch) -> list[Detections]:
        """Return the objects found in each image, in the pixels of its file."""
        return self._pipeline.predict(batch.at_all_scales)

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
                    evaluation=self.config.evaluation,
                )
                found.check_images()
                if "lvis" in self.config.evaluation.protocols:
                    self._federated = read_federated_labels(path)
                    check_lvis_objects(ground_truth_of(found.annotations, with_masks=False))
            finally:
                if _state_of(path) != before:
                    raise UserError(
                        f"{path}: expected an unchanged file, got one that was changed while it "
                        "was read; start again"
                    )
            self._val_data = found
        return self._val_data

    def evaluator(self, *, final: bool = True) -> CocoEvaluator:
        """Return a COCO evaluator of the validation images; see `choose_backend`."""
        data = self.val_data()
        return CocoEvaluator(
            ground_truth_of(
                data.annotations, with_masks=self.with_masks, federated=self._federated
            ),
            self.classes,
            data.image_ids.tolist(),
            allow_missing=self.config.data.on_bad_image == "skip",
            protocols=self.config.evaluation.protocols,
            with_masks=self.with_masks,
            backend=choose_backend(self.config.evaluation.backend, final=final),
            notes=self._lvis_notes(),
        )

    def _lvis_notes(self) -> list[str]:
        roi = self.config.model.roi
        return lvis_notes(self.config.evaluation.protocols, roi.max_detections)

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
        return notes + self._lvis_notes()

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
