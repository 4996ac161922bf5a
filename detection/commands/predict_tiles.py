"""Options of the command `predict` for large images: `--tile` and `--overlap`."""

import argparse
import re
from itertools import count
from typing import TYPE_CHECKING, Any

from engine.errors import UserError

if TYPE_CHECKING:
    from detection.predict import Detector, Predictor
    from engine.log import RunLog


def add_tile_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument(
        "--tile",
        type=_sides,
        metavar="PIXELS",
        help="predict larger images in tiles of this side (or HEIGHTxWIDTH), each resized as an "
        "image, and on the whole image for what no tile holds",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="FRACTION",
        help="overlap of neighbouring tiles, at least the size of most objects (default: 0.2)",
    )


def in_tiles(detector: "Detector", arguments: argparse.Namespace, *, log: "RunLog") -> "Predictor":
    """Return the detector, or one that predicts on tiles if the command line asks for it.

    Args:
        detector: predicts on images and tiles.
        arguments: with the options of `add_tile_options`.
        log: shows the number of tiles of each image that is cut.

    Raises:
        UserError: a value is out of range, or there is an overlap without tiles.
    """
    if arguments.tile is None:
        if arguments.overlap is not None:
            raise UserError("--overlap: expected --tile too")
        return detector
    from detection.commands.predict_files import MAX_NAMED
    from detection.tiled import TiledDetector

    numbers = count(1)

    def note(line: str) -> None:
        number = next(numbers)
        if number <= MAX_NAMED:
            log.note(line)
        if number == MAX_NAMED:
            log.note("tiles of further images are not listed")

    overlap = _overlap_of(arguments)
    return TiledDetector(detector, tile=arguments.tile, overlap=overlap, on_cut=note)


def tile_job(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what must be the same for a prediction to be resumed: tile and overlap, or None."""
    if arguments.tile is None:
        return {"tile": None, "overlap": None}
    return {"tile": list(arguments.tile), "overlap": _overlap_of(arguments)}


def _overlap_of(arguments: argparse.Namespace) -> float:
    from detection.tiled import OVERLAP

    return OVERLAP if arguments.overlap is None else arguments.overlap


def _sides(text: str) -> tuple[int, int]:
    """Return (height, width) of `480` or `480x640`."""
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected PIXELS or HEIGHTxWIDTH, got {text}")
    return int(match[1]), int(match[2] or match[1])
