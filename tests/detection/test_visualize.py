import tracemalloc
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detection.data.masks import TightMask
from detection.ops.rle import encode_window
from detection.structures import Detections, RunLengthMasks
from detection.visualize import (
    READABLE_SIDE,
    Color,
    _decoded,
    _tint,
    class_color,
    draw_comparison,
    draw_detections,
    draw_ground_truth,
    free_paths,
    mosaic,
    write_image,
)
from engine.errors import UserError

NAMES = ("person", "dog", "kite")


def make_detections(*boxes: list[float], scores: list[float] | None = None) -> Detections:
    count = len(boxes)
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores or [0.9] * count, dtype=torch.float32).reshape(count),
        torch.arange(count) % len(NAMES),
    )


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def draw(image: np.ndarray, detections: Detections, score_thresh: float = 0.5) -> np.ndarray:
    return draw_detections(image, detections, class_names=NAMES, score_thresh=score_thresh)


def is_drawn(image: np.ndarray, label: int) -> bool:
    return bool((image == np.array(class_color(label))).all(axis=2).any())


@pytest.mark.parametrize("size", [(600, 800), (480, 480), (1200, 500)])
def test_box_has_the_colour_of_its_class(size: tuple[int, int]) -> None:
    image = grey(*size)
    drawing = draw(image, make_detections([100.0, 120.0, 300.0, 400.0]))
    assert drawing.shape == image.shape
    assert tuple(drawing[400, 200]) == class_color(0)
    assert tuple(drawing[200, 100]) == class_color(0)
    assert tuple(drawing[250, 200]) == (100, 100, 100)  # nothing inside the box
    assert (image == 100).all()  # the given image is untouched


@pytest.mark.parametrize("size", [(1, 1), (5, 64), (64, 64), (300, 200)])
def test_small_image_is_enlarged(size: tuple[int, int]) -> None:
    image = draw(grey(*size), make_detections([0.0, 0.0, size[1], size[0]]))
    factor = image.shape[0] // size[0]
    assert image.shape == (factor * size[0], factor * size[1], 3)
    assert 0.6 * READABLE_SIDE <= max(image.shape) <= 1.5 * READABLE_SIDE
    assert is_drawn(image, 0)


@pytest.mark.parametrize(
    "box",
    [
        [-50.0, -50.0, 900.0, 900.0],
        [590.0, 470.0, 5000.0, 4000.0],
        [0.0, 0.0, 2.0, 2.0],
        [300.0, 200.0, 300.0, 200.0],
        [630.0, 0.0, 640.0, 480.0],
    ],
    ids=["around", "beyond", "corner", "point", "right edge"],
)
def test_any_box_can_be_drawn(box: list[float]) -> None:
    assert is_drawn(draw(grey(480, 640), make_detections(box)), 0)


def test_low_scores_are_left_out() -> None:
    found = make_detections(
        [10.0, 10.0, 90.0, 90.0], [200.0, 200.0, 300.0, 300.0], scores=[0.8, 0.3]
    )
    image = draw(grey(480, 640), found, score_thresh=0.5)
    assert is_drawn(image, 0)
    assert not is_drawn(image, 1)


def test_no_detections_leave_the_image() -> None:
    np.testing.assert_array_equal(draw(grey(480, 640), make_detections()), grey(480, 640))


@pytest.mark.parametrize("name", ["猫", "ไทย", "\udce4\x1b[31m\n", "", "x" * 500], ids=ascii)
def test_any_name_is_drawn(name: str) -> None:
    found = make_detections([10.0, 50.0, 90.0, 90.0])
    images = [
        draw_detections(grey(480, 640), found, class_names=[each], score_thresh=0)
        for each in (name, "?", "??")
    ]
    assert is_drawn(images[0], 0)
    assert all((images[0] != other).any() for other in images[1:])


def test_better_detections_lie_on_worse_ones() -> None:
    box = [100.0, 100.0, 300.0, 300.0]
    for scores, best in (([0.6, 0.9], 1), ([0.9, 0.6], 0)):
        image = draw(grey(480, 640), make_detections(box, box, scores=scores))
        assert is_drawn(image, best)
        assert tuple(image[300, 200]) == class_color(best)


def test_no_text_hides_that_of_another_detection_of_the_same_object() -> None:
    box = [100.0, 100.0, 300.0, 300.0]
    both = draw(grey(480, 640), make_detections(box, box))
    alone = [draw(grey(480, 640), make_detections(box)), draw(grey(480, 640), make_detections())]
    text = (alone[0] != alone[1])[:98, :].any(axis=2)  # above the box
    assert text.any()
    # the best has its text above the box, the other has its own below it
    assert (both[:98] == np.array(class_color(1))).all(axis=2).any()
    assert not (both[:98] == np.array(class_color(0))).all(axis=2).any()
    assert (both[303:] == np.array(class_color(0))).all(axis=2).any()


def test_neighbouring_classes_differ_in_colour() -> None:
    colors = np.array([class_color(label) for label in range(80)], dtype=float)
    assert len(np.unique(colors, axis=0)) == 80
    assert np.linalg.norm(np.diff(colors, axis=0), axis=1).min() > 100


