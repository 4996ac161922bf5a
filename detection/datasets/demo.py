"""Synthetic detection data with COCO annotations, to try a detector without a download.

Six kinds of filled shapes, rotated, shaded and partly occluding each other, on textured
backgrounds. Some images contain a crowd region, some no object. The same parameters give the same
bytes.
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from backbones.config import DemoConfig
from engine.errors import UserError
from engine.locks import exclusive_lock
from engine.paths import exists, is_file, is_folder, read_bytes

# With gaps, like COCO's own ids, so that code that confuses ids and labels fails here too.
CATEGORIES = {1: "disc", 3: "square", 4: "triangle", 8: "star", 9: "ring", 15: "cross"}
MARKER = "demo.json"
"""File in the root that lists the parameters and all files of the demo."""
GENERATOR_VERSION = 1
SIDE_RANGE = (192, 320)
"""Width and height of the images, in pixels."""
DIAMETER_RANGE = (20.0, 120.0)
"""Diameter of the circle around an object, in pixels."""
MIN_VISIBLE_SIDE = 10
"""Minimum width and height of an object's visible part, in pixels."""
MIN_VISIBLE_FRACTION = 0.55
"""Minimum fraction of an object's area that later objects leave visible."""
MAX_OBJECTS = 8
EMPTY_PROB = 0.05
CROWD_PROB = 0.1
CROWD_ID = -2
"""Value of `Scene.object_ids` in a crowd region."""


class SplitMaker(Protocol):
    """A function that draws one split."""

    def __call__(self, root: Path, split: str, count: int, *, seed: tuple[int, int]) -> list[str]:
        """Draw `count` images into a new folder; return all file names, relative to `root`."""


def make_demo(config: DemoConfig) -> None:
    """Draw `train/` and `val/` and their `annotations/{train,val}.json` under `config.root`.

    Does nothing if the folder already holds images of the same parameters; see `draw_once`.

    Raises:
        UserError: the folder holds files that are not an earlier demo's, or cannot be written.
    """
    draw_once(config, _make_split, streams=(0, 1))


def draw_once(config: DemoConfig, make_split: SplitMaker, *, streams: tuple[int, int]) -> None:
    """Call `make_split` to fill `config.root`, unless it holds images of the same parameters.

    The images are drawn into a temporary folder beside the root, which is then renamed, so the root
    is never incomplete. If several processes call this at once, one of them draws.

    Args:
        config: the root, and all parameters of the images.
        make_split: called for `train` and `val`.
        streams: random number streams of the two splits; different from those of other demos.

    Raises:
        UserError: the folder holds files that are not an earlier demo's, or cannot be written.
    """
    root = Path(config.root)
    parameters = {"version": GENERATOR_VERSION, **config.model_dump(exclude={"root"})}

    def draw(new: Path) -> list[str]:
        counts = {"train": config.num_train, "val": config.num_val}
        return [
            name
            for (split, count), stream in zip(counts.items(), streams, strict=True)
            for name in make_split(new, split, count, seed=(config.seed, stream))
        ]

    if _is_drawn(root, parameters):
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(root.with_name(f".{root.name}.resdet-lock")):
            if not _is_drawn(root, parameters):  # another process may have drawn meanwhile
                _check_replaceable(root)
                _draw_beside(root, parameters, draw)
    except OSError as error:
        raise UserError(f"{root}: cannot write the demo images: {error.strerror}") from error


