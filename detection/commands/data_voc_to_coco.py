"""Command `data voc-to-coco`: convert PASCAL VOC's layout, or a folder of such XML, to COCO JSON.

Usage: resdet data voc-to-coco ROOT (--sets SET ... | --xml DIR) --output OUT.json
"""

from pathlib import Path

from detection.commands.data_from_xml import add_xml_options, convert_xml
from engine.cli import CommandParser


def main() -> None:
    """Parse the command line, then convert."""
    parser = CommandParser(
        description="Convert PASCAL VOC's layout, or a folder of such XML files, to COCO JSON."
    )
    parser.add_argument("--xml", help="in place of --sets: a folder of XML files, relative to ROOT")
    parser.add_argument(
        "--images", "--pictures", help="with --xml: folder of images (default: the XML folder)"
    )
    parser.add_argument(
        "--list", type=Path, help="with --xml: file with the names of the images (default: all)"
    )
    parser.add_argument(
        "--names",
        type=Path,
        help="file with one class per line (default: VOC's classes; with --xml: all that occur)",
    )
    add_xml_options(parser, boxes=None, example="VOC2007/trainval", sets_required=False)
    arguments = parser.parse_args()

    from detection.datasets import voc
    from engine.files import read_lines, refuse_existing

    refuse_existing(arguments.output, force=arguments.force)
    folders = {"xml": arguments.xml, "images": arguments.images, "names": arguments.list}
    sets = voc.find_sets(arguments.root, arguments.sets or (), **folders)
    # VOC's layout has VOC's classes by default; None takes all that occur
    classes = voc.number_classes(voc.VOC_CLASSES) if arguments.sets else None
    if arguments.names:
        classes = voc.number_classes(read_lines(arguments.names))
    convert_xml(arguments, sets, classes)
