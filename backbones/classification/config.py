"""Config of a classification run.

Lengths are in pixels. Worker processes decode and crop the images. The other random augmentation
(flip and shift of small images, mixup, cutmix, erasing) runs on the device for a whole batch.
"""

from typing import Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from backbones.config import (
    BackboneKind,
    CropConfig,
    DemoConfig,
    EvaluationViewConfig,
    NetworkConfig,
)
from engine.schema import BadInputPolicy, Config, Fraction, PathText, RunConfig

NetworkKind = Literal[
    BackboneKind,
    "cifar_resnet8",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "cifar_resnet1202",
    "cifar_plain8",
    "cifar_plain20",
    "cifar_plain32",
    "cifar_plain44",
    "cifar_plain56",
    "cifar_plain110",
]


DecodePlace = Literal["workers", "device"]

CIFAR_SIDE = 32
"""Height and width of CIFAR's images."""


class DataConfig(Config):
    """Images, and what to do with bad ones."""

    kind: Literal["folder", "cifar10", "cifar100"] = "folder"
    """folder: `train/CLASS/*` and `val/CLASS/*` (ImageNet's layout). cifar: torchvision's sets."""
    root: PathText = ""
    """Folder with `train/` and `val/`, or with `cifar-10-batches-py/`."""
    demo: DemoConfig | None = None
    """folder: when set, the demo's objects are drawn under `demo.root`."""
    download: bool = False
    """cifar: download the archive into `root` if it is missing."""
    holdout: NonNegativeInt = 0
    """cifar: number of training images held out for validation, instead of the test images."""
    on_bad_image: BadInputPolicy = "error"
    """folder: stop at an image that cannot be decoded, or skip and count it."""
    decode: DecodePlace = "workers"
    """folder: where training images are decoded, cropped and augmented. device: a batch at a time,
    on a GPU by nvJPEG (package torchcodec); the workers only read the files. They still decode what
    is not a plain JPEG (turned by EXIF data, CMYK, PNG, ...), and validation images. Damage inside
    a JPEG may not be noticed, or stops the run. All images of two batches are in the device's
    memory at full size."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind != "folder" and self.decode == "device":
            raise ValueError(f"decode: expected workers with kind={self.kind}, got device")
        return self


class AugmentConfig(CropConfig):
    """Augmentation of a training image; CIFAR's small images have no crop by area."""

    pad: NonNegativeInt = 0
    """cifar: zero padding on every side before the random crop."""
    pca_std: NonNegativeFloat = 0.0
    """folder: std of colour noise along the principal axes of ImageNet's colours; paper: 0.1."""
    auto: Literal["none", "trivial", "randaugment"] = "none"
    """folder: trivial (TrivialAugment): one random operation of random strength; randaugment:
    `auto_ops` random operations of strength `auto_magnitude`."""
    auto_ops: PositiveInt = 2
    """randaugment: number of operations applied to an image."""
    auto_magnitude: Fraction = 0.3
    """randaugment: strength, from 0 to 1."""
    erasing_prob: Fraction = 0.0
    """Probability of random erasing: a random rectangle of the image is erased."""
    mixup_alpha: NonNegativeFloat = 0.0
    """Beta distribution parameter of mixup; 0 is off."""
    cutmix_alpha: NonNegativeFloat = 0.0
    """Beta distribution parameter of cutmix; 0 is off. With both on, each image gets one of them,
    with probability 1/2."""


class BackboneConfig(NetworkConfig):
    """Network of a classifier."""

    kind: NetworkKind = "resnet50"
    """Architecture and depth."""
    shortcut: Literal["A", "B", "C"] | None = None
    """The paper's shortcuts: A zero padding where dimensions grow; B projection where dimensions
    grow; C projection everywhere; null: A for CIFAR networks, B for the others. No effect on plain
    networks and VGG-16.

    The paper uses A for CIFAR. torchvision uses B.
    """


class ModelConfig(Config):
    """Classifier."""

    backbone: BackboneConfig = BackboneConfig()
    """Network."""


class LossConfig(Config):
    """Training loss."""

    kind: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Softmax cross-entropy; or binary cross-entropy per class (*ResNet strikes back*)."""
    label_smoothing: Fraction = 0.0
    """Share of the target that is spread evenly over all classes."""


class EvaluationConfig(EvaluationViewConfig):
    """Views of an image at test time; CIFAR's small images are not resized."""

    view: Literal["center", "ten_crop", "multi_scale"] = "center"
    """One centre crop; the mean over ten crops; or fully convolutional over `scales` and flips.

    multi_scale: `crop` is the side of the window that the average pool covers.
    """


class ExportConfig(Config):
    """Export of the backbone for detectors, `backbone.safetensors`."""

    recompute_norms: bool = True
    """Recompute the batch-norm statistics over training images (as in the paper)."""
    num_images: PositiveInt = 10000
    """Largest number of training images for the recomputation."""


class ClassificationConfig(RunConfig):
    """A classification run."""

    task: Literal["classification"] = "classification"
    """Name of the task; commands choose the task by it."""
    data: DataConfig = DataConfig()
    """Images."""
    augment: AugmentConfig = AugmentConfig()
    """Training-time augmentation."""
    model: ModelConfig = ModelConfig()
    """Network."""
    loss: LossConfig = LossConfig()
    """Loss."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Test-time views."""
    export: ExportConfig = ExportConfig()
    """Export of the backbone for detectors."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        largest = CIFAR_SIDE + 2 * self.augment.pad
        if self.data.kind != "folder" and self.augment.crop > largest:
            raise ValueError(
                f"augment.crop: expected at most {largest} ({CIFAR_SIDE} plus the padding), "
                f"got {self.augment.crop}"
            )
        if self.model.backbone.kind == "vgg16" and self.evaluation.view == "multi_scale":
            raise ValueError(
                "evaluation.view: expected center or ten_crop with model.backbone.kind=vgg16 "
                "(multi_scale slides an average pool, which VGG-16 has not), got multi_scale"
            )
        return self


SCHEMAS: dict[str, type[RunConfig]] = {"classification": ClassificationConfig}
"""Config class by the value of `task`."""
