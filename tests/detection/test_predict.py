import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import detection
from detection.config import DetectionConfig
from detection.data.coco import ClassMap
from detection.inference.trained import load_trained
from detection.models.build import build_faster_rcnn
from detection.predict import Detector, load_detector
from detection.structures import Detections
from detection.tiled import TiledDetector
from engine.checkpoint import save_checkpoint, write_safetensors
from engine.config import parse_config
from engine.errors import UserError
from tests.detection.inference.networks import make_metadata
from tests.reference.images import smooth_image

CLASSES = ClassMap(("cow", "no", "ant"), (2, 7, 90))


def make_config() -> DetectionConfig:
    values = {
        "data": {"val": {"images": "no"}, "eval_short_side": 64, "eval_max_side": 96},
        "model": {
            "backbone": {"kind": "resnet18", "norm": "group"},
            "neck": {"kind": "fpn", "channels": 16},
            "rpn": {"pre_nms_topk_test": 60, "post_nms_topk_test": 20},
            "roi": {"hidden_dim": 16, "score_thresh": 0.0, "max_detections": 15},
        },
    }
    config = parse_config(values, schemas={"detection": DetectionConfig}, source="test")
    assert isinstance(config, DetectionConfig)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with random weights: model.safetensors and a checkpoint with an average."""
    folder = tmp_path_factory.mktemp("run")
    config = make_config()
    torch.manual_seed(0)
    model = build_faster_rcnn(config.model, num_classes=3, size_divisor=32)
    metadata = make_metadata(config, CLASSES)
    write_safetensors(folder / "model.safetensors", model.state_dict(), metadata)
    (folder / "checkpoints").mkdir()
    payload = {"model": model.state_dict(), "average": None, "metadata": metadata}
    save_checkpoint(folder / "checkpoints" / "step_00000001.pt", payload)
    average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    save_checkpoint(folder / "checkpoints" / "best.pt", {**payload, "average": average})
    return folder


@pytest.fixture
def images() -> list[np.ndarray]:
    """Five images of three shapes, two of them of one padded shape."""
    rng = np.random.default_rng(0)
    shapes = [(50, 70), (90, 40), (52, 70), (64, 64), (50, 70)]
    return [rng.integers(256, size=(*shape, 3), dtype=np.uint8) for shape in shapes]


def assert_same(found: list[Detections], expected: list[Detections]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.boxes, other.boxes)
        torch.testing.assert_close(one.scores, other.scores)
        assert one.labels.tolist() == other.labels.tolist()


def one_by_one(detector: Detector, images: list[np.ndarray]) -> list[Detections]:
    return [detector.predict([image])[0] for image in images]


@pytest.mark.parametrize("place", [".", "model.safetensors", "checkpoints/step_00000001.pt"])
def test_detector_loads_from_any_place_of_a_run(
    run: Path, place: str, images: list[np.ndarray]
) -> None:
    detector = detection.load_detector(run / place, device="cpu")
    assert (detector.class_names, detector.category_ids) == (CLASSES.names, CLASSES.category_ids)
    assert detector.config == make_config()
    found = detector.predict(images[:2])
    assert_same(found, load_detector(str(run), device="cpu").predict(images[:2]))
    for image, each in zip(images, found, strict=False):
        assert 0 < len(each) <= 15
        assert (each.boxes >= 0).all()
        assert (each.boxes[:, 2:] <= torch.tensor(image.shape[1::-1])).all()


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_order_is_kept_and_neighbours_change_nothing(
    run: Path, images: list[np.ndarray], batch_size: int
) -> None:
    detector = load_detector(run, device="cpu")
    found = detector.predict(images, batch_size=batch_size)
    assert_same(found, one_by_one(detector, images))


def test_paths_give_what_arrays_give(run: Path, images: list[np.ndarray], tmp_path: Path) -> None:
    detector = load_detector(run, device="cpu")
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), cv2.cvtColor(images[1], cv2.COLOR_RGB2BGR))
    expected = detector.predict([images[1]]) * 2
    assert_same(detector.predict([path, str(path)]), expected)


@pytest.mark.parametrize("threads", [0, 3])
def test_a_stream_with_threads_gives_what_predict_gives(
    run: Path, images: list[np.ndarray], threads: int
) -> None:
    detector = load_detector(run, device="cpu")
    bad: list[str] = []
    several: list[Any] = [images[0], "absent.jpg", *images[1:]]
    found = dict(detector.stream(several, batch_size=2, threads=threads, on_bad=bad.append))
    assert bad == ["absent.jpg: no such file"]
    expected = detector.predict(images, batch_size=2)
    assert_same([found[index] for index in (0, 2, 3, 4, 5)], expected)
    with pytest.raises(UserError, match=r"^absent.jpg: no such file$"):
        list(detector.stream(several, threads=threads))


def test_results_have_the_decoded_images_if_asked(run: Path, images: list[np.ndarray]) -> None:
    detector = load_detector(run, device="cpu")
    for keep in (True, False):
        for batch in detector.batches(images, keep_pixels=keep, threads=1):
            for result in batch:
                assert result.size == images[result.index].shape[:2]
                assert result.pixels is (images[result.index] if keep else None)


def test_threads_predict_at_once(run: Path, images: list[np.ndarray]) -> None:
    """The settings of torch's backends belong to the process: those of one would reach another."""
    settings = (True, False)
    detectors = [
        load_detector(run, device="cpu", overrides=[f"loop.deterministic={value}".lower()])
        for value in settings
    ]
    inside: list[bool] = []

    def watched(work: Callable[..., list[Detections]], setting: bool) -> Callable[..., Any]:
        def predict(batches: Any) -> list[Detections]:
            inside.append(setting)
            found = work(batches)
            assert inside == [setting]
            assert torch.are_deterministic_algorithms_enabled() == setting
            inside.clear()
            return found

        return predict

    for detector, setting in zip(detectors, settings, strict=True):
        detector._predict = watched(detector._predict, setting)

    def predict(number: int) -> Detections:
        return detectors[number % 2].predict([images[number % 5]])[0]

    expected = [predict(number) for number in range(10)]
    with ThreadPoolExecutor(4) as pool:
        for number, one in enumerate(pool.map(predict, range(40))):
            other = expected[number % 10]
            assert torch.equal(one.boxes, other.boxes)
            assert torch.equal(one.scores, other.scores)
            assert torch.equal(one.labels, other.labels)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("url", ["https://a.org/b.jpg", "S3://a/b", "data:image/png;base64,AAAA"])