def _draw_beside(root: Path, parameters: dict[str, Any], draw: Callable[[Path], list[str]]) -> None:
    """Draw into a temporary folder beside `root`, then replace `root` with it."""
    staging = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        new = staging / "new"
        marker = {"parameters": parameters, "files": draw(new)}
        (new / MARKER).write_text(json.dumps(marker, indent=0))
        if exists(root):
            root.rename(staging / "old")
        new.rename(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _read_marker(root: Path) -> dict[str, Any] | None:
    """Return the content of an earlier demo's marker, None if there is no valid one."""
    if not is_file(root / MARKER):
        return None
    try:
        marker = json.loads(read_bytes(root / MARKER))
    except (ValueError, RecursionError):
        return None
    if not isinstance(marker, dict) or not {"parameters", "files"} <= set(marker):
        return None
    files = marker["files"]
    is_valid = isinstance(files, list) and all(isinstance(name, str) for name in files)
    return marker if is_valid else None


def _is_drawn(root: Path, parameters: dict[str, Any]) -> bool:
    marker = _read_marker(root)
    return marker is not None and marker["parameters"] == parameters


def _check_replaceable(root: Path) -> None:
    """Raise UserError if `root` holds any file that no demo made."""
    if not exists(root):
        return
    if not is_folder(root):
        raise UserError(f"{root}: expected a folder for the demo images, got a file")
    marker = _read_marker(root)
    demo_files = {MARKER, *marker["files"]} if marker else set()
    found = (
        Path(folder, name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root, onerror=_raise)
        for name in names
    )
    foreign = next((name for name in found if name not in demo_files), None)
    if foreign is not None:
        raise UserError(
            f"{root}: expected a new folder or one with only an earlier demo, got one with"
            f" {foreign}; choose another data.demo.root or move the file away"
        )


def _raise(error: OSError) -> None:
    raise error


def _make_split(root: Path, split: str, count: int, *, seed: tuple[int, int]) -> list[str]:
    """Draw `count` images and their JSON; return all file names, relative to `root`."""
    folder = root / split
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        scene = draw_scene(np.random.default_rng([*seed, number]))
        height, width = scene.pixels.shape[:2]
        name = f"{number:06d}.{'png' if number % 8 == 0 else 'jpg'}"
        done, encoded = cv2.imencode(Path(name).suffix, scene.pixels[..., ::-1])
        assert done, name
        (folder / name).write_bytes(encoded.tobytes())
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for row in scene.annotations():
            annotations.append({"id": len(annotations) + 1, "image_id": number, **row})
    categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return [f"annotations/{split}.json", *(f"{split}/{image['file_name']}" for image in images)]


@dataclass
class Scene:
    """One synthetic image with its objects.

    pixels: (H, W, 3) uint8 RGB. object_ids: (H, W) int16, the number of the object that is visible
    at each pixel, -1 for background, CROWD_ID for a crowd region. category_ids, outlines,
    drawn_areas: for each object its category, its polygons ([outer] or [outer, hole], each x y x y
    ...) and its area in pixels without occlusion.
    """

    pixels: np.ndarray
    object_ids: np.ndarray
    category_ids: list[int] = field(default_factory=list)
    outlines: list[list[np.ndarray]] = field(default_factory=list)
    drawn_areas: list[int] = field(default_factory=list)
    crowd_category_id: int | None = None

    def annotations(self) -> list[dict[str, Any]]:
        """Return COCO annotations of the visible parts, without `id` and `image_id`."""
        rows = []
        for number, category_id in enumerate(self.category_ids):
            mask = self.object_ids == number
            # a polygon if the object has no hole and is fully visible, else RLE
            segmentation: Any = _run_lengths(mask)
            if len(self.outlines[number]) == 1 and mask.sum() == self.drawn_areas[number]:
                segmentation = [self.outlines[number][0].tolist()]
            rows.append(_annotation(mask, category_id, segmentation, iscrowd=0))
        if self.crowd_category_id is not None:
            mask = self.object_ids == CROWD_ID
            rows.append(_annotation(mask, self.crowd_category_id, _run_lengths(mask), iscrowd=1))
        return rows


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw one image; `rng` determines all of it."""
    height, width = (int(side) for side in rng.integers(*SIDE_RANGE, endpoint=True, size=2))
    scene = Scene(
        pixels=_background(height, width, rng),
        object_ids=np.full((height, width), -1, dtype=np.int16),
    )
    if rng.random() < EMPTY_PROB:
        return scene
    if rng.random() < CROWD_PROB:
        _add_crowd(scene, rng)
    for _ in range(int(rng.integers(1, MAX_OBJECTS, endpoint=True))):
        _add_object(scene, rng)
    return scene


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return (height, width, 3) uint8: a gradient, stripes or blotches, with noise."""
    first, second = rng.uniform(30, 225, size=(2, 3))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)  # pixels in the direction of `angle`
    kind = rng.integers(3)
    if kind == 0:
        weight = (along - along.min()) / np.ptp(along)  # gradient from 0 to 1
    elif kind == 1:
        weight = 0.5 + 0.35 * np.sin(along * (2 * np.pi / rng.uniform(12, 60)))
    else:
        coarse = rng.random(size=tuple(rng.integers(4, 14, size=2)), dtype=np.float32)
        weight = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)  # blotches
    image = first + (second - first) * weight[..., None]
    image += rng.normal(0, rng.uniform(2, 14), size=(height, width, 1))
    pixels: np.ndarray = image.clip(0, 255).astype(np.uint8)
    return pixels


