"""Build the localization networks from a config."""

from backbones.resnet import ResNet
from detection.localization.config import LocalizerConfig, RegionClassifierConfig
from detection.localization.localizer import Localizer, LocalizerHead
from detection.localization.region_classifier import RegionClassifier
from detection.models.anchors import AnchorGenerator
from detection.models.box_head import BoxPredictor
from detection.models.build import build_backbone


def build_localizer(config: LocalizerConfig, *, num_classes: int) -> Localizer:
    """Build a localizer with random weights and freeze its `frozen_stages`."""
    backbone = build_backbone(config.backbone)
    assert isinstance(backbone, ResNet), "the config refuses other backbones"
    spec = backbone.feature_specs[config.level]
    anchors = AnchorGenerator(
        [config.anchor_sizes], ratios=config.anchor_ratios, strides=[spec.stride]
    )
    head = LocalizerHead(
        spec.channels,
        num_classes=num_classes if config.per_class else 1,
        num_anchors=anchors.num_anchors,
    )
    return Localizer(
        backbone,
        level=config.level,
        anchor_generator=anchors,
        head=head,
        pixel_mean=config.backbone.pixel_mean,
        pixel_std=config.backbone.pixel_std,
    )


def build_region_classifier(
    config: RegionClassifierConfig, *, num_classes: int
) -> RegionClassifier:
    """Build the second-stage network with random weights and freeze its `frozen_stages`."""
    backbone = build_backbone(config.backbone)
    return RegionClassifier(
        backbone,
        BoxPredictor(backbone.feature_specs["c5"].channels, num_classes=num_classes),
        side=config.side,
        pixel_mean=config.backbone.pixel_mean,
        pixel_std=config.backbone.pixel_std,
    )
