"""Deviations of layer responses: compared with numpy, which layers count, no side effects."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbones.resnet import cifar_resnet, resnet18, resnet50
from tools.lab.study.responses import draw_responses, response_deviations


def with_statistics(model: nn.Module, pixels: Tensor) -> nn.Module:
    """Replace the initial running statistics (0 and 1) of every norm by those of some images."""
    model.train()
    with torch.no_grad():
        model(pixels)
    return model


def outputs_of(model: nn.Module, name: str, pixels: Tensor) -> Tensor:
    """The output of one module, recorded by a separate hook."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        kept.append(output.clone())

    handle = model.get_submodule(name).register_forward_hook(keep)
    with torch.no_grad():
        model.eval()(pixels)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("shortcut", ["A", "none"])
def test_deviations_equal_numpys_on_the_outputs_of_the_norms(shortcut: Any) -> None:
    pixels = torch.randn(6, 3, 32, 32)
    model = with_statistics(cifar_resnet(8, shortcut=shortcut), pixels)
    found = response_deviations(model, [pixels[:4], pixels[4:]])
    assert list(found) == ["bn1"] + [
        f"layer{stage}.0.bn{position}" for stage in (1, 2, 3) for position in (1, 2)
    ]
    for name, deviation in found.items():
        expected = np.std(outputs_of(model, name, pixels).double().numpy())
        assert deviation == pytest.approx(float(expected), rel=1e-6)


def test_known_deviation() -> None:
    """A norm with scale 3 and shift 5 has deviation 3 on the batch of its statistics."""
    model = cifar_resnet(8)
    pixels = torch.randn(16, 3, 32, 32)
    nn.init.constant_(model.get_submodule("bn1").weight, 3.0)  # type: ignore[arg-type]
    nn.init.constant_(model.get_submodule("bn1").bias, 5.0)  # type: ignore[arg-type]
    norm = model.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = 1.0  # running statistics = statistics of this batch
    with_statistics(model, pixels)
    assert response_deviations(model, [pixels])["bn1"] == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(resnet18, 16, id="two in each of 8 blocks; the stem is 7x7"),
        pytest.param(resnet50, 16, id="one in each of 16 bottlenecks"),
        pytest.param(lambda: cifar_resnet(20), 19, id="6n+1 on CIFAR"),
    ],
)
def test_number_of_3x3_layers(build: Callable[[], nn.Module], expected: int) -> None:
    assert len(response_deviations(build(), [torch.randn(1, 3, 32, 32)])) == expected


@pytest.mark.parametrize("training", [True, False])
def test_model_is_unchanged_afterwards(training: bool) -> None:
    model = cifar_resnet(8).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    response_deviations(model, [torch.randn(2, 3, 32, 32)])
    assert all(module.training is training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_hooks_are_removed_after_an_error() -> None:
    model = cifar_resnet(8)
    with pytest.raises(RuntimeError):
        response_deviations(model, [torch.randn(2, 4, 32, 32)])
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_figure_of_networks_of_different_depths(tmp_path: Path) -> None:
    deviations = {
        "cifar_plain8": {f"layer {index}": 1.0 / (index + 1) for index in range(7)},
        "cifar_resnet14": {f"layer {index}": 0.3 for index in range(13)},
    }
    draw_responses(deviations, tmp_path / "figure7.png")
    assert (tmp_path / "figure7.png").read_bytes()[:4] == b"\x89PNG"
