"""Fine-tuning with AdamW, layer-wise learning-rate decay, averaged weights, cosine and bfloat16."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from detection.commands.tasks import build_task
from engine.checkpoint import read_safetensors
from engine.optim import build_optimizer
from engine.schema import RunConfig
from engine.trainer import fit
from tests.backbones.classification import tiny as classification
from tests.detection.localization import tiny_localizer
from tests.detection.tasks.tiny import tiny_config

OPTIM = {
    "kind": "adamw",
    "lr": 1.0,
    "weight_decay": 0.05,
    "layer_decay": 0.5,
    "decay_norm": False,
}


def detector(root: Path, neck: str) -> RunConfig:
    return tiny_config(root, neck=neck, optim=OPTIM)


def vgg(root: Path) -> RunConfig:
    backbone = {"kind": "vgg16", "width_multiplier": 0.05, "norm": "frozen", "frozen_stages": 0}
    return tiny_config(root, neck="c4", model={"backbone": backbone}, optim=OPTIM)


def classifier(root: Path) -> RunConfig:
    return classification.tiny_config(classification.write_folder(root), optim=OPTIM)


def localizer(root: Path) -> RunConfig:
    return tiny_localizer.tiny_config(tiny_localizer.write_tiny_imagenet(root), optim=OPTIM)


RESNET = {
    "backbone.conv1.weight": 2**-5,
    "backbone.bn1.weight": 2**-5,
    "backbone.layer1.0.conv1.weight": 2**-4,
    "backbone.layer4.1.bn2.bias": 2**-1,
}
CASES: dict[str, tuple[Any, dict[str, float]]] = {
    "c4": (lambda root: detector(root, "c4"), {**RESNET, "rpn_head.conv.weight": 1}),
    "fpn": (lambda root: detector(root, "fpn"), {**RESNET, "fpn.inner.0.weight": 1}),
    "vgg": (
        vgg,
        {
            "backbone.conv1_1.weight": 2**-5,
            "backbone.conv5_3.bias": 2**-1,
            "backbone.fc6.weight": 2**-1,
            "box_predictor.deltas.weight": 1,
        },
    ),
    # a network for CIFAR-10 has three layers
    "classifier": (
        classifier,
        {
            "backbone.conv1.weight": 2**-4,
            "backbone.layer3.0.conv1.weight": 2**-1,
            "backbone.fc.bias": 1,
        },
    ),
    "localizer": (localizer, {"backbone.conv1.weight": 2**-5, "head.conv.weight": 1}),
}


@pytest.mark.parametrize(("make", "expected"), CASES.values(), ids=CASES)
def test_rates_of_every_task(tmp_path: Path, make: Any, expected: dict[str, float]) -> None:
    config = make(tmp_path)
    optimizer = build_optimizer(build_task(config).model, config.optim, batch_size=1)
    groups = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    found = {name: groups[name]["base_lr"] for name in expected}
    assert found == expected
    assert all(
        group["base_lr"] == 1 for name, group in groups.items() if not name.startswith("backbone.")
    )
    undecayed = {name for name, group in groups.items() if not group["weight_decay"]}
    assert undecayed == {name for name in groups if ".bn" in name or ".downsample.1." in name}


@pytest.mark.extended
@pytest.mark.parametrize("neck", ["fpn", pytest.param("c4", marks=pytest.mark.slow)])
def test_a_run_with_all_of_it_resumes_to_the_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], neck: str
) -> None:
    loop = {
        "max_steps": 4,
        "batch_size": 2,
        "checkpoint_every": 1,
        "keep_checkpoints": 4,
        "precision": "bf16",
        "ema_decay": 0.9,
        "export": "last",
    }
    config = tiny_config(
        tmp_path / "demo",
        neck=neck,
        optim=OPTIM | {"lr": 1e-3},
        schedule={"kind": "cosine", "warmup_steps": 1},
        loop=loop,
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    fit(build_task(config), config, output=whole, device="cpu")
    assert "0.001 at 0, 0.0005 at 1, 0.00025 at 2" in capsys.readouterr().out.replace("\n", " ")

    # the same run as it was after two steps
    shutil.copytree(whole, resumed)
    later = ("checkpoints/step_00000003.pt", "checkpoints/step_00000004.pt", "checkpoints/best.pt")
    for name in (*later, "model.safetensors", "metrics.json"):
        (resumed / name).unlink(missing_ok=True)
    assert (resumed / "checkpoints" / "step_00000002.pt").exists()
    fit(build_task(config), config, output=resumed, device="cpu", resume=True)
    assert "resumed at step 2" in capsys.readouterr().out
    weights = [read_safetensors(run / "model.safetensors")[0] for run in (whole, resumed)]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    assert all(value.isfinite().all() for value in weights[0].values())
