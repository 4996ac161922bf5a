"""Prediction on image files: reading ahead of the network, results and drawings behind it.

Results go to JSON lines as they come, and from there, in image order, to the files of each format.
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from detection.commands.predict_formats import FORMATS, write_results
from detection.commands.predict_images import ImageFiles
from detection.commands.predict_lines import ResultLines
from detection.commands.predict_output import (
    PARTIAL,
    check_files,
    check_folders,
    files_of,
    filled_folders,
    other_results,
)
from detection.data.coco import ClassMap, detections_to_coco
from detection.predict import ImageResult, Predictor
from detection.visualize import free_numbers
from engine.device_copies import ahead
from engine.errors import InterruptedRunError, UserError
from engine.interrupt import stop_requests
from engine.log import RunLog
from engine.run_files import DETECTIONS_FILE

MAX_NAMED = 20
"""Failed images of which the message is kept; there may be thousands."""
_BATCHES_BEHIND = 1  # batches that wait for being written, besides the one that is


@dataclass(frozen=True)
class PredictionOptions:
    """What to write, and how.

    formats: keys of `FORMATS`. drawings: draw each image. crops: save each detection as an image.
    labels: the classes whose detections are kept, ascending; None: all. threads: that read images
    ahead of the network, and as many that draw behind it. resume: go on with an interrupted
    prediction in the output folder. job: what must be the same for that, besides these options.
    """

    formats: Sequence[str] = ()
    drawings: bool = True
    crops: bool = False
    labels: Sequence[int] | None = None
    threads: int = 1
    resume: bool = False
    job: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class PredictionSummary:
    """Counts of objects and images, and the first error messages of failed images.

    draw_thresh: smallest score of an object that is drawn; None: there are no drawings. above:
    objects with at least this score. skipped: images without results. not_drawn: images of which a
    drawing or crop is missing.
    """

    draw_thresh: float | None
    objects: int = 0
    above: int = 0
    images: int = 0
    num_skipped: int = 0
    num_not_drawn: int = 0
    skipped: list[str] = field(default_factory=list)
    not_drawn: list[str] = field(default_factory=list)

    def counting(self, lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the lines and count them."""
        for line in lines:
            if "skipped" in line:
                self.num_skipped += 1
                self.skipped += [line["skipped"]] * (len(self.skipped) < MAX_NAMED)
            else:
                self.images += 1
                scores = [each["score"] for each in line["detections"]]
                self.objects += len(scores)
                if self.draw_thresh is not None:
                    self.above += sum(score >= self.draw_thresh for score in scores)
            if "not_drawn" in line:
                self.num_not_drawn += 1
                self.not_drawn += [line["not_drawn"]] * (len(self.not_drawn) < MAX_NAMED)
            yield line


def predict_files(
    detector: Predictor,
    paths: Sequence[str],
    output: Path,
    *,
    options: PredictionOptions,
    log: RunLog,
) -> PredictionSummary:
    """Detect objects in image files; write the detections and a drawing of each image to `output`.

    Results are on disk after each batch, in `PARTIAL`. At the end, even after an error, they are in
    detections.json; at the end without an error also in the other formats. An image that cannot be
    read or drawn is skipped.

    Args:
        detector: the trained detector.
        paths: image files; the `image_id` of a result is the index of its image in `paths`.
        output: an existing folder; of its files only those of earlier predictions are replaced.
        options: what to write.
        log: shows the progress.

    Raises:
        UserError: results cannot be written, or are of another job than the one to resume.
        InterruptedRunError: Ctrl-C or SIGTERM; the results so far are written.
    """
    classes = ClassMap(detector.class_names, detector.category_ids)
    thresh = detector.config.evaluation.draw_score_thresh if options.drawings else None
    files = ImageFiles(output, classes, draw_thresh=thresh, crops=options.crops)
    with _open_lines(paths, output, options, log=log) as lines:
        missing = lines.missing()
        if options.resume and lines.is_new:
            log.note(f"{output}: no interrupted prediction to resume; this one starts")
        elif options.resume:
            filled = lines.started.get("filled", ())
            check_folders(output, filled, options.formats, crops=options.crops)
            log.note(f"{output}: {len(paths) - len(missing)} of {len(paths)} images are done")
        found = detector.batches(
            (paths[index] for index in missing),
            threads=options.threads,
            keep_pixels=files.need_pixels,
        )
        recorder = _Recorder(lines, files, paths, classes, options=options)

        def batches() -> Iterator[list[ImageResult]]:
            for batch in found:
                yield [replace(each, index=missing[each.index]) for each in batch]
                if request.requested:
                    return

        try:
            with (
                stop_requests(after="this batch") as request,
                closing(recorder),
                closing(ahead(batches(), recorder.record, depth=_BATCHES_BEHIND)) as recorded,
            ):
                done = chain.from_iterable(recorded)
                for _ in log.progress(done, len(missing), "predicting"):
                    pass
        except BaseException:
            with suppress(UserError):  # do not hide the first error
                write_results(lines, output, classes)
            raise
        summary = PredictionSummary(thresh)
        write_results(summary.counting(lines), output, classes)
        num_left = len(lines.missing())
        if request.requested and num_left:  # a request during the last images changes nothing
            raise InterruptedRunError(
                f"interrupted after {len(paths) - num_left} of {len(paths)} images; their results: "
                f"{output / DETECTIONS_FILE}; --resume goes on with the others"
            )
        for name in options.formats:
            for line in FORMATS[name](lines, output, classes):
                log.note(line)
        lines.remove()
    return summary


