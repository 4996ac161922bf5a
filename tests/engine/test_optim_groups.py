"""Parameter groups of the optimiser: weight decay, and the rate of a backbone and of its stages."""

from typing import Any

import pytest
import torch
from torch import nn

from engine.errors import UserError
from engine.optim import (
    build_optimizer,
    layer_decay_note,
    load_optimizer_state,
    optimizer_state,
    set_lr,
)
from engine.schema import OptimConfig
from tests.engine.test_optim import make_net


def test_groups_by_decay_and_rate() -> None:
    net = make_net()
    net.head.bias.requires_grad_(False)  # type: ignore[union-attr]
    config = OptimConfig(
        lr=0.1, weight_decay=0.01, decay_norm_and_bias=False, backbone_lr_factor=0.5
    )
    optimizer = build_optimizer(net, config, batch_size=1)
    got = {
        name: (group["base_lr"], group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert got == {
        "backbone.0.weight": (0.05, 0.05, 0.01),
        "backbone.0.bias": (0.05, 0.05, 0.0),
        "backbone.1.weight": (0.05, 0.05, 0.0),
        "backbone.1.bias": (0.05, 0.05, 0.0),
        "head.weight": (0.1, 0.1, 0.01),
    }
    wrapped = build_optimizer(nn.ModuleDict({"model": net}), config, batch_size=1)
    assert [len(g["params"]) for g in wrapped.param_groups] == [1, 3, 1]
    set_lr(optimizer, 0.1)
    torch.testing.assert_close([g["lr"] for g in optimizer.param_groups], [0.005, 0.005, 0.01])


class Staged(nn.Module):
    """A network of two stages, an fc behind them, and a norm in each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stem_norm = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4))
        self.fc = nn.Linear(4, 2)

    def stages(self) -> list[list[nn.Module]]:
        """Return the two stages."""
        return [[self.stem, self.stem_norm], [self.body]]


def staged_net() -> nn.Module:
    return nn.ModuleDict({"model": nn.ModuleDict({"net": Staged(), "head": nn.Linear(2, 2)})})


def rates_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {
        name.removeprefix("model."): group["base_lr"]
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_rate_falls_from_the_heads_to_the_first_stage(kind: str) -> None:
    options: dict[str, Any] = {
        "kind": kind,
        "lr": 0.1,
        "layer_decay": 0.5,
        "decay_norm_and_bias": False,
    }
    config = OptimConfig(**options)
    optimizer = build_optimizer(staged_net(), config, batch_size=1)
    expected = {
        "net.stem": 0.025,
        "net.stem_norm": 0.025,
        "net.body.0": 0.05,
        "net.body.1": 0.05,
        "net.fc": 0.1,
        "head": 0.1,
    }
    assert rates_of(optimizer) == {
        f"{name}.{kind}": rate for name, rate in expected.items() for kind in ("weight", "bias")
    }
    # one group for each stage, with and without weight decay
    assert len(optimizer.param_groups) == 6
    set_lr(optimizer, 0.1)
    torch.testing.assert_close(
        sorted({group["lr"] for group in optimizer.param_groups}), [0.0025, 0.005, 0.01]
    )
    assert layer_decay_note(optimizer, config) == (
        "optim.layer_decay 0.5: peak learning rates by number of stages to the heads: "
        "0.1 at 0, 0.05 at 1, 0.025 at 2"
    )
    assert layer_decay_note(optimizer, OptimConfig()) is None


def test_layer_decay_of_compiled_and_partly_frozen_networks() -> None:
    net = staged_net()
    net.model.net.stem.requires_grad_(False)  # type: ignore[union-attr]
    net.model.net.stem_norm.requires_grad_(False)  # type: ignore[union-attr]
    config = OptimConfig(lr=0.1, layer_decay=0.5)
    plain = rates_of(build_optimizer(net, config, batch_size=1))
    assert set(plain.values()) == {0.1, 0.05}
    wrapped = torch.compile(net)
    assert isinstance(wrapped, nn.Module)
    compiled = rates_of(build_optimizer(wrapped, config, batch_size=1))
    assert {name.removeprefix("_orig_mod.model."): rate for name, rate in compiled.items()} == plain


def test_state_is_restored_with_another_layer_decay() -> None:
    net = staged_net()
    old = build_optimizer(net, OptimConfig(), batch_size=1)
    for index, parameter in enumerate(net.parameters()):
        old.state[parameter]["momentum_buffer"].fill_(index)
    new = build_optimizer(net, OptimConfig(layer_decay=0.7, decay_norm=False), batch_size=1)
    assert len(new.param_groups) > len(old.param_groups)
    load_optimizer_state(new, optimizer_state(old))
    for index, parameter in enumerate(net.parameters()):
        assert new.state[parameter]["momentum_buffer"].flatten()[0] == index


@pytest.mark.parametrize(
    ("norm", "others", "decaying"),
    [
        (None, True, {"conv", "bias", "norm"}),
        (None, False, {"conv"}),
        (False, True, {"conv", "bias"}),
        (True, False, {"conv", "norm"}),
    ],
)
@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(4), nn.SyncBatchNorm(4), nn.GroupNorm(2, 4), nn.LayerNorm(4)],
    ids=lambda layer: type(layer).__name__,
)
def test_weight_decay_of_norms(
    layer: nn.Module, norm: bool | None, others: bool, decaying: set[str]
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), layer)
    options: dict[str, Any] = {
        "weight_decay": 0.01,
        "decay_norm": norm,
        "decay_norm_and_bias": others,
    }
    optimizer = build_optimizer(net, OptimConfig(**options), batch_size=1)
    kind = {"0.weight": "conv", "0.bias": "bias", "1.weight": "norm", "1.bias": "norm"}
    found = {
        kind[name]: group["weight_decay"]
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert found == {each: 0.01 if each in decaying else 0.0 for each in kind.values()}


def test_mistakes_in_trained_parameters_are_rejected() -> None:
    with pytest.raises(UserError, match=r"expected 1 .no backbone is trained., got 0.5"):
        build_optimizer(nn.Linear(2, 2), OptimConfig(backbone_lr_factor=0.5), batch_size=1)
    with pytest.raises(UserError, match=r"layer_decay: expected null .no backbone is trained., "):
        build_optimizer(nn.Linear(2, 2), OptimConfig(layer_decay=0.5), batch_size=1)
    net = staged_net()
    net.model.net.requires_grad_(False)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"layer_decay: expected null .no backbone is trained., "):
        build_optimizer(net, OptimConfig(layer_decay=1.0), batch_size=1)
    with pytest.raises(ValueError, match=r"expected null with backbone_lr_factor=0.1, got 0.5"):
        OptimConfig(layer_decay=0.5, backbone_lr_factor=0.1)
    with pytest.raises(ValueError, match="greater than 0"):
        OptimConfig(layer_decay=0.0)
    with pytest.raises(UserError, match="expected trainable parameters"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig(), batch_size=1)
