"""Command `data download`: download, check and unpack a public data set.

Usage: resdet data download {coco,voc2007,voc2012,cifar10} --root DIR
"""

from pathlib import Path

from engine.cli import CommandParser


def main() -> None:
    """Parse the command line, then download."""
    parser = CommandParser(description="Download, check and unpack a data set.")
    parser.add_argument("name", choices=("coco", "voc2007", "voc2012", "cifar10"))
    parser.add_argument("--root", type=Path, required=True, help="folder for its files")
    arguments = parser.parse_args()

    # imported here, so that --help and mistakes in the command line answer at once
    from detection.datasets.download import DATA_SETS, download
    from engine.log import RunLog

    download(DATA_SETS[arguments.name], arguments.root, RunLog(None, is_main=True))