def _add_crowd(scene: Scene, rng: np.random.Generator) -> None:
    """Draw a cluster of small shapes of one category, annotated as one crowd region."""
    height, width = scene.object_ids.shape
    category_id = int(rng.choice(list(CATEGORIES)))
    center = rng.uniform(0.25, 0.75, size=2) * (width, height)
    for _ in range(int(rng.integers(12, 30))):
        offset = rng.normal(0, 0.08, size=2).clip(-0.2, 0.2) * min(height, width)
        outline = _outline(category_id, center + offset, rng.uniform(6, 10), rng)
        mask = _rasterise(outline, height, width)
        _paint(scene.pixels, mask, _contrasting(scene.pixels, mask, rng), rng)
        scene.object_ids[mask] = CROWD_ID
    scene.crowd_category_id = category_id


def _add_object(scene: Scene, rng: np.random.Generator, *, tries: int = 12) -> None:
    """Draw one object at a place where it does not occlude others too much, if one is found."""
    height, width = scene.object_ids.shape
    category_id = int(rng.choice(list(CATEGORIES)))
    low, high = DIAMETER_RANGE
    for _ in range(tries):
        # log-uniform: as many objects from 20 to 40 pixels as from 60 to 120
        diameter = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        # Up to a fifth of the diameter may lie outside the image.
        center = rng.uniform(0.3 * diameter, np.array([width, height]) - 0.3 * diameter)
        outline = _outline(category_id, center, diameter / 2, rng)
        mask = _rasterise(outline, height, width)
        object_ids = np.where(mask, len(scene.category_ids), scene.object_ids).astype(np.int16)
        overlaps_crowd = bool((scene.object_ids[mask] == CROWD_ID).any())
        if not overlaps_crowd and _all_visible(object_ids, [*scene.drawn_areas, int(mask.sum())]):
            _paint(scene.pixels, mask, _contrasting(scene.pixels, mask, rng), rng)
            scene.object_ids = object_ids
            scene.category_ids.append(category_id)
            scene.outlines.append(outline)
            scene.drawn_areas.append(int(mask.sum()))
            return


def _all_visible(object_ids: np.ndarray, drawn_areas: list[int]) -> bool:
    """Return whether enough of every object is visible for its box to be meaningful."""
    for number, area in enumerate(drawn_areas):
        mask = object_ids == number
        if mask.sum() < MIN_VISIBLE_FRACTION * area:
            return False
        if min(_bounding_box(mask)[2:]) < MIN_VISIBLE_SIDE:
            return False
    return True