def test_comparison_has_truth_left_and_detections_right() -> None:
    boxes = torch.tensor([[100.0, 100.0, 200.0, 200.0]])
    found = make_detections([300.0, 100.0, 400.0, 200.0])
    image = draw_comparison(
        grey(480, 640), found, boxes, torch.tensor([2]), class_names=NAMES, score_thresh=0.5
    )
    left, right = np.array_split(image, 2, axis=1)
    assert is_drawn(left, 2)
    assert not is_drawn(left, 0)
    assert is_drawn(right, 0)
    assert not is_drawn(right, 2)
    assert image.shape[1] > 2 * 640


def test_truth_without_objects() -> None:
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    np.testing.assert_array_equal(
        draw_ground_truth(grey(480, 500), *none, class_names=NAMES), grey(480, 500)
    )


@pytest.mark.parametrize(
    ("count", "columns", "grid"),
    [(1, None, (1, 1)), (5, None, (2, 3)), (5, 1, (5, 1)), (4, 4, (1, 4))],
    ids=["one", "square", "column", "row"],
)
def test_mosaic_holds_every_image(count: int, columns: int | None, grid: tuple[int, int]) -> None:
    images = [np.full((10 + i, 20 - i, 3), 200 + i, np.uint8) for i in range(count)]
    sheet = mosaic(images, columns=columns)
    height, width = 10 + count - 1, 20
    assert sheet.shape == (grid[0] * (height + 8) - 8, grid[1] * (width + 8) - 8, 3)
    for image in images:
        assert (sheet == image[0, 0]).all(axis=2).sum() == image.shape[0] * image.shape[1]


def test_written_image_reads_back(tmp_path: Path) -> None:
    image = draw(grey(480, 640), make_detections([10.0, 10.0, 90.0, 90.0]))
    write_image(tmp_path / "a.png", image)
    back = cv2.imread(str(tmp_path / "a.png"))
    assert back is not None
    np.testing.assert_array_equal(cv2.cvtColor(back, cv2.COLOR_BGR2RGB), image)
    with pytest.raises(UserError, match="cannot be written"):
        write_image(tmp_path / "a.png" / "b.png", image)


def test_free_paths_spare_sources_and_each_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.jpg").write_bytes(b"a photo")
    sources = [Path("in/a.png"), Path("other/a.jpg"), out / "b.jpg", out / "c.png"]
    names = [path.name for path in free_paths(sources, out)]
    assert names == ["a.jpg", "a_2.jpg", "b_2.jpg", "c.jpg"]


def test_free_paths_replace_drawings_alone(tmp_path: Path) -> None:
    source, target = Path("in/a.png"), tmp_path / "a.jpg"
    target.write_bytes(b"\xff\xd8 a photo of the user")
    assert free_paths([source], tmp_path) == [tmp_path / "a_2.jpg"]
    write_image(target, grey(4, 4))
    assert free_paths([source], tmp_path) == [target]
    assert free_paths([target], tmp_path) == [tmp_path / "a_2.jpg"]  # a drawing that is a source
    back = cv2.imread(str(target))
    assert back is not None
    assert back.shape == (4, 4, 3)
    target.rename(tmp_path / "archived.jpg")
    target.symlink_to("archived.jpg")
    assert free_paths([source], tmp_path) == [tmp_path / "a_2.jpg"]
    target.unlink()
    target.touch()  # of a command that was killed
    assert free_paths([source], tmp_path) == [target]
    target.unlink()
    target.mkdir()
    assert free_paths([source], tmp_path) == [tmp_path / "a_2.jpg"]


def test_masks_tint_their_pixels_alone() -> None:
    mask = np.zeros((480, 640), np.bool_)
    mask[200:300, 100:250] = True
    code = encode_window(mask, top=0, left=0, size=mask.shape)
    boxes = make_detections([90.0, 190.0, 260.0, 310.0])
    found = replace(boxes, masks=RunLengthMasks((480, 640), (code,)))
    image = draw(grey(480, 640), found)
    plain = draw(grey(480, 640), boxes)
    changed = (image != plain).any(axis=2)
    assert changed[210:290, 110:240].all()
    assert not (changed & ~mask).any()
    half = cv2.resize(plain[:240, :320], (320, 240))
    assert draw(half, found).shape == draw(half, boxes).shape  # a mask fits any size of its image


def tint_whole_canvas(canvas: np.ndarray, mask: np.ndarray, color: Color, thickness: int) -> None:
    """The reference of `_tint`: all of the canvas at each step."""
    resized = cv2.resize(
        mask.astype(np.uint8), canvas.shape[1::-1], interpolation=cv2.INTER_NEAREST
    )
    inside = resized > 0
    canvas[inside] = (canvas[inside] * 0.5 + np.array(color) * 0.5).astype(np.uint8)
    kernel = np.ones((3, 3), np.uint8)
    inner = cv2.erode(resized, kernel, iterations=thickness, borderValue=0)
    canvas[inner != resized] = color