def _open_lines(
    paths: Sequence[str], output: Path, options: PredictionOptions, *, log: RunLog
) -> ResultLines:
    """Return the lines of a new job or of the one to resume.

    Raises:
        UserError: the folder has files that would be replaced, or mixed with new ones.
    """
    check_files(output, (PARTIAL, *files_of(options.formats)))

    def start() -> dict[str, Any]:
        filled = filled_folders(output)
        check_folders(output, filled, options.formats, crops=options.crops)
        for path in other_results(output, options.formats, crops=options.crops):
            log.note(f"{path}: kept; it is not of this prediction")
        numbers = free_numbers(paths, output if options.drawings else None).tolist()
        return {"numbers": numbers if max(numbers) > 1 else [], "filled": filled}

    job = {"classes": options.labels, "drawings": options.drawings, "crops": options.crops}
    return ResultLines(
        output / PARTIAL,
        {**options.job, **job},
        count=len(paths),
        start=start,
        resume=options.resume,
    )


class _Recorder:
    """Writes the files and lines of images, the files in threads.

    Args:
        lines: gets the lines.
        files: writes drawings and crops.
        paths: of the images.
        classes: of the detector.
        options: its `labels` and `threads`.
    """

    def __init__(
        self,
        lines: ResultLines,
        files: ImageFiles,
        paths: Sequence[str],
        classes: ClassMap,
        *,
        options: PredictionOptions,
    ) -> None:
        self._lines, self._files, self._paths, self._classes = lines, files, paths, classes
        self._labels = None if options.labels is None else torch.tensor(options.labels)
        self._pool = ThreadPoolExecutor(options.threads)
        # numbers of the names of drawings; without any, all are 1
        self._numbers = array("L", lines.started["numbers"] or [1] * len(paths))

    def record(self, batch: Sequence[ImageResult]) -> list[int]:
        """Write what was found in the images of a batch; return their indices."""
        idxs = [result.index for result in batch]
        self._lines.append(list(zip(idxs, self._pool.map(self._values, batch), strict=True)))
        return idxs

    def close(self) -> None:
        """Wait for the threads."""
        self._pool.shutdown()

    def _values(self, result: ImageResult) -> dict[str, Any]:
        """Write the files of an image; return the values of its line."""
        index, source = result.index, self._paths[result.index]
        if result.found is None:
            return {"file_name": source, "skipped": str(result.error)}
        if self._labels is not None:
            kept = torch.isin(result.found.labels, self._labels)
            result = replace(result, found=result.found.where(kept))
        assert result.found is not None
        reason = self._files.write(source, self._numbers[index], result)
        return {
            "file_name": source,
            "number": self._numbers[index],
            "size": result.size,
            "detections": detections_to_coco(index, result.found, self._classes),
            **({"not_drawn": reason} if reason else {}),
        }
