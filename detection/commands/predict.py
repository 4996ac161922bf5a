"""Command `predict`: detect objects in image files, write detections.json and drawings.

Usage: resdet predict RUN_OR_CHECKPOINT ... IMAGE_OR_FOLDER ... [key=value ...] (tools/predict.py)
"""

import argparse
import difflib
import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.commands.predict_tiles import add_tile_options, in_tiles, tile_job
from engine.cli import CommandParser, split_arguments
from engine.errors import UserError

if TYPE_CHECKING:
    from detection.commands.predict_files import PredictionSummary
    from detection.commands.predict_inputs import FoundImages
    from engine.log import RunLog


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(description="Detect objects; write detections.json and drawings.")
    parser.add_argument(
        "positional",
        nargs="+",
        metavar="RUN_OR_CHECKPOINT ... | IMAGE_OR_FOLDER ... | - | key=value",
        help="run folder, checkpoint or .safetensors file (several form an ensemble), then images "
        "and folders of them, or - for a list of images on standard input (one a line, or with NUL "
        "after each); overrides of the run's config, such as model.roi.nms_thresh=0.3, anywhere",
    )
    parser.add_argument("--output", type=Path, default="predictions", help="default: %(default)s")
    parser.add_argument(
        "--score",
        type=float,
        help="minimum score of a detection (default: the run's model.roi.score_thresh, and "
        "evaluation.draw_score_thresh in drawings)",
    )
    parser.add_argument("--classes", help="NAME,NAME...: keep detections of these classes only")
    parser.add_argument(
        "--format",
        default="coco",
        help="coco (detections.json, always written), and besides it csv, yolo or coco-annotations "
        "(for labelling tools); several with commas",
    )
    parser.add_argument("--no-drawings", action="store_true", help="write no drawings")
    parser.add_argument(
        "--save-crops",
        action="store_true",
        help="save each detection as an image, in a folder for each class",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted prediction of the same run, images and options in --output",
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="exit with 0 even if images cannot be read or drawn; they are skipped in any case",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if available)")
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="on a GPU: launch each batch as one CUDA graph per shape; for images of few sizes",
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="threads that read images, and as many that draw (default: 1; on a GPU one a core, at "
        "most 8)",
    )
    add_tile_options(parser)
    return parser


