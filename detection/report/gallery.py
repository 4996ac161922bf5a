"""Galleries of a report: crops of images with annotated and detected boxes, as small as needed.

Boxes are xyxy in pixels of the image. The boxes are SVG over a JPEG, so that they stay sharp, and
two views of a crop share its bytes. Without images the boxes are drawn alone.
"""

import base64
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import cv2
import numpy as np

from backbones.images import read_image
from backbones.text_places import place_texts
from detection.data.image_files import image_path
from detection.report.markup import escaped
from detection.report.page import filtered
from engine.errors import UserError

IMAGE_BYTES = 9_000_000
"""Bytes of all images of a page, in base64: the page stays under `MAX_PAGE_BYTES`."""
QUALITY = 80  # of the JPEGs
CROP_SIDE = 320
WIDE_SIDE = 460
"""Longer sides of a crop and of a whole image, in pixels."""
_CONTEXT = 0.75  # shown around a box, in widths and heights of it
_LEAST = 48  # pixels, the least side of a crop

Window = tuple[float, float, float, float]


class Shape(NamedTuple):
    """A box to draw: xyxy, its text, and whether it is what the card is about."""

    box: tuple[float, float, float, float]
    text: str
    focus: bool = False
    crowd: bool = False


@dataclass(frozen=True)
class Card:
    """One example.

    image: index of the image. window: the part that is shown, None for the whole image.
    annotated, detected: what is drawn in the two views. title, lines: below them. labels: classes
    for which a filter shows it.
    """

    image: int
    window: Window | None
    annotated: Sequence[Shape]
    detected: Sequence[Shape]
    title: str
    lines: Sequence[str]
    labels: frozenset[int]


@dataclass
class Images:
    """The images of a report, read when they are needed.

    load: returns an image by its index, (H, W, 3) uint8 RGB, or raises UserError; None if no images
    were given. sizes: (I, 2) height and width of the images, zeros if unknown. problems: why images
    could not be shown, by index. left_out: examples without an image, because the page was full.
    bytes_left: what the page still takes, in base64.
    """

    load: Callable[[int], np.ndarray] | None
    sizes: np.ndarray
    problems: dict[int, str] = field(default_factory=dict)
    left_out: int = 0
    bytes_left: int = IMAGE_BYTES

    def read(self, image: int) -> np.ndarray | None:
        """Return an image; None if it cannot be shown, which is recorded."""
        if self.load is None or image in self.problems:
            return None
        try:
            return self.load(image)
        except UserError as error:
            self.problems[image] = str(error)
            return None

    def note(self) -> str:
        """Say what of the images cannot be shown, and why; "" if all can."""
        if self.load is None:
            return "No images were given, so the boxes are drawn alone."
        parts = []
        if self.problems:
            first = next(iter(self.problems.values()))
            parts.append(f"{len(self.problems)} images cannot be shown, such as: {first}.")
        if self.left_out:
            parts.append(f"{self.left_out} examples have no image, to keep the page small.")
        return " ".join(parts)


def read_annotated(folder: str, name: str, size: Sequence[int]) -> np.ndarray:
    """Return an image in the frame of its annotations, (H, W, 3) uint8 RGB.

    Args:
        folder: of the images.
        name: `file_name` of the image.
        size: annotated height and width, zeros if unknown. The EXIF orientation is applied, unless
            only the image without it has this size.

    Raises:
        UserError: the image cannot be read, or has another size.
    """
    if not name:
        raise UserError("the annotations have no file_name for an image")
    path, expected = image_path(folder, name), tuple(size)
    pixels = read_image(path)
    if any(expected) and pixels.shape[:2] != expected:
        pixels = read_image(path, rotate=False)
    if any(expected) and pixels.shape[:2] != expected:
        got = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise UserError(f"{path}: expected {expected[1]}x{expected[0]}, got {got}")
    return pixels


@dataclass(frozen=True)
class Gallery:
    """Cards of a section.

    key: its id in the page. wide: whole images instead of crops. one_view: the annotations are not
    beside the detections, because there are no boxes.
    """

    key: str
    cards: Sequence[Card]
    wide: bool = False
    one_view: bool = False


