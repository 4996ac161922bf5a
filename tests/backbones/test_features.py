import pytest
import torch

from backbones.build import build_network
from engine.task import HasStages


@pytest.mark.parametrize("kind", ["resnet18", "resnet50", "plain18", "cifar_resnet20", "vgg16"])
def test_stages_hold_every_parameter_but_the_classifiers_once(kind: str) -> None:
    with torch.device("meta"):
        model = build_network(kind, num_classes=2)
    assert isinstance(model, HasStages)
    in_stages = [
        parameter for stage in model.stages() for each in stage for parameter in each.parameters()
    ]
    expected = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
    assert len(in_stages) == len(expected)
    assert set(in_stages) == set(expected)
