"""Statistics of a COCO file: classes, sizes of objects and images, co-occurrence of classes.

N images, M objects, K classes. The side of an object is the square root of its box's area.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detection.data.coco import Annotations

SMALL_AREA, MEDIUM_AREA = 32.0**2, 96.0**2
"""COCO's limits of small and medium objects, in square pixels of the annotated area."""
_QUANTILES = {"min": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class ClassStatistics:
    """Numbers of one class.

    images: with at least one object. objects: crowd regions included. crowd: among them. The others
    are of objects that are not crowd regions. small, medium, large: counts by COCO's limits.
    median_side: pixels. median_relative_side: of side / square root of the image's area.
    median_aspect: of width / height. Medians of no objects are None.
    """

    name: str
    images: int
    objects: int
    crowd: int
    small: int
    medium: int
    large: int
    median_side: float | None
    median_relative_side: float | None
    median_aspect: float | None


@dataclass(frozen=True)
class ClassPair:
    """Two classes (labels first < second) and the number of images with both.

    lift: this number over the one expected if the classes were independent; above 1, they attract
    each other.
    """

    first: int
    second: int
    images: int
    lift: float


@dataclass(frozen=True)
class Statistics:
    """Statistics of a file.

    classes: K, by label. pairs: all pairs that occur together, most images first. image_sizes:
    (width, height, images), most images first. objects_per_image: (N,) int64. sides,
    relative_sides, aspects: float64, one of each object that is not a crowd region.
    """

    classes: tuple[ClassStatistics, ...]
    pairs: tuple[ClassPair, ...]
    image_sizes: tuple[tuple[int, int, int], ...]
    objects_per_image: np.ndarray
    sides: np.ndarray
    relative_sides: np.ndarray
    aspects: np.ndarray

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.objects_per_image)

    @property
    def empty_images(self) -> int:
        """Number of images without objects."""
        return int((self.objects_per_image == 0).sum())

    @property
    def objects(self) -> int:
        """Number of objects, crowd regions included."""
        return int(self.objects_per_image.sum())

    def quantiles(self) -> dict[str, dict[str, float]]:
        """Return quantiles by what they are of; empty where there is nothing."""
        shapes = np.array(self.image_sizes, np.float64)
        images = [np.repeat(shapes[:, side], shapes[:, 2].astype(np.int64)) for side in (0, 1)]
        of = {
            "objects an image": self.objects_per_image,
            "side of an object in pixels": self.sides,
            "side relative to the image": self.relative_sides,
            "aspect (width / height)": self.aspects,
            "width of an image": images[0],
            "height of an image": images[1],
        }
        return {
            what: dict(
                zip(_QUANTILES, np.quantile(x, list(_QUANTILES.values())).tolist(), strict=True)
            )
            if len(x)
            else {}
            for what, x in of.items()
        }

    def histogram(self) -> dict[str, int]:
        """Return the number of images by their number of objects, without zeros."""
        counts = np.bincount(self.objects_per_image)
        return {str(number): int(counts[number]) for number in np.flatnonzero(counts)}

    def numbers(self) -> dict[str, Any]:
        """Return all numbers, for a JSON file."""
        names = [each.name for each in self.classes]
        return {
            "images": self.images,
            "images_without_objects": self.empty_images,
            "objects": self.objects,
            "crowd": sum(each.crowd for each in self.classes),
            "quantiles": self.quantiles(),
            "classes": [asdict(each) for each in self.classes],
            "image_sizes": [
                {"width": width, "height": height, "images": count}
                for width, height, count in self.image_sizes
            ],
            "images_by_number_of_objects": self.histogram(),
            "pairs": [
                {
                    "classes": [names[pair.first], names[pair.second]],
                    "images": pair.images,
                    "lift": pair.lift,
                }
                for pair in self.pairs
            ],
        }


