"""Command `data ilsvrc-to-coco`: convert ILSVRC's detection data set to COCO JSON.

Usage: resdet data ilsvrc-to-coco ROOT --sets SET ... --names FILE --output OUT.json
"""

from pathlib import Path

from detection.commands.data_from_xml import add_xml_options, convert_xml
from engine.cli import CommandParser


def main() -> None:
    """Parse the command line, then convert."""
    parser = CommandParser(description="Convert ILSVRC's detection data set to COCO JSON.")
    parser.add_argument(
        "--names", type=Path, required=True, help="map_det.txt, or a file of WNIDs and names"
    )
    parser.add_argument("--wnids", type=Path, help="file of the WNIDs to use (default: all)")
    # ILSVRC's box convention is known, VOC-like data sets differ
    add_xml_options(parser, boxes="corners", example="val", sets_required=True)
    arguments = parser.parse_args()

    from detection.datasets import ilsvrc
    from engine.files import refuse_existing

    refuse_existing(arguments.output, force=arguments.force)
    sets = [ilsvrc.ilsvrc_set(arguments.root, name) for name in arguments.sets]
    convert_xml(arguments, sets, ilsvrc.read_synsets(arguments.names, arguments.wnids))
