"""Residual networks (ResNet; He et al., 2015, sections 3.3, 4.1, 4.2) and their plain counterparts.

State dict keys are torchvision's: conv1, bn1, layer1.0.conv1, ..., fc. The paper's stage conv{n},
conv2 to conv5, is `layer{n - 1}`; its output is the feature c{n}. B images, H x W pixels, C
channels.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from backbones.blocks import BasicBlock, Bottleneck, PaperBottleneck, Pool, Shortcut
from backbones.features import Backbone, FeatureSpec, scaled_channels
from backbones.norm import NormKind, conv_norm_relu, make_norm
from engine.errors import UserError

WIDTHS, CIFAR_WIDTHS = (64, 128, 256, 512), (16, 32, 64)
STEM_STRIDES = {"imagenet": 4, "cifar": 1}
KINDS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
PLAIN_KINDS = {"plain18": "resnet18", "plain34": "resnet34"}
"""The residual networks that plain ones are without their shortcuts."""


class ResNet(Backbone):
    """ResNet: stem, three or four stages of blocks, global average pool and linear classifier.

    layers: number of blocks in each stage. num_classes: outputs of `fc`; None builds no `fc`.
    widths: channels inside the blocks of each stage. stem: "imagenet" is a 7x7 convolution of
    stride 2 and a max pool, "cifar" one 3x3 convolution. shortcut: the paper's options A (identity
    padded with zeros where dimensions grow), B (projection where dimensions grow), C (projection
    everywhere), or "none" for a plain network.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: Sequence[int],
        *,
        num_classes: int | None = 1000,
        norm: NormKind = "batch",
        norm_eps: float = 1e-5,
        shortcut: Shortcut = "B",
        stem: Literal["imagenet", "cifar"] = "imagenet",
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        super().__init__()

        def new_norm(channels: int) -> nn.Module:
            return make_norm(norm, channels, eps=norm_eps)

        # convolutions have no bias: the norms that follow have a shift of their own
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(3, widths[0], kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = new_norm(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()

        channels = widths[0]
        for index, (count, width) in enumerate(zip(layers, widths, strict=True)):
            blocks = nn.Sequential()
            for position in range(count):
                # the first block of every stage but the first halves the resolution
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(
                    block(channels, width, stride=stride, shortcut=shortcut, norm=new_norm)
                )
                channels = width * block.expansion
            # attributes layer1 to layer4, for torchvision's state dict keys
            setattr(self, f"layer{index + 1}", blocks)
            spec = FeatureSpec(channels, STEM_STRIDES[stem] * 2**index)
            self.feature_specs[f"c{index + 2}"] = spec
        self.fc = nn.Identity() if num_classes is None else nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He initialisation: the paper's reference 13
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if norm in ("frozen", "fixed_statistics") and shortcut != "none":
            self._scale_branches(sum(layers) ** -0.5)

    def features(self, x: Tensor, upto: int = 5) -> dict[str, Tensor]:
        """Map normalised pixels (B, 3, H, W) to features c2..c{upto} (see `feature_specs`).

        Height and width of a feature are the image's divided by its stride, rounded up. A network
        with three stages ends at c4.
        """
        x = self.maxpool(conv_norm_relu(x, self.conv1, self.bn1))
        features = {}
        for number, name in enumerate(self.feature_specs, start=2):
            if number <= upto:
                features[name] = x = self.stage(x, number)
        return features

    def stage(self, x: Tensor, number: int) -> Tensor:
        """Run only the paper's stage conv{number}, 2 to 5, on the output of the previous stage."""
        result: Tensor = getattr(self, f"layer{number - 1}")(x)
        return result

    def pool_then_stage(self, x: Tensor, number: int, *, pool: Pool) -> Tensor:
        """Return stage(pool(x, 1), number) for a linear `pool`, faster: see `conv_norm_of_pooled`.

        A bottleneck begins with a 1x1 convolution, which commutes with a linear pooling. A basic
        block begins with a 3x3 convolution, which does not; it gains no speed.
        """
        # only the first block sees the pooling
        first, *rest = getattr(self, f"layer{number - 1}")
        x = first.forward_pooled(x, pool) if isinstance(first, Bottleneck) else first(pool(x, 1))
        for block in rest:
            x = block(x)
        return x

    def _scale_branches(self, scale: float) -> None:
        """Scale the residual branch of every block, so that random weights keep activations small.

        Norms with fixed statistics do not normalise, so the sums would grow like 2^L over L blocks.
        Loaded weights override the scale.
        """
        for block in self.modules():
            if isinstance(block, BasicBlock | Bottleneck):
                last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
                assert isinstance(last.weight, Tensor)
                nn.init.constant_(last.weight, scale)

    def stages(self) -> list[list[nn.Module]]:
        """Return the modules of conv1, then layer1, layer2, ..."""
        layers = [[getattr(self, f"layer{n}")] for n in range(1, len(self.feature_specs) + 1)]
        return [[self.conv1, self.bn1], *layers]


def build_resnet(
    kind: str,
    *,
    num_classes: int | None = None,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    shortcut: Shortcut = "B",
    width_multiplier: float = 1.0,
) -> ResNet:
    """Build one of KINDS or PLAIN_KINDS. With num_classes None it is a backbone without `fc`.

    stride_in_1x1: bottlenecks stride on the 1x1 convolution, as in the paper. No effect on the
    basic blocks of ResNet-18 and ResNet-34, which have no 1x1. shortcut: no effect on plain
    networks. width_multiplier: see `scaled_channels`.
    """
    if kind in PLAIN_KINDS:
        kind, shortcut = PLAIN_KINDS[kind], "none"
    # Table 1: two 3x3 convolutions a block up to 34 layers, bottlenecks of three from 50 on
    block: type[BasicBlock | Bottleneck] = BasicBlock
    if kind not in ("resnet18", "resnet34"):
        block = PaperBottleneck if stride_in_1x1 else Bottleneck
    return ResNet(
        block,
        KINDS[kind],
        num_classes=num_classes,
        norm=norm,
        norm_eps=norm_eps,
        shortcut=shortcut,
        widths=[scaled_channels(width, width_multiplier) for width in WIDTHS],
    )


def resnet18(
    num_classes: int | None = 1000,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    shortcut: Shortcut = "B",
) -> ResNet:
    """Build ResNet-18, which has basic blocks."""
    return build_resnet(
        "resnet18", num_classes=num_classes, norm=norm, norm_eps=norm_eps, shortcut=shortcut
    )


def resnet34(
    num_classes: int | None = 1000,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    shortcut: Shortcut = "B",
) -> ResNet:
    """Build ResNet-34, which has basic blocks."""
    return build_resnet(
        "resnet34", num_classes=num_classes, norm=norm, norm_eps=norm_eps, shortcut=shortcut
    )


def resnet50(
    num_classes: int | None = 1000,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    shortcut: Shortcut = "B",
) -> ResNet:
    """Build ResNet-50, which has bottleneck blocks."""
    return build_resnet(
        "resnet50",
        num_classes=num_classes,
        norm=norm,
        norm_eps=norm_eps,
        stride_in_1x1=stride_in_1x1,
        shortcut=shortcut,
    )


def resnet101(
    num_classes: int | None = 1000,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    shortcut: Shortcut = "B",
) -> ResNet:
    """Build ResNet-101, which has bottleneck blocks."""
    return build_resnet(
        "resnet101",
        num_classes=num_classes,
        norm=norm,
        norm_eps=norm_eps,
        stride_in_1x1=stride_in_1x1,
        shortcut=shortcut,
    )


def resnet152(
    num_classes: int | None = 1000,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    shortcut: Shortcut = "B",
) -> ResNet:
    """Build ResNet-152, which has bottleneck blocks."""
    return build_resnet(
        "resnet152",
        num_classes=num_classes,
        norm=norm,
        norm_eps=norm_eps,
        stride_in_1x1=stride_in_1x1,
        shortcut=shortcut,
    )


def plain18(num_classes: int | None = 1000) -> ResNet:
    """Build the plain 18-layer network: ResNet-18 without shortcuts."""
    return resnet18(num_classes, shortcut="none")


def plain34(num_classes: int | None = 1000) -> ResNet:
    """Build the plain 34-layer network: ResNet-34 without shortcuts."""
    return resnet34(num_classes, shortcut="none")


def cifar_resnet(
    depth: int,
    num_classes: int | None = 10,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    shortcut: Shortcut = "A",
    width_multiplier: float = 1.0,
) -> ResNet:
    """Build the CIFAR network of section 4.2, with 6n+2 layers, for 32x32 images.

    shortcut: "none" builds the plain network. width_multiplier: see `scaled_channels`.

    Raises:
        UserError: `depth` is not 6n+2 with n >= 1.
    """
    if depth < 8 or depth % 6 != 2:
        raise UserError(f"depth: expected 6n+2 (20, 32, 44, 56, 110, ...), got {depth}")
    return ResNet(
        BasicBlock,
        [depth // 6] * 3,  # n blocks of two layers in each of three stages, stem and classifier
        num_classes=num_classes,
        norm=norm,
        norm_eps=norm_eps,
        shortcut=shortcut,
        stem="cifar",
        widths=[scaled_channels(width, width_multiplier) for width in CIFAR_WIDTHS],
    )
