import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as torchvision_functional
from torch import Tensor

from backbones.build import build_network
from backbones.classification.model import Classifier
from backbones.classification.views import View, predict_probabilities, ten_crops
from engine.errors import UserError
from tests.reference import classification as reference

VIEWS: tuple[View, ...] = ("center", "ten_crop", "multi_scale")


def classifier(kind: str, *, mean: float = 100.0) -> Classifier:
    network = build_network(kind, num_classes=7)
    return Classifier(network, pixel_mean=(mean,) * 3, pixel_std=(50.0, 60.0, 70.0)).eval()


@pytest.fixture(scope="module")
def cifar() -> Classifier:
    torch.manual_seed(0)
    return classifier("cifar_resnet8")


def images(height: int, width: int) -> Tensor:
    return torch.randint(256, (2, 3, height, width), dtype=torch.uint8)


def plain(model: Classifier, pixels: Tensor) -> Tensor:
    logits: Tensor = model(model.normalize(pixels))
    return logits.softmax(dim=1)


@torch.inference_mode()
def predict(
    models: list[Classifier], pixels: Tensor, view: View, *scales: int, crop: int = 32
) -> Tensor:
    return predict_probabilities(models, pixels, view=view, crop=crop, scales=scales)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 35), (33, 50)])
def test_ten_crops_equal_the_reference(height: int, width: int) -> None:
    pixels = images(height, width)
    found = ten_crops(pixels, 32)
    assert found.shape == (2, 10, 3, 32, 32)
    for image, crops in zip(pixels.numpy(), found.numpy(), strict=True):
        np.testing.assert_array_equal(crops, np.stack(reference.ten_crops(image, 32)))


def test_ten_crops_equal_torchvisions_in_another_order() -> None:
    pixels = images(40, 50)
    theirs = torch.stack(torchvision_functional.ten_crop(pixels, [32, 32]), dim=1)
    # the flip of a left corner is a right corner of the flipped image
    torch.testing.assert_close(ten_crops(pixels, 32), theirs[:, [4, 0, 1, 2, 3, 9, 6, 5, 8, 7]])


def test_crop_larger_than_the_image_is_an_error() -> None:
    with pytest.raises(UserError, match=r"evaluation.crop: .* \(32 x 40\), got 33"):
        ten_crops(images(32, 40), 33)


@torch.inference_mode()
def test_center_view_is_the_softmax_of_the_logits(cifar: Classifier) -> None:
    pixels = images(32, 32)
    torch.testing.assert_close(predict([cifar], pixels, "center"), plain(cifar, pixels))


@torch.inference_mode()
def test_ten_crop_view_is_the_mean_over_ten_crops(cifar: Classifier) -> None:
    pixels = images(36, 40)
    explicit = [plain(cifar, crops) for crops in ten_crops(pixels, 32).unbind(dim=1)]
    found = predict([cifar], pixels, "ten_crop")
    torch.testing.assert_close(found, sum(explicit, start=torch.zeros(2, 7)) / 10)


@pytest.mark.parametrize(("kind", "side"), [("cifar_resnet8", 32), ("resnet18", 64)])
@torch.inference_mode()
def test_multi_scale_at_the_training_size_equals_the_center_view(kind: str, side: int) -> None:
    model, pixels = classifier(kind), images(side, side)
    x = model.normalize(pixels)
    torch.testing.assert_close(model.dense_logits(x, window=side), model(x))
    found = predict([model], pixels, "multi_scale", side, crop=side)
    flipped = plain(model, pixels.flip(3))
    torch.testing.assert_close(found, (plain(model, pixels) + flipped) / 2)


@torch.inference_mode()
def test_multi_scale_is_the_mean_over_scales_and_flips(cifar: Classifier) -> None:
    pixels = images(48, 60)
    explicit = []
    for size in ([32, 40], [40, 50], [48, 60]):
        resized = torchvision_functional.resize(pixels.float(), size, antialias=True)
        for image in (resized, resized.flip(3)):
            logits = cifar.dense_logits(cifar.normalize(image), window=32)
            explicit.append(logits.softmax(dim=1))
    found = predict([cifar], pixels, "multi_scale", 32, 40, 48)
    torch.testing.assert_close(found, torch.stack(explicit).mean(dim=0))


@pytest.mark.parametrize("view", ["ten_crop", "multi_scale"])
def test_flipped_image_has_the_same_probabilities(cifar: Classifier, view: View) -> None:
    pixels = images(40, 40)
    found = predict([cifar], pixels, view, 32, 40)
    torch.testing.assert_close(found, predict([cifar], pixels.flip(3), view, 32, 40))


@pytest.mark.parametrize("view", VIEWS)
def test_ensemble_is_the_mean_of_its_models(cifar: Classifier, view: View) -> None:
    other, pixels = classifier("cifar_resnet8", mean=30.0), images(40, 40)
    one, two = (predict([model], pixels, view, 32, 40) for model in (cifar, other))
    assert (one - two).abs().max() > 1e-3
    torch.testing.assert_close(predict([cifar, other], pixels, view, 32, 40), (one + two) / 2)
    torch.testing.assert_close(predict([cifar, cifar], pixels, view, 32, 40), one)


@pytest.mark.parametrize("view", VIEWS)
def test_probabilities_are_float32_under_autocast(cifar: Classifier, view: View) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = predict([cifar], images(40, 40), view, 32, 40)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))


def test_scale_smaller_than_the_crop_is_an_error(cifar: Classifier) -> None:
    with pytest.raises(UserError, match=r"evaluation.scales: .*evaluation.crop \(32\), got 24"):
        predict([cifar], images(40, 40), "multi_scale", 24, 40)
