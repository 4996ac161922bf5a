"""The classification part of a run's config.

Lengths are in pixels. A picture is decoded and cut in the worker; what is random after that (mirror
and shift of small pictures, mixing, erasing) happens for the whole batch on the device.
"""

from typing import Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from backbones.config import DemoConfig, NetworkConfig, ViewConfig, WindowConfig
from engine.schema import BadInputPolicy, Config, Fraction, PathText, RunConfig

NetworkKind = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "plain18",
    "plain34",
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


CIFAR_SIDE = 32
"""Height and width of CIFAR's pictures."""


class DataConfig(Config):
    """Pictures and the policies for bad ones."""

    kind: Literal["folder", "cifar10", "cifar100"] = "folder"
    """folder: `train/CLASS/*` and `val/CLASS/*` (ImageNet's layout). cifar: torchvision's sets."""
    root: PathText = ""
    """Folder that holds `train/` and `val/`, or `cifar-10-batches-py/`."""
    demo: DemoConfig | None = None
    """folder: when set, the demo's objects are drawn under `demo.root`."""
    download: bool = False
    """cifar: fetch the archive into `root` when it is not there."""
    holdout: NonNegativeInt = 0
    """cifar: training pictures set aside and validated on in place of the test pictures."""
    on_bad_image: BadInputPolicy = "error"
    """folder: a picture that cannot be decoded: stop, or skip it and count it."""


class AugmentConfig(WindowConfig):
    """What happens to a training picture; CIFAR's small ones are not cut by area."""

    pad: NonNegativeInt = 0
    """cifar: zeros added on every side before a square is cut out at random."""
    pca_std: NonNegativeFloat = 0.0
    """folder: colour noise along the principal axes of ImageNet's colours; 0.1 in the paper."""
    auto: Literal["none", "trivial", "randaugment"] = "none"
    """folder: one drawn operation of drawn strength, or `auto_ops` of strength `auto_magnitude`."""
    auto_ops: PositiveInt = 2
    """randaugment: operations applied to a picture, one after the other."""
    auto_magnitude: Fraction = 0.3
    """randaugment: strength, 1 the strongest."""
    erasing_prob: Fraction = 0.0
    """Chance that a rectangle of the picture is erased."""
    mixup_alpha: NonNegativeFloat = 0.0
    """Beta parameter of mixup; 0 is off."""
    cutmix_alpha: NonNegativeFloat = 0.0
    """Beta parameter of cutmix; 0 is off. With both on, half of the pictures get each."""


class BackboneConfig(NetworkConfig):
    """The network."""

    kind: NetworkKind = "resnet50"
    """Architecture and depth."""
    shortcut: Literal["A", "B", "C"] | None = None
    """Where dimensions grow: A zeros, B projection; C projection everywhere; none: A or B.

    The paper's nets for CIFAR take A, its others (and torchvision's) B.
    """


class ModelConfig(Config):
    """Classifier."""

    backbone: BackboneConfig = BackboneConfig()
    """Network."""


class LossConfig(Config):
    """What is minimised."""

    kind: Literal["cross_entropy", "bce"] = "cross_entropy"
    """Softmax cross-entropy; or a binary one for each class (*ResNet strikes back*)."""
    label_smoothing: Fraction = 0.0
    """Share of the target spread over all classes."""


class EvaluationConfig(ViewConfig):
    """How a picture is tested; CIFAR's small ones are not resized."""

    view: Literal["center", "ten_crop", "multi_scale"] = "center"
    """One centre crop; the mean over ten crops; fully convolutional over `scales` and mirrors.

    multi_scale: `crop` is the side of the window that the pooling covers.
    """


class ExportConfig(Config):
    """What is written for detectors, `backbone.safetensors`."""

    recompute_norms: bool = True
    """Whether batch-norm statistics are computed anew over training pictures (the paper does)."""
    num_pictures: PositiveInt = 10000
    """Training pictures over which they are computed, at most."""


class ClassificationConfig(RunConfig):
    """A classification run."""

    task: Literal["classification"] = "classification"
    """Tag by which tools choose the task."""
    data: DataConfig = DataConfig()
    """Data."""
    augment: AugmentConfig = AugmentConfig()
    """Training-time augmentation."""
    model: ModelConfig = ModelConfig()
    """Network."""
    loss: LossConfig = LossConfig()
    """Loss."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Testing."""
    export: ExportConfig = ExportConfig()
    """Backbone for detectors."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        largest = CIFAR_SIDE + 2 * self.augment.pad
        if self.data.kind != "folder" and self.augment.crop > largest:
            raise ValueError(
                f"augment.crop: expected at most {largest} ({CIFAR_SIDE} and the padding), "
                f"got {self.augment.crop}"
            )
        return self


SCHEMAS: dict[str, type[RunConfig]] = {"classification": ClassificationConfig}
"""Schema of each `task` that a classifier's config can name."""
