"""Command `export`: write a trained model to a file that runs without this repository.

Usage: resdet export RUN_OR_CHECKPOINT [--format onnx|torch|aoti] [key=value ...] (tools/export.py)

The file is written only if its results on images agree with the model's; otherwise exit code 4.
"""

import signal
from pathlib import Path

from engine.cli import CommandParser, split_arguments
from engine.errors import UserError

FORMATS = ("onnx", "torch", "aoti")
NUM_IMAGES = 8
"""Images that a file is compared on."""


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(description="Write a trained model to a file that runs on its own.")
    parser.add_argument(
        "positional",
        nargs="+",
        metavar="RUN_OR_CHECKPOINT | key=value",
        help="run folder, checkpoint or .safetensors file; overrides of the run's config, such as "
        "model.roi.score_thresh=0.3, become part of the file",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="onnx (default); torch: a torch.export program; aoti: compiled for this processor by "
        "AOTInductor, which needs a C++ compiler",
    )
    parser.add_argument("--output", type=Path, help="default: in the run, by format and precision")
    parser.add_argument(
        "--batch", default="dynamic", help="images in a batch; dynamic (default): any number"
    )
    parser.add_argument(
        "--size",
        metavar="HEIGHTxWIDTH",
        help="size of all images, such as 480x640 (default: any); aoti needs it and --batch",
    )
    parser.add_argument(
        "--masks",
        choices=("pasted", "cells"),
        default="pasted",
        help="masks of whole images (default), or probabilities over the boxes, 28 x 28",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="the network alone: no resizing, normalisation, final NMS, thresholds and masks",
    )
    parser.add_argument(
        "--images",
        type=Path,
        help="folder of images to compare on (default: the run's validation images, or drawn ones)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "half", "int8"),
        default="fp32",
        help="of the network's layers, with --format onnx: float32 (default), float16, or 8-bit "
        "integers with the ranges of the run's training images",
    )
    parser.add_argument(
        "--ap",
        action="store_true",
        help="measure the AP of the file on the run's validation images, and write the detections",
    )
    parser.add_argument("--license", help="text for the file's metadata")
    return parser


def main() -> None:
    """Parse the command line, export, compare."""
    arguments = make_parser().parse_intermixed_args()
    paths, overrides = split_arguments(arguments.positional)
    # SIGTERM ends the command as Ctrl-C does: without its temporary files
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if len(paths) != 1:
        raise UserError(f"command line: expected one RUN_OR_CHECKPOINT, got {len(paths)}")
    batch, size = _batch_size(arguments.batch), _image_size(arguments.size)
    if arguments.format == "aoti" and (batch is None or size is None):
        raise UserError("--format aoti: expected --batch N and --size HEIGHTxWIDTH as well")
    if arguments.ap and (size is not None or arguments.raw):
        raise UserError("--ap: expected a file without --size and --raw")
    if arguments.precision != "fp32" and arguments.format != "onnx":
        raise UserError(f"--precision {arguments.precision}: expected --format onnx")
    if arguments.raw and arguments.precision == "int8":
        raise UserError("--precision int8: expected a file without --raw")

    from backbones.images import quiet_opencv
    from detection.export import files
    from detection.export.loading import load_for_export
    from detection.export.run_images import run_images
    from engine.checkpoint import prepare_output
    from engine.log import RunLog
    from engine.paths import is_folder
    from engine.run_folder import run_folder_of

    chosen = files.FORMATS[arguments.format]
    files.check_packages(arguments.format)
    name = Path(chosen.file_name)
    if arguments.precision != "fp32":
        name = name.with_stem(f"{name.stem}_{arguments.precision}")
    output = arguments.output or run_folder_of(paths[0]) / name
    suffix = name.suffix
    if output.suffix != suffix:
        raise UserError(f"--output: expected a name that ends in {suffix}, got {output}")
    if is_folder(output):
        raise UserError(f"--output: expected a file, got the folder {output}")
    quiet_opencv()
    log = RunLog(None, is_main=True)
    model, metadata = load_for_export(paths[0], overrides, masks=arguments.masks, raw=arguments.raw)
    if arguments.license:
        metadata["license"] = arguments.license
    images, origin = run_images(arguments.images, model.config, split="val", count=NUM_IMAGES)
    log.note(f"to be compared on {origin}")
    prepare_output(output.parent)
    options = files.ExportOptions(
        arguments.format, batch, size, precision=arguments.precision, with_ap=arguments.ap
    )
    files.write_proved(model, output, options, metadata=metadata, images=images, log=log)
    if arguments.format == "onnx" and not arguments.raw:
        log.note(files.copy_script(output.parent))


def _batch_size(text: str) -> int | None:
    """Return the value of `--batch`; None for dynamic."""
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch: expected dynamic or a number of at least 1, got {text}")
    return int(text)


def _image_size(text: str | None) -> tuple[int, int] | None:
    """Return the value of `--size`."""
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UserError(f"--size: expected HEIGHTxWIDTH in pixels, such as 480x640, got {text}")
    return int(sides[0]), int(sides[1])