def window_around(box: Sequence[float], size: Sequence[int]) -> Window:
    """Return a square window around a box, inside the image if its size is known.

    Args:
        box: xyxy.
        size: height and width, zeros if unknown.
    """
    x1, y1, x2, y2 = box
    side = max((1 + 2 * _CONTEXT) * max(x2 - x1, y2 - y1), _LEAST)
    spans = []
    for middle, limit in (((x1 + x2) / 2, size[1]), ((y1 + y2) / 2, size[0])):
        low, high = middle - side / 2, middle + side / 2
        if limit:  # moved into the image, or all of it
            low = max(0.0, min(low, limit - side))
            high = min(float(limit), low + side)
        spans.append((low, high))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def draw_galleries(
    galleries: Sequence[Gallery],
    images: Images,
    *,
    class_names: Sequence[str],
    progress: Callable[[Iterable[int], int], Iterator[int]],
) -> dict[str, str]:
    """Return the HTML of each gallery by key.

    Each image is read once for all of its cards. When the bytes for images are used up, the rest
    of the cards show boxes alone, and `images.left_out` counts them. The first cards of all
    galleries come first.

    Args:
        galleries: the cards.
        images: where images come from.
        class_names: K names, of the filters.
        progress: passes the images through and shows how far it is; gets their number.
    """
    # rank in its gallery, then gallery: the order in which cards get their share of the bytes
    places = sorted(
        (rank, g) for g, each in enumerate(galleries) for rank in range(len(each.cards))
    )
    by_image: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for rank, g in places:
        by_image[galleries[g].cards[rank].image].append((rank, g))
    crops: dict[tuple[int, int], bytes] = {}
    sizes = images.sizes.copy()
    for image in progress(by_image, len(by_image)) if images.load else ():
        pixels = images.read(image)
        if pixels is None:
            continue
        sizes[image] = pixels.shape[:2]
        for rank, g in by_image[image]:
            crops[rank, g] = _jpeg(pixels, galleries[g].cards[rank].window, wide=galleries[g].wide)
    shown = {}
    for place in places:
        if place in crops and images.bytes_left >= len(crops[place]) * 4 / 3:
            shown[place] = crops[place]
            images.bytes_left -= len(crops[place]) * 4 // 3
        elif place in crops:
            images.left_out += 1
    return {
        each.key: _gallery(
            each,
            [shown.get((rank, g)) for rank in range(len(each.cards))],
            sizes=sizes,
            class_names=class_names,
        )
        for g, each in enumerate(galleries)
    }


def _jpeg(pixels: np.ndarray, window: Window | None, *, wide: bool) -> bytes:
    """Return the window of an image, scaled to the size of its card, as JPEG."""
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = (round(each) for each in window or (0, 0, width, height))
    crop = pixels[max(y1, 0) : max(y2, y1 + 1), max(x1, 0) : max(x2, x1 + 1)]
    scale = (WIDE_SIDE if wide else CROP_SIDE) / max(crop.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in crop.shape[1::-1])
        crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    assert done, "a crop has at least one pixel"
    return data.tobytes()


def _gallery(
    gallery: Gallery,
    crops: Sequence[bytes | None],
    *,
    sizes: np.ndarray,
    class_names: Sequence[str],
) -> str:
    if not gallery.cards:
        return '<p class="none">None.</p>'
    cards = "".join(
        _card(
            card,
            crop,
            key=f"{gallery.key}-{place}",
            size=sizes[card.image],
            one_view=gallery.one_view,
        )
        for place, (card, crop) in enumerate(zip(gallery.cards, crops, strict=True))
    )
    counts: dict[int, int] = defaultdict(int)
    for card in gallery.cards:
        for label in card.labels:
            counts[label] += 1
    options = [(str(each), f"{class_names[each]} ({counts[each]})") for each in sorted(counts)]
    return filtered(
        f"{gallery.key}-cards",
        options,
        cards,
        name="Class",
        all_of=f"all ({len(gallery.cards)})",
        kind="cards wide" if gallery.wide else "cards",
    )