def main() -> None:
    """Parse the command line, predict, draw, and list the images that failed."""
    arguments = make_parser().parse_intermixed_args()
    inputs, overrides = split_arguments(arguments.positional)
    runs, images = _split_runs(inputs)
    _check_arguments(arguments, images)
    # --score is a short form of two overrides
    keys = ("model.roi.score_thresh", "evaluation.draw_score_thresh")
    overrides += [] if arguments.score is None else [f"{key}={arguments.score}" for key in keys]

    from backbones.images import bit_depth_note, quiet_opencv
    from detection.commands.predict_files import PredictionOptions, predict_files
    from detection.commands.predict_inputs import find_images
    from detection.predict import load_detector
    from engine.distributed import pick_device
    from engine.kernels import kernels_note
    from engine.log import RunLog
    from engine.memory import keep_freed_memory
    from engine.run_folder import LockedRunFolder

    quiet_opencv()
    device = pick_device(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()
    detector = load_detector(
        runs,
        device=arguments.device,
        overrides=overrides,
        cuda_graphs=arguments.cuda_graphs,
    )
    labels = _labels_of(arguments.classes, detector.class_names)
    # the output folder may be inside an input folder: do not predict on earlier drawings
    found = find_images(images, skip_folder=arguments.output)
    log = RunLog(None, is_main=True)
    predictor = in_tiles(detector, arguments, log=log)
    options = PredictionOptions(
        formats=[each for each in dict.fromkeys(arguments.format.split(",")) if each != "coco"],
        drawings=not arguments.no_drawings,
        crops=arguments.save_crops,
        labels=labels,
        threads=arguments.threads or (1 if device.type == "cpu" else min(os.cpu_count() or 1, 8)),
        resume=arguments.resume,
        job=_job_of(runs, overrides, found.paths, device=device.type) | tile_job(arguments),
    )
    with LockedRunFolder(arguments.output) as folder:
        for line in (*folder.notes, kernels_note()):
            log.note(line)
        if len(runs) > 1:
            log.note(f"ensemble of {len(runs)} detectors, with the settings of {runs[0]}")
        if found.num_repeats:
            log.note(f"images given more than once: {found.num_repeats} dropped")
        if note := bit_depth_note(found.paths):
            log.note(note)
        written = predict_files(predictor, found.paths, arguments.output, options=options, log=log)
    _report(found, written, arguments, log)


def _check_arguments(arguments: argparse.Namespace, images: Sequence[Path]) -> None:
    """Raise UserError for an option that is wrong whatever the run."""
    from detection.commands.predict_formats import FORMATS
    from engine.run_folder import contains_run

    known = ("coco", *FORMATS)
    if not images:
        raise UserError(
            "command line: expected RUN_OR_CHECKPOINT and IMAGE_OR_FOLDER ..., got no image"
        )
    if list(map(str, images)).count("-") > 1:
        raise UserError("command line: expected - once, because standard input is read once")
    if contains_run(arguments.output):
        raise UserError(f"--output: expected a folder for drawings, got a run: {arguments.output}")
    if arguments.score is not None and not 0 <= arguments.score <= 1:
        raise UserError(f"--score: expected a number from 0 to 1, got {arguments.score}")
    if arguments.threads is not None and arguments.threads < 1:
        raise UserError(f"--threads: expected at least 1, got {arguments.threads}")
    for name in arguments.format.split(","):
        if name not in known:
            raise UserError(f"--format: expected {', '.join(known)}, got {name!r:.60}")


def _labels_of(names: str | None, class_names: Sequence[str]) -> list[int] | None:
    """Return the labels of class names with commas between them; None: no class was chosen."""
    if names is None:
        return None
    labels = set()
    for name in [names] if names in class_names else names.split(","):
        if name not in class_names:
            near = difflib.get_close_matches(name, class_names, n=1, cutoff=0.0)[0]
            expected = f"expected classes of the run, got {name!r:.60}"
            raise UserError(f"--classes: {expected}; did you mean {near!r:.60}?")
        labels.add(class_names.index(name))
    return sorted(labels)


def _job_of(
    runs: Sequence[Path], overrides: Sequence[str], paths: Sequence[str], *, device: str
) -> dict[str, Any]:
    """Return what must be the same for a prediction to be resumed, besides its options."""
    import hashlib

    from engine.checkpoint import find_weights_file
    from engine.checksum import file_digest
    from engine.kernels import kernels_kind

    listed = hashlib.sha256()
    for path in paths:
        listed.update(os.fsencode(path) + b"\0")
    return {
        "weights": [file_digest(find_weights_file(run)) for run in runs],
        "overrides": list(overrides),
        "images": {"count": len(paths), "sha256": listed.hexdigest()},
        "device": device,
        "kernels": kernels_kind(),
    }


def _report(
    found: "FoundImages",
    written: "PredictionSummary",
    arguments: argparse.Namespace,
    log: "RunLog",
) -> None:
    """List the images that failed, and count the others; UserError unless --skip-bad allows it."""
    from detection.commands.predict_files import MAX_NAMED

    if found.num_others:
        log.note(f"{found.num_others} files that are not images were skipped")
    bad = [f"skipped: {reason}" for reason in (*found.problems, *written.skipped)]
    bad += [f"not drawn: {reason}" for reason in written.not_drawn]
    num_bad = len(found.problems) + written.num_skipped + written.num_not_drawn
    for line in bad[:MAX_NAMED]:
        log.note(line)
    if num_bad > MAX_NAMED:
        log.note(f"and {num_bad - MAX_NAMED} more")
    log.note(f"{written.objects} objects in {written.images} images: {arguments.output}")
    if written.draw_thresh is not None and written.above < written.objects:
        log.note(
            f"drawings show those with a score of {written.draw_thresh} or more, {written.above} "
            f"of {written.objects}; --score sets another"
        )
    if num_bad and not arguments.skip_bad:
        more = f" and {num_bad - 1} more" if num_bad > 1 else ""
        raise UserError(f"{bad[0]}{more}; --skip-bad makes the exit code 0")


def _split_runs(inputs: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Split the inputs into runs and images: the first is a run, others are if they look like one.

    A run is a weights file or checkpoint by its suffix, or a folder in which a run was started or
    that has the weights of one.
    """
    from engine.paths import exists
    from engine.run_files import WEIGHTS_FILE
    from engine.run_folder import contains_run

    def is_run(path: Path) -> bool:
        is_weights = path.suffix in (".safetensors", ".pt")
        return is_weights or contains_run(path) or exists(path / WEIGHTS_FILE)

    more = list(takewhile(is_run, inputs[1:]))
    return [*inputs[:1], *more], list(inputs[1 + len(more) :])