@pytest.mark.parametrize("thickness", [2, 5])
@pytest.mark.parametrize(
    "canvas_size",
    [(90, 120), (270, 360), (45, 60), (64, 85), (91, 119), (400, 33), (1, 1), (7, 999)],
    ids=str,
)
@pytest.mark.parametrize("kind", ["empty", "full", "parts and holes"])
def test_masks_are_drawn_as_on_the_whole_canvas(
    kind: str, canvas_size: tuple[int, int], thickness: int
) -> None:
    rng = np.random.default_rng(0)
    size = (90, 120)
    for height, width in ((1, 1), (20, 30), (60, 90), size):
        blobs = cv2.blur(rng.random((height, width)), (9, 9)) < 0.5
        for top in {0, 11, 90 - height} & {*range(91 - height)}:
            for left in {0, 17, 120 - width} & {*range(121 - width)}:
                mask = np.zeros(size, np.bool_)
                mask[top : top + height, left : left + width] = {"empty": False, "full": True}.get(
                    kind, blobs
                )
                code = encode_window(mask, top=0, left=0, size=size)
                expected = rng.integers(256, size=(*canvas_size, 3), dtype=np.uint8)
                ((decoded, _),) = _decoded(RunLengthMasks(size, (code,)), [0])
                for tight in (decoded, TightMask.around(mask)):
                    canvas = expected.copy()
                    _tint(canvas, tight, size, (250, 3, 99), thickness=thickness)
                    whole = expected.copy()
                    tint_whole_canvas(whole, mask, (250, 3, 99), thickness)
                    np.testing.assert_array_equal(canvas, whole)


@pytest.mark.parametrize("count", [1, 3])
def test_each_object_has_a_mask_or_none_has(count: int) -> None:
    boxes, labels = torch.tensor([[1.0, 1.0, 9.0, 9.0]] * 2), torch.zeros(2).long()
    masks = np.ones((count, 60, 80), np.bool_)
    with pytest.raises(ValueError, match="zip"):
        draw_ground_truth(grey(60, 80), boxes, labels, class_names=NAMES, masks=masks)


def test_a_mask_takes_memory_by_its_own_size() -> None:
    size = (4000, 4000)
    code = encode_window(np.ones((50, 50), np.bool_), top=9, left=3000, size=size)
    canvas = grey(*size)
    tracemalloc.start()
    for mask, of_image in _decoded(RunLengthMasks(size, (code,)), [0]):
        _tint(canvas, mask, of_image, (250, 3, 99), thickness=8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (canvas[10, 3001] == (250, 3, 99)).all()
    assert peak < 1_000_000


def disc(center: int, size: tuple[int, int] = (480, 640)) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    inside: np.ndarray = (rows - 240) ** 2 + (columns - center) ** 2 < 60**2
    return inside


def test_instances_of_one_class_have_a_colour_and_an_outline_each() -> None:
    masks = [disc(200), disc(300)]  # they touch
    boxes = make_detections([140.0, 180.0, 260.0, 300.0], [240.0, 180.0, 360.0, 300.0])
    codes = tuple(encode_window(mask, top=0, left=0, size=mask.shape) for mask in masks)
    found = Detections(
        boxes.boxes,
        torch.tensor([0.9, 0.8]),
        torch.zeros(2).long(),
        RunLengthMasks((480, 640), codes),
    )
    truth = draw_ground_truth(
        grey(480, 640), boxes.boxes, found.labels, class_names=NAMES, masks=np.stack(masks)
    )
    for image in (draw(grey(480, 640), found), truth):
        inner = [tuple(image[240, column]) for column in (180, 320)]
        assert len(set(inner)) == 2
        edges = {tuple(image[239, column]) for column in (141, 358)}
        assert edges == {class_color(0), class_color(1)}


@pytest.mark.parametrize("size", [(16, 70000), (70000, 16)])
def test_a_drawing_that_no_jpeg_holds_is_one_line(tmp_path: Path, size: tuple[int, int]) -> None:
    image = draw(grey(*size), make_detections([1.0, 1.0, 9.0, 9.0]))
    with pytest.raises(UserError, match=r"a\.jpg: expected sides of at most 65535 pixels, got"):
        write_image(tmp_path / "a.jpg", image)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_long_or_of_another_encoding_are_drawn_to(tmp_path: Path) -> None:
    sources = [Path("a") / f"{'x' * 250}.png", Path("b") / f"{'x' * 250}.png", Path("\udce4.png")]
    paths = free_paths(sources, tmp_path)
    assert len(set(paths)) == 3
    for path in paths:
        write_image(path, grey(4, 4))
    assert free_paths([tmp_path / "y" / "\0.png"], tmp_path / "z")


def test_thousands_of_one_name_are_quick() -> None:
    sources = [Path(str(number)) / "0.jpg" for number in range(2000)]
    paths = free_paths(sources, Path("out"))
    assert [path.name for path in (paths[0], paths[1], paths[-1])] == [
        "0.jpg",
        "0_2.jpg",
        "0_2000.jpg",
    ]
