"""Fetch data sets, and write others as COCO JSON: prepare_data.py COMMAND --help."""

from pathlib import Path

from engine.cli import CommandParser


def make_parser() -> CommandParser:
    """Return the parser of the command line."""
    parser = CommandParser(description="Fetch data sets, or write others as COCO JSON.")
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("download", help="fetch, check and unpack what is missing")
    fetch.add_argument("name", choices=("coco", "voc2007", "voc2012", "cifar10"))
    fetch.add_argument("--root", type=Path, required=True, help="folder for it")
    voc = commands.add_parser("voc-to-coco", help="PASCAL VOC's layout, or a folder of such XML")
    voc.add_argument("--xml", help="in place of --sets: a folder of XML files, relative to ROOT")
    voc.add_argument("--pictures", help="with --xml: folder of pictures (default: the same)")
    voc.add_argument("--list", type=Path, help="with --xml: names of the pictures (default: all)")
    voc.add_argument("--names", type=Path, help="a class a line (default: VOC's; --xml: all)")
    ilsvrc = commands.add_parser("ilsvrc-to-coco", help="ILSVRC's detection data")
    ilsvrc.add_argument("--names", type=Path, required=True, help="map_det.txt, or WNIDs and words")
    ilsvrc.add_argument("--wnids", type=Path, help="those of --names that are classes")
    for command, boxes in ((voc, None), (ilsvrc, "corners")):
        command.add_argument("root", type=Path, help="folder to which file names are relative")
        example = "such as val" if command is ilsvrc else "such as VOC2007/trainval"
        command.add_argument("--sets", nargs="+", required=command is ilsvrc, help=example)
        command.add_argument("--output", type=Path, required=True, help="COCO JSON to write")
        command.add_argument("--force", action="store_true", help="replace it where it exists")
        command.add_argument(
            "--boxes",
            choices=("pixels", "corners"),
            default=boxes,
            help="numbers are first and last pixel, from 1, or edges"
            f" (default: {boxes or 'what the boxes tell'})",
        )
        for flag in ("--on-bad-box", "--on-bad-image"):
            command.add_argument(flag, choices=("error", "skip"), default="error")
    return parser


def main() -> None:
    """Parse, then fetch or convert."""
    arguments = make_parser().parse_args()

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
    classes = voc.number_classes(voc.VOC_CLASSES) if arguments.sets else None
    if arguments.command == "ilsvrc-to-coco":
        sets = [ilsvrc.ilsvrc_set(root, name) for name in arguments.sets]
        classes = ilsvrc.read_synsets(names, arguments.wnids)
    else:
        folders = {"xml": arguments.xml, "pictures": arguments.pictures, "names": arguments.list}
        sets = voc.find_sets(root, arguments.sets or (), **folders)
        classes = voc.number_classes(read_lines(names)) if names else classes
    policies = {"on_bad_box": arguments.on_bad_box, "on_bad_image": arguments.on_bad_image}
    log = RunLog(None, is_main=True)
    converted = convert(root, sets, classes=classes, boxes=arguments.boxes, log=log, **policies)
    converted.write(arguments.output)
    show = make_console().print
    show(converted.table(), soft_wrap=False)
    show("\n".join([*converted.lines(), f"{arguments.output}: file names are relative to {root}"]))