def test_urls_are_refused_in_one_line(run: Path, url: str, kind: type[str] | type[Path]) -> None:
    with pytest.raises(UserError, match=f"^{url}: expected a path; URLs are not read, download it"):
        load_detector(run, device="cpu").predict([kind(url)])


def test_cuda_graphs_need_a_gpu(run: Path) -> None:
    with pytest.raises(UserError, match="cuda_graphs: expected a GPU, got the device cpu"):
        load_detector(run, device="cpu", cuda_graphs=True)


def test_no_images_give_no_detections(run: Path) -> None:
    assert load_detector(run, device="cpu").predict([]) == []


def test_averaged_weights_are_preferred(run: Path) -> None:
    model = load_trained(run / "checkpoints" / "best.pt").model
    assert model.rpn_head.conv.weight.abs().sum() == 0


def test_overrides_change_the_config(run: Path, images: list[np.ndarray]) -> None:
    detector = load_detector(run, device="cpu", overrides=["model.roi.max_detections=2"])
    assert [len(found) for found in detector.predict(images)] == [2] * 5


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
    ],
    ids=["grey", "alpha", "float", "empty"],
)
def test_array_of_another_kind(run: Path, image: np.ndarray) -> None:
    detector = load_detector(run, device="cpu")
    with pytest.raises(UserError, match=r"image 1: expected \(height, width, 3\) uint8 RGB, got"):
        detector.predict([np.zeros((10, 10, 3), np.uint8), image])


def test_images_come_in_any_form(run: Path, images: list[np.ndarray], tmp_path: Path) -> None:
    detector = load_detector(run, device=torch.device("cpu"))
    expected = detector.predict([images[1]])
    tensor = torch.from_numpy(images[1]).permute(2, 0, 1)
    turned = Image.fromarray(np.rot90(images[1]))
    turned.getexif()[0x0112] = 6
    clear = Image.fromarray(images[1]).convert("RGBA")
    mirrored = images[1][:, ::-1].copy()[:, ::-1]
    forms: list[Any] = [tensor, Image.fromarray(images[1]), turned, clear, mirrored]
    assert_same(detector.predict(forms), expected * len(forms))
    grey = Image.fromarray(images[1][..., 0])
    grey.save(tmp_path / "grey.png")
    assert_same(detector.predict([grey]), detector.predict([tmp_path / "grey.png"]))
    stacked = np.stack([images[0]] * 2)
    assert_same(detector.predict(stacked), detector.predict([images[0]]) * 2)
    assert_same(detector.predict(path for path in [tensor]), expected)


ODD: dict[str, Any] = {
    "None": None,
    "bytes": b"a.jpg",
    "number": 3,
    "objects": np.array([[["a"]]], object),
    "list": [[0, 0, 0]],
    "NUL": "a\0b.jpg",
    "long": "x" * 300,
    "channels last": torch.zeros(9, 9, 3, dtype=torch.uint8),
    "float tensor": torch.zeros(3, 9, 9),
    "empty tensor": torch.zeros(3, 0, 9, dtype=torch.uint8),
    "sparse tensor": torch.zeros(3, 9, 9, dtype=torch.uint8).to_sparse(),
    "tensor without values": torch.zeros(3, 9, 9, dtype=torch.uint8, device="meta"),
    "deep": Image.new("I;16", (9, 9)),
    "float": Image.new("F", (9, 9)),
}


