"""Command `data`: download public data sets, or convert data sets to COCO JSON.

Usage: resdet data {download,voc-to-coco,ilsvrc-to-coco} ... (tools/prepare_data.py)
"""

from pathlib import Path

from engine.cli import CommandParser


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(description="Download data sets, or convert data sets to COCO JSON.")
    commands = parser.add_subparsers(dest="command", required=True)
    download = commands.add_parser("download", help="download, check and unpack a data set")
    download.add_argument("name", choices=("coco", "voc2007", "voc2012", "cifar10"))
    download.add_argument("--root", type=Path, required=True, help="folder for its files")
    voc = commands.add_parser(
        "voc-to-coco", help="convert PASCAL VOC's layout, or a folder of such XML files"
    )
    voc.add_argument("--xml", help="in place of --sets: a folder of XML files, relative to ROOT")
    voc.add_argument(
        "--images", "--pictures", help="with --xml: folder of images (default: the XML folder)"
    )
    voc.add_argument(
        "--list", type=Path, help="with --xml: file with the names of the images (default: all)"
    )
    voc.add_argument(
        "--names",
        type=Path,
        help="file with one class per line (default: VOC's classes; with --xml: all that occur)",
    )
    ilsvrc = commands.add_parser("ilsvrc-to-coco", help="convert ILSVRC's detection data set")
    ilsvrc.add_argument(
        "--names", type=Path, required=True, help="map_det.txt, or a file of WNIDs and names"
    )
    ilsvrc.add_argument("--wnids", type=Path, help="file of the WNIDs to use (default: all)")
    # options of both conversions; ILSVRC's box convention is known, VOC-like data sets differ
    for command, boxes in ((voc, None), (ilsvrc, "corners")):
        command.add_argument("root", type=Path, help="folder to which file names are relative")
        example = "image sets, such as " + ("val" if command is ilsvrc else "VOC2007/trainval")
        command.add_argument("--sets", nargs="+", required=command is ilsvrc, help=example)
        command.add_argument("--output", type=Path, required=True, help="COCO JSON to write")
        command.add_argument("--force", action="store_true", help="overwrite an existing file")
        command.add_argument(
            "--boxes",
            choices=("pixels", "corners"),
            default=boxes,
            help="pixels: coordinates are the first and last pixel, counted from 1; corners: they "
            f"are the edges of the box (default: {boxes or 'detected from the boxes'})",
        )
        for flag in ("--on-bad-box", "--on-bad-image"):
            what = flag.removeprefix("--on-bad-")
            command.add_argument(
                flag,
                choices=("error", "skip"),
                default="error",
                help=f"stop at a bad {what}, or drop it (default: %(default)s)",
            )
    return parser


def main() -> None:
    """Parse the command line, then download or convert."""
    arguments = make_parser().parse_args()

    # imported here, so that --help and mistakes in the command line answer at once
    from engine.log import RunLog, make_console

    if arguments.command == "download":
        from detection.datasets.download import DATA_SETS, download

        download(DATA_SETS[arguments.name], arguments.root, RunLog(None, is_main=True))
        return

    from backbones.images import quiet_opencv
    from detection.datasets import ilsvrc, voc
    from detection.datasets.voc_to_coco import convert
    from engine.files import read_lines, refuse_existing

    quiet_opencv()
    refuse_existing(arguments.output, force=arguments.force)
    root, names = arguments.root, arguments.names
    # VOC's layout has VOC's classes by default; None takes all that occur
    classes = voc.number_classes(voc.VOC_CLASSES) if arguments.sets else None
    if arguments.command == "ilsvrc-to-coco":
        sets = [ilsvrc.ilsvrc_set(root, name) for name in arguments.sets]
        classes = ilsvrc.read_synsets(names, arguments.wnids)
    else:
        folders = {"xml": arguments.xml, "images": arguments.images, "names": arguments.list}
        sets = voc.find_sets(root, arguments.sets or (), **folders)
        classes = voc.number_classes(read_lines(names)) if names else classes
    policies = {"on_bad_box": arguments.on_bad_box, "on_bad_image": arguments.on_bad_image}
    log = RunLog(None, is_main=True)
    converted = convert(root, sets, classes=classes, boxes=arguments.boxes, log=log, **policies)
    converted.write(arguments.output)
    show = make_console().print
    show(converted.table(), soft_wrap=False)
    show("\n".join([*converted.lines(), f"{arguments.output}: file names are relative to {root}"]))