def statistics_of(annotations: Annotations) -> Statistics:
    """Return the statistics of a file; it may have no objects."""
    per_image = np.diff(annotations.offsets)
    rows = np.repeat(np.arange(len(annotations)), per_image)
    # an image counts once for each class that it has: sorted codes image * K + label
    num_classes = len(annotations.classes)
    codes = np.sort(
        rows * num_classes + annotations.labels
    )  # numpy's unique takes ten times as long
    present = codes[np.diff(codes, prepend=-1) > 0]
    plain = ~annotations.is_crowd
    width, height = (annotations.boxes[plain, 2:] - annotations.boxes[plain, :2]).astype(float).T
    image_areas = annotations.sizes.prod(axis=1)[rows[plain]]
    sides = np.sqrt(width * height)
    measures = (sides, sides / np.sqrt(image_areas), width / height)
    sizes, size_counts = np.unique(annotations.sizes, axis=0, return_counts=True)
    order = np.argsort(-size_counts, kind="stable")
    images_by_class = np.bincount(present % num_classes, minlength=num_classes)
    return Statistics(
        classes=_class_statistics(annotations, images_by_class, measures),
        pairs=_pairs(present, images_by_class, len(annotations)),
        image_sizes=tuple((int(sizes[k, 1]), int(sizes[k, 0]), int(size_counts[k])) for k in order),
        objects_per_image=per_image,
        sides=sides,
        relative_sides=measures[1],
        aspects=measures[2],
    )


def _class_statistics(
    annotations: Annotations, images_by_class: np.ndarray, measures: tuple[np.ndarray, ...]
) -> tuple[ClassStatistics, ...]:
    """Count by class; measures: side, relative side, aspect of what is no crowd region."""
    num_classes = len(annotations.classes)
    plain = ~annotations.is_crowd
    labels, areas = annotations.labels[plain], annotations.areas[plain]
    size_class = np.digitize(areas, [SMALL_AREA, MEDIUM_AREA])  # 0 small, 1 medium, 2 large
    by_size = np.bincount(labels * 3 + size_class, minlength=3 * num_classes).reshape(-1, 3)
    plain_counts = by_size.sum(axis=1)
    crowd = np.bincount(annotations.labels[~plain], minlength=num_classes)
    medians = [_medians(values, labels, plain_counts) for values in measures]
    return tuple(
        ClassStatistics(
            name=name,
            images=int(images_by_class[k]),
            objects=int(plain_counts[k] + crowd[k]),
            crowd=int(crowd[k]),
            small=int(by_size[k, 0]),
            medium=int(by_size[k, 1]),
            large=int(by_size[k, 2]),
            median_side=medians[0][k],
            median_relative_side=medians[1][k],
            median_aspect=medians[2][k],
        )
        for k, name in enumerate(annotations.classes.names)
    )


def _medians(values: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> list[float | None]:
    """Return the median of the values of each label, None of no values. counts: (K,) of labels."""
    ordered = values[np.lexsort([values, labels])]
    starts = np.cumsum(counts) - counts
    return [
        float(ordered[[start + (count - 1) // 2, start + count // 2]].mean()) if count else None
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
    ]


def _pairs(
    present: np.ndarray, images_by_class: np.ndarray, num_images: int
) -> tuple[ClassPair, ...]:
    """Count the images of each pair of classes.

    Args:
        present: ascending codes image * K + label, one of each class in each image.
        images_by_class: (K,).
        num_images: N.
    """
    num_classes = len(images_by_class)
    rows, labels = present // num_classes, present % num_classes
    codes = [first * num_classes + second for first, second in _neighbours(rows, labels)]
    found, counts = np.unique(np.concatenate([*codes, np.zeros(0, np.int64)]), return_counts=True)
    first, second = found // num_classes, found % num_classes
    lifts = counts * num_images / (images_by_class[first] * images_by_class[second])
    order = np.argsort(-counts, kind="stable")
    columns = (array[order].tolist() for array in (first, second, counts, lifts))
    return tuple(ClassPair(*each) for each in zip(*columns, strict=True))


def _neighbours(rows: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield labels of pairs in the same row, at distance 1, then 2, until no row is that long."""
    for distance in range(1, len(rows)):
        same = rows[distance:] == rows[:-distance]
        if not same.any():
            return
        yield labels[:-distance][same], labels[distance:][same]