@pytest.mark.parametrize("image", ODD.values(), ids=ODD)
def test_what_is_no_image_is_one_line(run: Path, image: Any) -> None:
    detector = load_detector(run, device="cpu")
    with pytest.raises(UserError) as caught:
        detector.predict([np.zeros((9, 9, 3), np.uint8), image])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "images",
    [
        "a.jpg",
        b"a.jpg",
        Path("a.jpg"),
        np.zeros((9, 9, 3), np.uint8),
        torch.zeros(3, 9, 9, dtype=torch.uint8),
        Image.new("RGB", (9, 9)),
        None,
        3,
    ],
    ids=lambda images: type(images).__name__,
)
def test_one_image_is_no_list(run: Path, images: Any) -> None:
    with pytest.raises(UserError, match="images: expected a list of images, got"):
        load_detector(run, device="cpu").predict(images)


@pytest.mark.parametrize("threads", [-1, 1.5, "2"])
def test_numbers_of_threads_that_are_none(run: Path, threads: Any) -> None:
    with pytest.raises(UserError, match="threads: expected an integer of at least 0"):
        next(load_detector(run, device="cpu").batches([], threads=threads))


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "4", torch.tensor(2.5)])
def test_batch_sizes_that_are_none(run: Path, batch_size: Any) -> None:
    with pytest.raises(UserError, match="batch_size: expected an integer of at least 1"):
        load_detector(run, device="cpu").predict([], batch_size=batch_size)


def full_gpu(batches: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\n...")


@pytest.mark.parametrize("tile", [None, (64, 64)], ids=["whole", "tiles"])
def test_a_full_gpu_is_one_line_and_ends_the_prediction(run: Path, tile: Any) -> None:
    """It is no fault of an image, which would be skipped, and not tried again by --resume."""
    overrides = ["evaluation.scales=[32, 64, 96]", "data.eval_max_side=200"]
    detector = load_detector(run, device="cpu", overrides=overrides)
    detector._predict = full_gpu
    predictor = TiledDetector(detector, tile=tile) if tile else detector
    images = [np.zeros((90, 64, 3), np.uint8)] * 3
    bad: list[str] = []
    with pytest.raises(UserError, match="cpu: out of memory: expected room") as caught:
        list(predictor.stream(images, on_bad=bad.append))
    assert (bad, caught.value.__context__) == ([], None)  # it would hold the memory
    assert "\n" not in str(caught.value)
    if tile is None:
        assert "room for 3 images of 96 x 160 pixels" in str(caught.value)


def test_a_tile_that_cannot_be_resized_is_a_fault_of_its_image(run: Path) -> None:
    overrides = ["data.eval_short_side=1000000", "data.eval_max_side=1000000"]
    tiled = TiledDetector(load_detector(run, device="cpu", overrides=overrides), tile=(64, 64))
    bad: list[str] = []
    assert list(tiled.stream([np.zeros((90, 64, 3), np.uint8)], on_bad=bad.append)) == []
    (line,) = bad
    assert line.startswith("image 0: a tile: image 0: cannot be resized: ")


@pytest.mark.parametrize("size", [(1, 1), (1, 70000), (70000, 1), (2, 3)], ids=str)
def test_images_of_extreme_shapes(run: Path, size: tuple[int, int]) -> None:
    (found,) = load_detector(run, device="cpu").predict([np.zeros((*size, 3), np.uint8)])
    assert len(found) <= 15


def test_a_truncated_image_of_pillow_is_one_line(run: Path, tmp_path: Path) -> None:
    Image.fromarray(smooth_image()).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:-200])
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(UserError, match="whole image"):
        load_detector(run, device="cpu").predict([image])


def test_damaged_files_are_one_line(run: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "checkpoints/best.pt"):
        whole = (run / name).read_bytes()
        half = tmp_path / Path(name).name
        half.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=half.name) as caught:
            load_detector(half)
        assert "\n" not in str(caught.value)


def test_files_that_are_no_detector(run: Path, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "bare.safetensors", {"a": torch.zeros(1)}, {})
    save_checkpoint(tmp_path / "bare.pt", {"a": torch.zeros(1)})
    cases = {
        tmp_path / "bare.safetensors": "expected a detector's config in the metadata, got none",
        tmp_path / "bare.pt": "expected a checkpoint of a run",
        tmp_path: "expected model.safetensors of a finished run",
        tmp_path / "absent": "no such run folder or file",
    }
    for path, message in cases.items():
        with pytest.raises(UserError, match=message):
            load_detector(path)
    write_safetensors(tmp_path / "bare.safetensors", {}, {"config": "{}", "task": "dancing"})
    with pytest.raises(UserError, match=r"class_names .* got none \(task: dancing\)"):
        load_detector(tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="images: expected a list of images, got one str"):
        load_detector(run, device="cpu").predict("a.jpg")
    with pytest.raises(UserError, match="of another network than the model"):
        load_trained(run, ["model.neck.kind=c4"])
    with pytest.raises(
        UserError, match=r"device: expected one of the \d+ GPUs of this machine, got cuda:99"
    ):
        load_detector(run, device="cuda:99")


def test_importing_the_package_is_quick() -> None:
    code = "import sys, detection; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert detection.Detections is Detections
    with pytest.raises(AttributeError, match="module detection has no attribute nothing"):
        _ = detection.nothing
