"""Prediction on image files: writes detections.json and drawings to a folder as it proceeds."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2

from backbones.images import read_image
from detection.data.coco import ClassMap, detections_to_coco
from detection.structures import Detections
from detection.tiled import Predictor
from detection.visualize import draw_detections, free_paths, write_image
from engine.errors import InterruptedRunError, UserError
from engine.files import write_file
from engine.interrupt import stop_requests
from engine.log import RunLog
from engine.paths import exists
from engine.run_files import DETECTIONS_FILE

PARTIAL = "detections.partial.jsonl"
"""One entry of the results per line, while the prediction runs or after it was killed."""


@dataclass(frozen=True)
class PredictionSummary:
    """Counts of objects and images, and error messages of failed images.

    skipped: messages of images without results. not_drawn: messages of images without a drawing.
    """

    objects: int
    images: int
    skipped: tuple[str, ...]
    not_drawn: tuple[str, ...]


def predict_files(
    detector: Predictor, paths: Sequence[Path], output: Path, *, log: RunLog
) -> PredictionSummary:
    """Detect objects in image files; write the detections and a drawing of each image to `output`.

    Results are on disk after each image. At the end they are in detections.json, even after an
    error; if the process is killed, they are in `PARTIAL`. An image that cannot be read or drawn is
    skipped.

    Args:
        detector: the trained detector.
        paths: image files; the `image_id` of a result is the index of its image in `paths`.
        output: an existing folder. If it has earlier results, earlier drawings are replaced.
        log: shows the progress.

    Raises:
        UserError: results cannot be written.
        InterruptedRunError: Ctrl-C or SIGTERM; the results so far are written.
    """
    earlier = exists(output / DETECTIONS_FILE) or exists(output / PARTIAL)
    drawings = free_paths(paths, output, replace=earlier)
    classes = ClassMap(detector.class_names, detector.category_ids)
    skipped: list[str] = []
    not_drawn: list[str] = []
    done = 0
    stream = detector.stream(paths, on_bad=skipped.append)
    with stop_requests(after="this batch") as request, _ResultsWriter(output) as results:
        for index, found in log.progress(stream, len(paths), "predicting"):
            # category ids are those of the training data; names let eval.py match other annotations
            names = [detector.class_names[label] for label in found.labels.tolist()]
            results.add(
                {"file_name": str(paths[index]), "category_name": name, **entry}
                for name, entry in zip(
                    names, detections_to_coco(index, found, classes), strict=True
                )
            )
            reason = _draw(detector, paths[index], found, drawings[index])
            not_drawn += [reason] if reason else []
            done += 1
            if request.requested:  # leaving the `with` block writes the results
                break
    # a request during the last images changes nothing
    if request.requested and done + len(skipped) < len(paths):
        raise InterruptedRunError(
            f"interrupted after {done} of {len(paths)} images; "
            f"their results: {output / DETECTIONS_FILE}"
        )
    return PredictionSummary(len(results.entries), done, tuple(skipped), tuple(not_drawn))


def _draw(detector: Predictor, source: Path, found: Detections, path: Path) -> str | None:
    """Draw detections and write the image; return an error message, None on success."""
    threshold = detector.config.evaluation.draw_score_thresh
    try:
        drawing = draw_detections(
            read_image(source), found, class_names=detector.class_names, score_thresh=threshold
        )
        write_image(path, drawing)
    except UserError as error:
        return str(error)
    except (cv2.error, MemoryError) as error:
        return f"{source}: cannot be drawn: {' '.join(str(error).split())}"
    return None


class _ResultsWriter:
    """Appends results to `PARTIAL`; at the end writes them, sorted by image, to detections.json."""

    def __init__(self, folder: Path) -> None:
        self.entries: list[Mapping[str, Any]] = []
        self._path, self._partial = folder / DETECTIONS_FILE, folder / PARTIAL

    def __enter__(self) -> Self:
        try:
            self._file = self._partial.open("w", encoding="ascii")
        except OSError as error:
            raise self._write_error(error) from error
        return self

    def add(self, entries: Any) -> None:
        """Append the entries of one image."""
        new = list(entries)
        self.entries += new
        try:
            self._file.writelines(f"{json.dumps(entry)}\n" for entry in new)
            self._file.flush()  # the results of this image survive a kill
        except OSError as error:
            raise self._write_error(error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # closing may fail on a full disk; the entries are in memory and are written below
        with suppress(OSError):
            self._file.close()
        try:
            self._finish()
        except UserError:
            if error is None:  # do not hide the first error
                raise

    def _finish(self) -> None:
        # Images are processed in batches of one shape, not in order. sorted() is stable, so the
        # detections of an image keep their order.
        ordered = sorted(self.entries, key=lambda entry: entry["image_id"])
        lines = ",\n".join(json.dumps(entry) for entry in ordered)
        write_file(self._path, f"[{lines}]\n")
        with suppress(OSError):
            self._partial.unlink()

    def _write_error(self, error: OSError) -> UserError:
        return UserError(f"{self._partial}: cannot be written: {error.strerror}")
