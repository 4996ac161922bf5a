"""Optimiser, learning-rate schedule, clipping, and skipped updates."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.errors import UserError
from engine.optim import (
    build_optimizer,
    clip_gradients,
    effective_lr,
    load_optimizer_state,
    lr_factor,
    lr_note,
    optimizer_state,
    step_if_finite,
)
from engine.schema import OptimConfig, ScheduleConfig

KINDS: list[dict[str, Any]] = [
    {"kind": "sgd", "momentum": 0.9},
    {"kind": "sgd", "momentum": 0.0},
    {"kind": "adamw"},
]
IDS = ["sgd", "sgd without momentum", "adamw"]
YES, NO = torch.tensor(True), torch.tensor(False)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images).relu()).square().mean()  # type: ignore[no-any-return]


def make_net(*, channels_last: bool = False) -> Net:
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Net().to(memory_format=layout)


def give_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    net.zero_grad()
    net(torch.randn(2, 3, 8, 8, generator=generator)).backward()


def snapshot(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    values = {name: value.detach().clone() for name, value in net.named_parameters()}
    for name, tensors in optimizer_state(optimizer).items():
        values |= {f"{name}.{key}": value.clone() for key, value in tensors.items()}
    return values


def assert_identical(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("options", KINDS, ids=IDS)
@pytest.mark.parametrize("bad_steps", [{0}, {0, 1}, {2}, {1, 3}], ids=str)
def test_skipped_update_changes_nothing(options: dict[str, Any], bad_steps: set[int]) -> None:
    config = OptimConfig(**options)
    net, plain = make_net(), make_net()
    optimizer = build_optimizer(net, config, batch_size=1)
    reference = build_optimizer(plain, config, batch_size=1)
    for step in range(5):
        give_gradients(net, step)
        if step in bad_steps:
            for parameter in net.parameters():
                parameter.grad = torch.full_like(parameter, math.nan)
            step_if_finite(optimizer, NO)
        else:
            give_gradients(plain, step)
            step_if_finite(optimizer, YES)
            reference.step()
        assert_identical(
            {k: v for k, v in snapshot(net, optimizer).items() if v.isfinite().all()},
            snapshot(net, optimizer),
        )
    assert_identical(snapshot(net, optimizer), snapshot(plain, reference))


@pytest.mark.parametrize("options", KINDS, ids=IDS)
def test_updates_equal_the_unfused_optimizer(options: dict[str, Any]) -> None:
    config = OptimConfig(**options, weight_decay=0.1)
    net, plain = make_net(channels_last=True), make_net()
    optimizer = build_optimizer(net, config, batch_size=1)
    reference: torch.optim.Optimizer
    if config.kind == "adamw":
        reference = torch.optim.AdamW(plain.parameters(), lr=config.lr, weight_decay=0.1)
    else:
        reference = torch.optim.SGD(
            plain.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=0.1
        )
    for step in range(3):
        give_gradients(net, step)
        for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None
            theirs.grad = ours.grad.clone(memory_format=torch.contiguous_format)
        step_if_finite(optimizer, YES)
        reference.step()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("options", KINDS, ids=IDS)
def test_no_wait_for_the_device(options: dict[str, Any]) -> None:
    net = make_net().cuda()
    optimizer = build_optimizer(net, OptimConfig(**options), batch_size=1)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    before = snapshot(net, optimizer)
    yes, no = YES.cuda(), NO.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_if_finite(optimizer, no)
        norm = clip_gradients(net.parameters(), 1.0)
        step_if_finite(optimizer, norm.isfinite() & yes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    after = snapshot(net, optimizer)
    assert_identical({name: after[name] for name in before}, before)


@pytest.mark.parametrize("options", KINDS, ids=IDS)
@pytest.mark.parametrize("before", [False, True], ids=["from contiguous", "from channels_last"])
@pytest.mark.parametrize("after", [False, True], ids=["to contiguous", "to channels_last"])
def test_restored_state_continues_exactly(
    options: dict[str, Any], before: bool, after: bool
) -> None:
    net, resumed = make_net(channels_last=before), make_net(channels_last=after)
    optimizer = build_optimizer(net, OptimConfig(**options), batch_size=1)
    give_gradients(net, 0)
    step_if_finite(optimizer, YES)

    resumed.load_state_dict(net.state_dict())
    restored = build_optimizer(resumed, OptimConfig(**options), batch_size=1)
    load_optimizer_state(restored, optimizer_state(optimizer))
    give_gradients(net, 1)
    for theirs, ours in zip(net.parameters(), resumed.parameters(), strict=True):
        assert theirs.grad is not None
        ours.grad = torch.empty_like(ours).copy_(theirs.grad)
    step_if_finite(optimizer, YES)
    step_if_finite(restored, YES)
    # Bit for bit, except with another memory layout: then other elements are in the remainder of
    # the kernel's vectors.
    tolerance = {"rtol": 0.0, "atol": 0.0} if before == after else {}
    got, expected = snapshot(resumed, restored), snapshot(net, optimizer)
    torch.testing.assert_close(got, expected, **tolerance)  # type: ignore[arg-type]


def test_rates_and_groups_after_a_restore_come_from_the_config() -> None:
    net = make_net()
    old = build_optimizer(net, OptimConfig(lr=0.1), batch_size=1)
    for index, parameter in enumerate(net.parameters()):
        old.state[parameter]["momentum_buffer"].fill_(index)
    new = build_optimizer(net, OptimConfig(lr=0.5, decay_norm_and_bias=False), batch_size=1)
    load_optimizer_state(new, optimizer_state(old))
    assert [group["lr"] for group in new.param_groups] == [0.5] * len(new.param_groups)
    for index, parameter in enumerate(net.parameters()):
        assert new.state[parameter]["momentum_buffer"].flatten()[0] == index


def test_state_of_another_optimizer_or_model_is_rejected() -> None:
    net = make_net()
    sgd = build_optimizer(net, OptimConfig(), batch_size=1)
    adamw = build_optimizer(net, OptimConfig(kind="adamw"), batch_size=1)
    with pytest.raises(UserError, match="expected tensors of AdamW, got momentum_buffer"):
        load_optimizer_state(adamw, optimizer_state(sgd))
    state = optimizer_state(sgd)
    with pytest.raises(UserError, match=r"head.bias: expected shape \(2,\), got \(3,\)"):
        load_optimizer_state(sgd, {**state, "head.bias": {"momentum_buffer": torch.zeros(3)}})
    with pytest.raises(UserError, match="parameter other is trained in the checkpoint only"):
        load_optimizer_state(sgd, {**state, "other": {}})
    state.pop("head.bias")
    with pytest.raises(UserError, match=r"parameter head.bias is trained in the model only"):
        load_optimizer_state(sgd, state)


def test_rate_scales_with_the_batch_size_if_configured() -> None:
    config = OptimConfig(lr=0.02, reference_batch_size=16)
    assert effective_lr(config, 4) == 0.005
    text = lr_note(config, 4)
    assert text is not None
    assert "learning rate 0.005 = optim.lr 0.02 x loop.batch_size 4" in text
    assert lr_note(config, 16) is None
    assert effective_lr(OptimConfig(lr=0.02), 4) == 0.02
    assert lr_note(OptimConfig(lr=0.02), 4) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "constant"}, {0: 1, 99: 1}),
        ({"milestones": (60, 80)}, {0: 1, 59: 1, 60: 0.1, 79: 0.1, 80: 0.01, 99: 0.01}),
        ({"milestones": (0.6, 0.8), "gamma": 0.5}, {59: 1, 60: 0.5, 80: 0.25}),
        ({"milestones": ()}, {0: 1, 99: 1}),
        ({"kind": "cosine"}, {0: 1, 99: 0}),
        ({"kind": "cosine", "final_factor": 0.2, "warmup_steps": 9}, {9: 1, 54: 0.6, 99: 0.2}),
        ({"warmup_steps": 10, "warmup_factor": 0.1}, {0: 0.1, 5: 0.55, 10: 1}),
        ({"warmup_steps": 10, "warmup_factor": 0.0, "milestones": (5,)}, {4: 0.4, 5: 0.05}),
        ({"kind": "cosine", "warmup_steps": 200, "warmup_factor": 0.5}, {0: 0.5, 100: 0.75}),
        (
            {
                "kind": "constant",
                "warmup_kind": "constant",
                "warmup_steps": 9,
                "warmup_factor": 0.1,
            },
            {0: 0.1, 8: 0.1, 9: 1},
        ),
    ],
    ids=[
        "constant",
        "steps",
        "fractions",
        "no milestones",
        "cosine",
        "cosine after warm-up",
        "warm-up",
        "milestone in warm-up",
        "warm-up longer than the run",
        "constant warm-up",
    ],
)
def test_rate_over_steps(options: dict[str, Any], expected: dict[int, float]) -> None:
    config = ScheduleConfig(**options)
    got = {step: lr_factor(step, config, max_steps=100) for step in expected}
    torch.testing.assert_close(got, {step: float(value) for step, value in expected.items()})


@pytest.mark.parametrize(
    ("max_norm", "factor"), [(None, 1.0), (1.0, 0.2), (10.0, 1.0)], ids=["none", "long", "short"]
)
def test_clipping(max_norm: float | None, factor: float) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([-4.0])
    torch.testing.assert_close(clip_gradients(parameters, max_norm), torch.tensor(5.0))
    torch.testing.assert_close(parameters[0].grad, torch.tensor([3.0 * factor]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([-4.0 * factor]))


def test_norm_of_bad_and_of_missing_gradients() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    torch.testing.assert_close(clip_gradients([parameter], 1.0), torch.tensor(0.0))
    parameter.grad = torch.tensor([1.0, math.nan])
    assert not clip_gradients([parameter], 1.0).isfinite()
