"""Command `predict`: detect objects in image files, write detections.json and drawings.

Usage: resdet predict RUN_OR_CHECKPOINT ... IMAGE_OR_FOLDER ... [key=value ...] (tools/predict.py)
"""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from detection.commands.predict_tiles import add_tile_options, in_tiles
from engine.cli import CommandParser, split_arguments

MAX_NAMED = 20
"""Maximum number of failed images that the console names; there may be thousands."""


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(description="Detect objects; write detections.json and drawings.")
    parser.add_argument(
        "positional",
        nargs="+",
        metavar="RUN_OR_CHECKPOINT ... IMAGE_OR_FOLDER ... | key=value",
        help="run folder, checkpoint or .safetensors file (several form an ensemble), then images "
        "and folders of them; overrides of the run's config, such as model.roi.nms_thresh=0.3, "
        "anywhere",
    )
    parser.add_argument("--output", type=Path, default="predictions", help="default: %(default)s")
    parser.add_argument(
        "--score",
        type=float,
        help="minimum score of a detection (default: the run's model.roi.score_thresh, and "
        "evaluation.draw_score_thresh in drawings)",
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
    add_tile_options(parser)
    return parser


def main() -> None:
    """Parse the command line, predict, draw, and list the images that failed."""
    arguments = make_parser().parse_intermixed_args()
    inputs, overrides = split_arguments(arguments.positional)

    from engine.checkpoint import prepare_output
    from engine.errors import UserError
    from engine.run_folder import contains_run

    runs, images = _split_runs(inputs)
    if not images:
        raise UserError("command line: expected RUN_OR_CHECKPOINT and IMAGE_OR_FOLDER ...")
    if contains_run(arguments.output):
        raise UserError(f"--output: expected a folder for drawings, got a run: {arguments.output}")
    if arguments.score is not None and not 0 <= arguments.score <= 1:
        raise UserError(f"--score: expected a number from 0 to 1, got {arguments.score}")
    # --score is a short form of two overrides
    keys = ("model.roi.score_thresh", "evaluation.draw_score_thresh")
    overrides += [] if arguments.score is None else [f"{key}={arguments.score}" for key in keys]

    from backbones.images import bit_depth_note, quiet_opencv
    from detection.commands.predict_files import predict_files
    from detection.predict import find_images, load_detector
    from engine.distributed import pick_device
    from engine.kernels import kernels_note
    from engine.log import RunLog
    from engine.memory import keep_freed_memory

    quiet_opencv()
    if pick_device(arguments.device).type == "cpu":
        keep_freed_memory()
    detector = load_detector(
        runs,
        device=arguments.device,
        overrides=overrides,
        cuda_graphs=arguments.cuda_graphs,
    )
    # the output folder may be inside an input folder: do not predict on earlier drawings
    found = find_images(images, skip_folder=arguments.output)
    log = RunLog(None, is_main=True)
    predictor = in_tiles(detector, arguments, log=log)
    prepare_output(arguments.output)
    log.note(kernels_note())
    if len(runs) > 1:
        log.note(f"ensemble of {len(runs)} detectors, with the settings of {runs[0]}")
    if note := bit_depth_note(found.paths):
        log.note(note)
    written = predict_files(predictor, found.paths, arguments.output, log=log)
    if found.num_others:
        log.note(f"{found.num_others} files that are not images were skipped")
    bad = [f"skipped: {reason}" for reason in (*found.problems, *written.skipped)]
    bad += [f"not drawn: {reason}" for reason in written.not_drawn]
    for line in bad[:MAX_NAMED]:
        log.note(line)
    if len(bad) > MAX_NAMED:
        log.note(f"and {len(bad) - MAX_NAMED} more")
    log.note(f"{written.objects} objects in {written.images} images: {arguments.output}")
    if bad and not arguments.skip_bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
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
