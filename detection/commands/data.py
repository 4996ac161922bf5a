"""Command `data`: tools for COCO JSON files and other data sets, one module for each subcommand.

Usage: resdet data COMMAND ... (tools/prepare_data.py)
"""

import sys

from detection.commands.subcommands import run_subcommand

COMMANDS = {
    "check": ("detection.commands.data_check", "find what is wrong in a COCO JSON; repair a copy"),
    "stats": ("detection.commands.data_stats", "print and plot what a COCO JSON contains"),
    "show": ("detection.commands.data_show", "draw annotations, and contact sheets by class"),
    "split": ("detection.commands.data_split", "divide a COCO JSON, stratified and grouped"),
    "merge": ("detection.commands.data_merge", "merge several COCO JSON files"),
    "convert": (
        "detection.commands.data_convert",
        "convert annotations of labelling tools to COCO JSON, and back",
    ),
    "voc-to-coco": (
        "detection.commands.data_voc_to_coco",
        "convert PASCAL VOC's layout, or a folder of such XML files, to COCO JSON",
    ),
    "ilsvrc-to-coco": (
        "detection.commands.data_ilsvrc_to_coco",
        "convert ILSVRC's detection data set to COCO JSON",
    ),
    "pack": (
        "detection.commands.data_pack",
        "write a copy of an image folder with smaller files, for fast pretraining",
    ),
    "download": ("detection.commands.data_download", "download, check and unpack a data set"),
}
"""For each subcommand, the module with its `main`, and a description."""


def main() -> None:
    """Run the subcommand given on the command line."""
    # `resdet data` as main.py names this command, or the script's own name
    run_subcommand(sys.argv[0], COMMANDS)
