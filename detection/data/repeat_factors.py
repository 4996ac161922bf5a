"""Repeat-factor sampling: images of rare classes occur more often in an epoch (Gupta et al. 2019).

N images, K classes. A class c that a fraction f(c) of the images contain has the factor
r(c) = max(1, sqrt(t / f(c))), and an image the largest factor of its classes (appendix B.2).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from detection.data.coco import Annotations

_NUM_RAREST = 5
"""Classes that the log names."""


@dataclass(frozen=True)
class RepeatFactors:
    """The factors of a training set.

    thresh: the threshold t, a fraction of the images. by_image: (N,) float64, at least 1, and 1 for
    an image without objects. by_class: (K,) float64, at least 1, and 1 for a class that no image
    contains. image_counts: (K,) int64, the images that contain each class. class_names: K.
    """

    thresh: float
    by_image: np.ndarray
    by_class: np.ndarray
    image_counts: np.ndarray
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, annotations: Annotations, rows: np.ndarray, thresh: float) -> Self:
        """Compute the factors of the training images.

        Only training objects make an image contain a class: no crowd regions, and none that are
        difficult or ignored.

        Args:
            annotations: the annotations.
            rows: (N,) int64 rows of `annotations`: the training images, each once. N may be 0.
            thresh: the threshold t in [0, 1].
        """
        num_classes = len(annotations.classes)
        objects = np.flatnonzero(annotations.is_plain())
        # position in `rows` of the image of each object, -1 if it is not a training image
        places = np.full(len(annotations), -1)
        places[rows] = np.arange(len(rows))
        images = places[annotations.row_of(objects)]
        labels = annotations.labels[objects]
        # Distinct pairs of an image and a class, as one number each. np.unique is the same in 20
        # times the time for LVIS's million objects.
        pairs = np.sort((images * num_classes + labels)[images >= 0])
        images, labels = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], num_classes)
        counts = np.bincount(labels, minlength=num_classes)
        fractions = counts / max(len(rows), 1)
        by_class = np.ones(num_classes)
        is_rare = (counts > 0) & (fractions < thresh)
        by_class[is_rare] = np.sqrt(thresh / fractions[is_rare])
        by_image = np.ones(len(rows))
        np.maximum.at(by_image, images, by_class[labels])
        return cls(thresh, by_image, by_class, counts, annotations.classes.names)

    def lines(self) -> list[str]:
        """Return log lines: how many images are repeated, how often, and the rarest classes."""
        repeated = int((self.by_image > 1).sum())
        setting = f"data.repeat_thresh={self.thresh:g}"
        if not repeated:
            return [f"{setting} repeats no image: each class is in that fraction of them or more"]
        found = np.flatnonzero(self.image_counts)
        rarest = found[np.argsort(self.image_counts[found], kind="stable")][:_NUM_RAREST].tolist()
        return [
            f"{setting} repeats {repeated} of {len(self.by_image)} images, at most "
            f"{self.by_image.max():.1f} times on average; an epoch has "
            f"{self.by_image.sum():.0f} images on average",
            "rarest classes: "
            + ", ".join(
                f"{self.class_names[label]} (images: {self.image_counts[label]}, factor: "
                f"{self.by_class[label]:.1f})"
                for label in rarest
            ),
        ]