def _card(card: Card, crop: bytes | None, *, key: str, size: np.ndarray, one_view: bool) -> str:
    window = card.window or _whole(card, size)
    x1, y1, x2, y2 = window
    is_crop, image = card.window is not None, ""
    if crop is not None:
        data = base64.b64encode(crop).decode("ascii")
        image = (
            f'<image id="{key}" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" '
            f'height="{y2 - y1:.1f}" preserveAspectRatio="none" '
            f'href="data:image/jpeg;base64,{data}"/>'
        )
    again = f'<use href="#{key}"/>' if crop is not None else ""
    views = _view(image, card.annotated, window, kind="gt", is_crop=is_crop)
    if not one_view:
        views += _view(again, card.detected, window, kind="det", is_crop=is_crop)
    lines = "".join(f"<br><span>{escaped(line)}</span>" for line in card.lines if line)
    labels = " ".join(map(str, sorted(card.labels)))
    return (
        f'<div class="card" data-keys="{labels}"><div class="pair">{views}</div>'
        f'<div class="text"><b>{escaped(card.title)}</b>{lines.removeprefix("<br>")}</div></div>'
    )


def _view(
    image: str,
    shapes: Sequence[Shape],
    window: Window,
    *,
    kind: Literal["gt", "det"],
    is_crop: bool,
) -> str:
    x1, y1, x2, y2 = window
    # text of about 11 pixels: a view is 150 pixels wide for a crop, 230 for a whole image
    font = (x2 - x1) / (14 if is_crop else 21)
    parts = []
    in_order = sorted(shapes, key=lambda each: each.focus)  # the focus lies on the others
    for shape in in_order:
        a, b, c, d = shape.box
        classes = f"{kind}{' focus' if shape.focus else ''}{' crowd' if shape.crowd else ''}"
        parts.append(
            f'<rect class="{classes}" x="{a:.1f}" y="{b:.1f}" width="{max(c - a, 0):.1f}" '
            f'height="{max(d - b, 0):.1f}"><title>{escaped(shape.text)}</title></rect>'
        )
    named = [shape for shape in in_order if shape.focus or len(shapes) <= _TEXTS]
    if len(named) <= _TEXTS:
        parts += _texts(named, window, font)
    what = "ground truth" if kind == "gt" else "detections"
    return (
        f'<svg viewBox="{x1:.1f} {y1:.1f} {x2 - x1:.1f} {y2 - y1:.1f}" role="img" '
        f'aria-label="{what}: {len(shapes)} boxes">{image}{"".join(parts)}</svg>'
    )


def _texts(shapes: Sequence[Shape], window: Window, font: float) -> Iterator[str]:
    """Yield the text of each shape; the last ones lie on top."""
    boxes = np.array([shape.box for shape in shapes]).reshape(-1, 4)
    # a letter is some 0.6 of the font wide
    widths = [font * (0.4 + 0.6 * len(shape.text)) for shape in shapes]
    sizes = np.array([(width, font * _LINE) for width in widths]).reshape(-1, 2)
    places = place_texts(boxes, sizes, window, inside=True).tolist()
    for shape, (left, top) in zip(shapes, places, strict=True):
        yield (
            f'<text x="{left + font * 0.2:.1f}" y="{top + font:.1f}" '
            f'style="font-size:{font:.1f}px;stroke-width:{font / 5:.1f}px">'
            f"{escaped(shape.text)}</text>"
        )


_LINE = 1.3  # height of a line of text, in its font size
_TEXTS = 8  # most boxes of a view that all get a text; of more, a tooltip


def _whole(card: Card, size: np.ndarray) -> Window:
    """Return the window of a whole image; of unknown size, what holds all boxes, not empty."""
    if all(size):
        return 0.0, 0.0, float(size[1]), float(size[0])
    corners = [(1.0, 1.0), *(shape.box[2:] for shape in (*card.annotated, *card.detected))]
    return 0.0, 0.0, max(each[0] for each in corners), max(each[1] for each in corners)
