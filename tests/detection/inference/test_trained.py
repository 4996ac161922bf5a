"""Detectors and ensembles read from files, and what does not fit together."""

from pathlib import Path

import pytest
import torch

from detection.config import DetectionConfig
from detection.data.coco import ClassMap
from detection.inference.trained import TrainedDetector, load_ensemble, load_trained
from detection.predict import Detector, load_detector
from engine.checkpoint import write_safetensors
from engine.errors import UserError
from tests.detection.inference.networks import make_config, make_metadata, make_network
from tests.reference.images import smooth_image

NAMES = ("ant", "bee", "missing")


def write_detector(
    path: Path,
    config: DetectionConfig,
    *,
    names: tuple[str, ...] = NAMES,
    seed: int = 0,
) -> Path:
    network = make_network(config, seed=seed, num_classes=len(names))
    classes = ClassMap(names, tuple(range(1, len(names) + 1)))
    write_safetensors(path, network.state_dict(), make_metadata(config, classes))
    return path


def with_changes(config: DetectionConfig, **data: int) -> DetectionConfig:
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def with_unaligned_masks(config: DetectionConfig) -> DetectionConfig:
    mask = config.model.mask.model_copy(update={"aligned": False})
    return config.model_copy(update={"model": config.model.model_copy(update={"mask": mask})})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("first") / "a.safetensors", make_config("fpn"))


def test_networks_of_different_backbones_predict_together(first: Path, tmp_path: Path) -> None:
    second = write_detector(tmp_path / "b.safetensors", make_config("c4"), seed=1)
    trained = load_ensemble([first, second])
    assert [network.fpn is None for network in trained.networks] == [False, True]
    assert not any(network.training for network in trained.networks)
    assert trained.config == load_trained(first).config
    image = smooth_image(60, 80)
    found = load_detector([first, str(second)], device="cpu").predict([image])
    networks = [make_network(make_config("fpn")), make_network(make_config("c4"), seed=1)]
    classes = ClassMap(NAMES, (1, 2, 3))
    same = TrainedDetector(make_config("fpn"), classes, networks[0], (networks[1],))
    expected = Detector(same, device=torch.device("cpu")).predict([image])
    assert len(found[0]) > 3
    assert torch.equal(found[0].boxes, expected[0].boxes)
    alone = load_detector(first, device="cpu").predict([image])
    assert not torch.equal(found[0].scores[:3], alone[0].scores[:3])


def test_images_of_any_size_are_batched_by_their_shapes_at_all_scales(first: Path) -> None:
    overrides = ["evaluation.scales=[48,64,96]", "evaluation.refine_boxes=true"]
    detector = load_detector(first, device="cpu", overrides=overrides)
    # (60, 80) and (60, 77) are of one shape at all scales; (60, 90) is at the last of another
    images = [smooth_image(*size) for size in [(60, 80), (60, 90), (60, 77), (90, 40), (30, 39)]]
    streamed = list(detector.stream(images, batch_size=3))
    assert [index for index, _ in streamed] == [0, 2, 4, 1, 3]
    assert max(len(found) for _, found in streamed) > 3
    for index, found in streamed:
        (alone,) = detector.predict([images[index]])
        assert found.labels.tolist() == alone.labels.tolist()
        torch.testing.assert_close(found.scores, alone.scores, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found.boxes, alone.boxes, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ant", "wasp", "missing"), "got ant, wasp, missing; class 1 is wasp, not bee"),
        (("bee", "ant", "missing"), "got bee, ant, missing; class 0 is bee, not ant"),
        (("ant", "bee"), "got ant, bee; class 2 is missing, not missing"),
        (("ant", "bee", "missing", "fly"), "missing, fly; class 3 is fly, not missing"),
    ],
    ids=["another", "another order", "fewer", "more"],
)
def test_other_classes_are_named(
    first: Path, tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    other = write_detector(tmp_path / "b.safetensors", make_config("fpn"), names=names)
    with pytest.raises(UserError, match=message) as caught:
        load_ensemble([first, other])
    expected = f"{other}: expected the classes of {first} (ant, bee, missing), got "
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (make_config("fpn", task="segmentation"), "expected task=detection as in {}, got segment"),
        (with_changes(make_config(), size_divisor=64), "expected data.size_divisor=32 as in {}, g"),
    ],
    ids=["task", "size_divisor"],
)
def test_what_does_not_fit_the_first_is_named(
    first: Path, tmp_path: Path, config: DetectionConfig, message: str
) -> None:
    other = write_detector(tmp_path / "b.safetensors", config)
    with pytest.raises(UserError) as caught:
        load_ensemble([first, other])
    assert str(caught.value).startswith(f"{other}: {message.format(first)}")


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_the_alignment_of_masks_matters_to_masks_alone(tmp_path: Path, task: str) -> None:
    config = make_config("fpn", task=task)
    one = write_detector(tmp_path / "a.safetensors", config)
    other = write_detector(tmp_path / "b.safetensors", with_unaligned_masks(config))
    if task == "detection":
        assert len(load_ensemble([one, other]).networks) == 2
        return
    with pytest.raises(UserError, match=r"expected model.mask.aligned=True as in .*, got False"):
        load_ensemble([one, other])


def test_no_path_is_an_error() -> None:
    with pytest.raises(UserError, match="expected the path of a run, got none"):
        load_ensemble([])
    with pytest.raises(UserError, match="expected the path of a run, or several, got int"):
        load_detector(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("neck", ["c4", "fpn"])
@pytest.mark.parametrize("has", [False, True], ids=["without context", "with context"])
def test_an_override_cannot_change_the_network(tmp_path: Path, neck: str, has: bool) -> None:
    config = make_config(neck, roi={"global_context": has})
    path = write_detector(tmp_path / "a.safetensors", config)
    assert load_trained(path).config.model.roi.global_context == has
    with pytest.raises(UserError) as caught:
        load_trained(path, [f"model.roi.global_context={not has}"])
    assert str(caught.value).startswith(f"{path}: ")
    assert "box_predictor.class_logits.weight" in str(caught.value)
    assert "\n" not in str(caught.value)