def _star(radii: tuple[float, ...], points: int) -> np.ndarray:
    """Return (points, 2) vertices at equal angles, with distances from the center from `radii`."""
    angles = np.arange(points) * (2 * np.pi / points)
    radius = np.resize(radii, points)  # repeats the radii: a star alternates between two
    return np.stack([radius * np.sin(angles), -radius * np.cos(angles)], axis=1)


def _cross() -> np.ndarray:
    """Return (12, 2) vertices of a plus sign within the unit circle."""
    quarter = np.array([[0.3, -0.95], [0.3, -0.3], [0.95, -0.3]])
    quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])


# Polygons within the unit circle: the outer one, then the hole if there is one.
SHAPES = {
    "disc": [_star((1.0,), 40)],
    "square": [_star((1.0,), 4)],
    "triangle": [_star((1.0,), 3)],
    "star": [_star((1.0, 0.42), 10)],
    "ring": [_star((1.0,), 40), _star((0.55,), 40)],
    "cross": [_cross()],
}


def _outline(
    category_id: int, center: np.ndarray, radius: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return the polygons of one shape at a random rotation: flat x y x y ..., image pixels."""
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [
        (part @ rotation * radius + center).round(2).ravel()
        for part in SHAPES[CATEGORIES[category_id]]
    ]


def _rasterise(outline: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return (height, width) bool: inside the first polygon and outside all others (the holes).

    pycocotools rasterises it, so that an annotated polygon and the drawn pixels agree exactly.
    """
    encoded = coco_mask.frPyObjects([part.tolist() for part in outline], height, width)
    with warnings.catch_warnings():  # pycocotools does not know numpy 2's `copy` keyword
        warnings.simplefilter("ignore", DeprecationWarning)
        planes = coco_mask.decode(encoded).astype(bool)  # (height, width, polygons)
    inside: np.ndarray = planes[..., 0] & ~planes[..., 1:].any(axis=-1)
    return inside


def _contrasting(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random RGB colour (3,) that differs from the mean colour under `mask`."""
    colours = rng.uniform(0, 255, size=(16, 3))
    # the first of 16 colours that differs by more than 90 in a channel; argmax finds the first True
    far = np.abs(colours - pixels[mask].mean(axis=0)).max(axis=1) > 90
    chosen: np.ndarray = colours[int(far.argmax())]
    return chosen


def _paint(
    pixels: np.ndarray, mask: np.ndarray, colour: np.ndarray, rng: np.random.Generator
) -> None:
    """Fill a non-empty `mask` of `pixels` in place with a shaded `colour` and a darker rim."""
    rows, columns = np.nonzero(mask)
    slope = rng.uniform(-0.2, 0.2, size=2)
    # brightness changes linearly across the object, relative to its size
    offsets = np.stack([rows - rows.mean(), columns - columns.mean()], axis=1)
    shade = 1 + offsets @ slope / np.sqrt(len(rows))
    rim = ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)[rows, columns]
    shade = np.where(rim, 0.55 * shade, shade)
    grain = rng.normal(0, 5, size=len(rows))
    pixels[rows, columns] = (colour * shade[:, None] + grain[:, None]).clip(0, 255)


def _bounding_box(mask: np.ndarray) -> list[int]:
    """Return COCO's [x, y, width, height] of the True pixels; zeros if there are none."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return [int(x), int(y), int(width), int(height)]


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return COCO's uncompressed RLE: lengths of runs down the columns, first a run of zeros."""
    # order="F" reads down the columns. A run begins where the value changes; the False before the
    # first pixel makes the first run one of zeros, of length 0 if that pixel is set.
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    counts = np.diff(changes, prepend=0, append=mask.size)
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _annotation(
    mask: np.ndarray, category_id: int, segmentation: Any, *, iscrowd: int
) -> dict[str, Any]:
    return {
        "category_id": category_id,
        "bbox": _bounding_box(mask),
        "area": int(mask.sum()),
        "iscrowd": iscrowd,
        "segmentation": segmentation,
    }
