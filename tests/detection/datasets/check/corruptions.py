"""Corruptions of COCO documents, ten places each, with the finding that each must give."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

Document = dict[str, Any]
Corruption = Callable[[Document, np.random.Generator], list[int]]
"""Changes a document and returns the positions that a check must name."""

PLACES = 10


def choose(
    document: Document,
    rng: np.random.Generator,
    name: str = "annotations",
    *,
    of_class: int | None = None,
) -> list[int]:
    """Return ten positions of a list, ascending; of objects that are not crowd regions."""
    entries = document[name]
    places = [
        at
        for at, each in enumerate(entries)
        if not each.get("iscrowd") and of_class in (None, each.get("category_id"))
    ]
    count = min(PLACES, len(places) - 1)
    return sorted(rng.choice(places, size=count, replace=False).tolist())


def halves(document: Document) -> tuple[Document, Document]:
    """Divide the images and their annotations into the even and the odd ones."""
    parts = []
    for first in (0, 1):
        images = document["images"][first::2]
        ids = {image["id"] for image in images}
        objects = [each for each in document["annotations"] if each["image_id"] in ids]
        parts.append({**document, "images": images, "annotations": objects})
    return parts[0], parts[1]


def setting(key: str, *values: Any, name: str = "annotations") -> Corruption:
    """Set a key to these values in turn; `del` removes it."""

    def corrupt(document: Document, rng: np.random.Generator) -> list[int]:
        places = choose(document, rng, name)
        for number, at in enumerate(places):
            value = values[number % len(values)]
            document[name][at][key] = value
            if value is del_:
                del document[name][at][key]
        return places

    return corrupt


del_ = object()


def changing(
    change: Callable[[dict[str, Any], dict[str, Any]], None], *, of_frequent: bool = False
) -> Corruption:
    """Apply `change(annotation, image)`; `of_frequent`: to objects of the most frequent class."""

    def corrupt(document: Document, rng: np.random.Generator) -> list[int]:
        images = {image["id"]: image for image in document["images"]}
        objects = document["annotations"]
        counts = Counter(entry["category_id"] for entry in objects)
        most = counts.most_common(1)[0][0] if of_frequent else None
        places = choose(document, rng, of_class=most)
        for at in places:
            entry = document["annotations"][at]
            change(entry, images[entry["image_id"]])
        return places

    return corrupt


def appending(change: Callable[[dict[str, Any]], Any], name: str = "annotations") -> Corruption:
    """Append changed copies of entries, with new ids."""

    def corrupt(document: Document, rng: np.random.Generator) -> list[int]:
        entries = document[name]
        fresh = max(entry["id"] for entry in entries) + 1
        places = choose(document, rng, name)
        for number, at in enumerate(places):
            copy = {**entries[at], "id": fresh + number}
            change(copy)
            entries.append(copy)
        return list(range(len(entries) - len(places), len(entries)))

    return corrupt


def of_all(change: Callable[[list[float], float, float], list[float]]) -> Corruption:
    """Change all boxes by `change(box, image width, image height)`."""

    def corrupt(document: Document, rng: np.random.Generator) -> list[int]:
        sizes = {each["id"]: (each["width"], each["height"]) for each in document["images"]}
        for entry in document["annotations"]:
            entry["bbox"] = change(entry["bbox"], *sizes[entry["image_id"]])
        return list(range(len(document["annotations"])))

    return corrupt


def replace_entries(name: str) -> Corruption:
    def corrupt(document: Document, rng: np.random.Generator) -> list[int]:
        places = choose(document, rng, name)
        for at in places:
            document[name][at] = ["no", "object"]
        return places

    return corrupt


def repeat_ids(name: str) -> Corruption:
    """Give ten entries the id of an entry before them."""

    def corrupt(document: Document, rng: np.random.Generator) -> list[int]:
        entries = document[name]
        count = min(PLACES, len(entries) // 2)
        places = list(range(len(entries) - count, len(entries)))
        for at in places:
            entries[at]["id"] = entries[at - count]["id"]
        return places

    return corrupt


def repeat_names(document: Document, rng: np.random.Generator) -> list[int]:
    entries = document["categories"]
    entries[-1]["name"] = entries[0]["name"]
    return [len(entries) - 1]


def swap_sides(document: Document, rng: np.random.Generator) -> list[int]:
    """Swap the sides of ten images whose boxes show it."""
    far = {image["id"]: [0.0, 0.0] for image in document["images"]}
    for entry in document["annotations"]:
        x, y, width, height = entry["bbox"]
        reach = far[entry["image_id"]]
        reach[:] = max(reach[0], x + width), max(reach[1], y + height)
    shows = []
    for at, image in enumerate(document["images"]):
        limits = image["height"], image["width"]
        if any(
            reach > 1.02 * limit + 2 for reach, limit in zip(far[image["id"]], limits, strict=True)
        ):
            shows.append(at)
    places = sorted(rng.choice(shows, size=PLACES, replace=False).tolist())
    for at in places:
        image = document["images"][at]
        image["width"], image["height"] = image["height"], image["width"]
    return places


def swap_all(document: Document, rng: np.random.Generator) -> list[int]:
    for image in document["images"]:
        image["width"], image["height"] = image["height"], image["width"]
    return list(range(len(document["annotations"])))


def nudge(entry: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    entry["bbox"] = [x + 0.02 * width, y, 0.98 * width, height]


def same(entry: dict[str, Any]) -> None:
    entry.setdefault("iscrowd", 0)


def beyond(entry: dict[str, Any], image: dict[str, Any]) -> None:
    x, y, _, height = entry["bbox"]
    entry["bbox"] = [x, y, image["width"] - x + 2.5, height]


def outside(entry: dict[str, Any], image: dict[str, Any]) -> None:
    entry["bbox"] = [image["width"] + 5, 1, 20, 20]


def tiny(entry: dict[str, Any], image: dict[str, Any]) -> None:
    entry["bbox"] = [image["width"] / 2, image["height"] / 2, 0.02, 0.02]


def thin(entry: dict[str, Any], image: dict[str, Any]) -> None:
    entry["bbox"] = [10, image["height"] / 2, image["width"] - 20, 0.02]


def far_mask(entry: dict[str, Any], image: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    right = x + 1.5 * width + 20
    entry["segmentation"] = [[x, y, right, y, right, y + height, x, y + height]]


def part_mask(entry: dict[str, Any], image: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    entry["segmentation"] = [polygon, [x, y, x + width, y + height]]


def large_area(entry: dict[str, Any], image: dict[str, Any]) -> None:
    entry["area"] = 3 * (entry["bbox"][2] + 2) * (entry["bbox"][3] + 2)


def lack_masks(document: Document, rng: np.random.Generator) -> list[int]:
    """Take the masks of ten objects; all others have one."""
    for entry in document["annotations"]:
        x, y, width, height = entry["bbox"]
        polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
        entry["segmentation"] = entry.get("segmentation") or [polygon]
    places = choose(document, rng)
    for at in places:
        del document["annotations"][at]["segmentation"]
    return places


def without_name(document: Document, rng: np.random.Generator) -> list[int]:
    places = setting("file_name", "", None, del_, 7, "\ud800", name="images")(document, rng)
    for at in places:
        document["images"][at].pop("coco_url", None)  # which gives a name, too
    return places


NAN = float("nan")
CORRUPTIONS: dict[str, Corruption] = {
    "image-not-object": replace_entries("images"),
    "annotation-not-object": replace_entries("annotations"),
    "image-id": setting("id", "a name", 12.5, None, del_, True, 2**70, name="images"),
    "image-name": without_name,
    "image-name-odd": setting("file_name", "a\n.jpg", "\x1b[2J.jpg", name="images"),
    "image-size": setting("width", 0, -4, "640", None, del_, 1 << 21, name="images"),
    "annotation-id": setting("id", "x1", None, del_, 1.5),
    "annotation-image-id": setting("image_id", "no id", None, del_, 1.5),
    "annotation-category-id": setting("category_id", "cat", None, del_, 2.5),
    "box-malformed": setting("bbox", [1, 2, 3], None, del_, [1, 2, 3, "4x"], "1 2 3 4", {}),
    "area-malformed": setting("area", "large", [], True),
    "flag-malformed": setting("iscrowd", 2, "yes", "1", 0.5),
    "repeated-image-id": repeat_ids("images"),
    "repeated-annotation-id": repeat_ids("annotations"),
    "repeated-category-id": repeat_ids("categories"),
    "repeated-category-name": repeat_names,
    "category-name": setting("name", "a\nb", "", None, del_, "\x1b[2J", name="categories"),
    "category-id": setting("id", "one", None, del_, 1.5, name="categories"),
    "unknown-image": setting("image_id", 10**9, -1),
    "unknown-category": setting("category_id", 10**9, -1),
    "boxes-normalised": of_all(lambda box, w, h: [box[0] / w, box[1] / h, box[2] / w, box[3] / h]),
    "boxes-xyxy": of_all(lambda box, w, h: [*box[:2], box[0] + box[2], box[1] + box[3]]),
    "boxes-swapped": swap_all,
    "boxes-unknown": of_all(lambda box, w, h: [3 * each + 9 for each in box]),
    "sides-swapped": swap_sides,
    "box-not-finite": setting("bbox", [1, 1, NAN, 5], [float("inf"), 1, 5, 5]),
    "box-without-size": setting("bbox", [1, 1, 0, 5], [1, 1, 5, -5], [5, 5, 0, 0]),
    "box-outside": changing(outside),
    "box-clipped": changing(beyond),
    "duplicate-box": appending(same),
    "near-duplicate-box": appending(nudge),
    "unusual-size": changing(tiny, of_frequent=True),
    "unusual-aspect": changing(thin, of_frequent=True),
    "area-impossible": setting("area", -1, NAN, float("inf"), 1e39),
    "area-misfit": changing(large_area),
    "area-missing": setting("area", None, del_),
    "iscrowd-missing": setting("iscrowd", None, del_),
    "mask-unreadable": setting(
        "segmentation", [[1, 2, 3, 4]], {"size": [1, 1], "counts": [1]}, "a mask", [["a"]]
    ),
    "mask-parts": changing(part_mask),
    "mask-outside-box": changing(far_mask),
    "mask-missing": lack_masks,
    "crowds": setting("iscrowd", 1),
    "shared-file": appending(same, "images"),
    "images-empty": appending(lambda image: image.update(file_name=f"{image['id']}.jpg"), "images"),
}
"""By the code of the finding about entries of the file."""
