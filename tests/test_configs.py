"""Every config file loads, is equal after dump and load, has a complete header, and builds."""

from pathlib import Path

import pytest
import torch
from torch import nn

from backbones.classification.config import ClassificationConfig
from backbones.classification.task import build_classifier
from detection.commands.schemas import SCHEMAS as DETECTION
from detection.config import DetectionConfig
from detection.localization.build import build_localizer, build_region_classifier
from detection.localization.config import LocalizationConfig, LocalizationRegionsConfig
from detection.models.build import build_faster_rcnn
from engine.config import dump_config, load_config
from engine.schema import RunConfig

REPOSITORY = Path(__file__).resolve().parent.parent
TOOLS = {
    "detection": "train_det",
    "segmentation": "train_det",
    "localization": "train_det",
    "backbones": "pretrain_backbone",
}
SCHEMAS: dict[str, type[RunConfig]] = {**DETECTION, "classification": ClassificationConfig}
CONFIGS = sorted(
    path for folder in TOOLS for path in (REPOSITORY / "configs" / folder).glob("*.yaml")
)
RECIPES = [path for path in CONFIGS if not path.name.startswith("base_")]


def load(path: Path) -> RunConfig:
    return load_config(path, schemas=SCHEMAS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_config_is_equal_after_dump_and_load(path: Path, tmp_path: Path) -> None:
    config = load(path)
    dumped = tmp_path / "config.yaml"
    dumped.write_text(dump_config(config), encoding="utf-8")
    assert load(dumped) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_config_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_header_gives_command_time_and_score(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    tool = TOOLS[path.parent.name]
    assert f"tools/{tool}.py {path.relative_to(REPOSITORY).as_posix()}" in header
    assert "Time: " in header or "Hours: " in header
    assert "Score: " in header
    if path.parent.name == "backbones" and "_imagenet_" in path.stem:
        assert "Cores: " in header


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_config_builds(path: Path) -> None:
    config = load(path)
    model: nn.Module
    with torch.device("meta"):  # shapes only, no memory
        if isinstance(config, DetectionConfig):
            divisor = config.data.size_divisor
            model = build_faster_rcnn(
                config.model,
                num_classes=80,
                size_divisor=divisor,
                with_masks=config.task == "segmentation",
            )
        elif isinstance(config, LocalizationConfig):
            model = build_localizer(config.model, num_classes=10)
        elif isinstance(config, LocalizationRegionsConfig):
            model = build_region_classifier(config.model, num_classes=10)
        else:
            assert isinstance(config, ClassificationConfig)
            model = build_classifier(config, num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) > 2e5
