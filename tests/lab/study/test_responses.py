"""Deviations of layer responses: against numpy, which layers count, and nothing left behind."""

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
    """Give every norm the statistics of some images, in place of 0 and 1."""
    model.train()
    with torch.no_grad():
        model(pixels)
    return model


def outputs_of(model: nn.Module, name: str, pixels: Tensor) -> Tensor:
    """What one module gives, kept by a hook of the test's own."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        kept.append(output.clone())

    handle = model.get_submodule(name).register_forward_hook(keep)
    with torch.no_grad():
        model.eval()(pixels)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("shortcut", ["A", "none"])
def test_deviations_are_those_of_the_norms_outputs(shortcut: Any) -> None:
    pixels = torch.randn(6, 3, 32, 32)
    model = with_statistics(cifar_resnet(8, shortcut=shortcut), pixels)
    found = response_deviations(model, [pixels[:4], pixels[4:]])
    assert list(found) == ["bn1"] + [
        f"layer{stage}.0.bn{place}" for stage in (1, 2, 3) for place in (1, 2)
    ]
    for name, deviation in found.items():
        expected = np.std(outputs_of(model, name, pixels).double().numpy())
        assert deviation == pytest.approx(float(expected), rel=1e-6)


def test_a_known_deviation() -> None:
    """A norm of scale 3 and shift 5 on a map that it normalises exactly has deviation 3."""
    model = cifar_resnet(8)
    pixels = torch.randn(16, 3, 32, 32)
    nn.init.constant_(model.get_submodule("bn1").weight, 3.0)  # type: ignore[arg-type]
    nn.init.constant_(model.get_submodule("bn1").bias, 5.0)  # type: ignore[arg-type]
    norm = model.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = 1.0  # the statistics of the one batch
    with_statistics(model, pixels)
    assert response_deviations(model, [pixels])["bn1"] == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(resnet18, 16, id="two in each of eight blocks; the stem is 7x7"),
        pytest.param(resnet50, 16, id="one in each of sixteen bottlenecks"),
        pytest.param(lambda: cifar_resnet(20), 19, id="6n+1 on CIFAR"),
    ],
)
def test_layers_that_count(build: Callable[[], nn.Module], expected: int) -> None:
    assert len(response_deviations(build(), [torch.randn(1, 3, 32, 32)])) == expected


@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(training: bool) -> None:
    model = cifar_resnet(8).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    response_deviations(model, [torch.randn(2, 3, 32, 32)])
    assert all(module.training is training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_hooks_go_when_a_batch_is_wrong() -> None:
    model = cifar_resnet(8)
    with pytest.raises(RuntimeError):
        response_deviations(model, [torch.randn(2, 4, 32, 32)])
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def test_figure_is_drawn_for_nets_of_any_depth(tmp_path: Path) -> None:
    deviations = {
        "cifar_plain8": {f"layer {index}": 1.0 / (index + 1) for index in range(7)},
        "cifar_resnet14": {f"layer {index}": 0.3 for index in range(13)},
    }
    draw_responses(deviations, tmp_path / "figure7.png")
    assert (tmp_path / "figure7.png").read_bytes()[:4] == b"\x89PNG"
