"""Command `data check`: find everything that is wrong with a COCO JSON; write a repaired copy.

Usage: resdet data check JSON [--images DIR] [--against OTHER.json] [--fix OUT.json] [key=value ...]
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detection.commands.config_files import TRAIN_FOLDERS, find_config
from detection.commands.data_inputs import add_workers, say_large, workers_of
from engine.cli import CommandParser, split_arguments
from engine.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from detection.datasets.check.network import NetworkView
    from detection.datasets.check.run import Report


def main() -> None:
    """Parse the command line, check, and print the findings."""
    parser = CommandParser(
        description="Find everything that is wrong with a COCO JSON, in one run. The file itself is"
        " never changed."
    )
    parser.add_argument(
        "positional",
        nargs="+",
        metavar="JSON | key=value",
        help="the COCO JSON, then overrides of the config such as data.eval_short_side=640",
    )
    parser.add_argument("--images", type=Path, help="folder of its images, which are all decoded")
    parser.add_argument("--against", type=Path, help="COCO JSON of another split")
    parser.add_argument("--against-images", type=Path, help="folder of the other split's images")
    parser.add_argument("--config", type=Path, help="for image size and anchors (default: schema)")
    parser.add_argument("--strict", action="store_true", help="exit 2 for an error or a warning")
    parser.add_argument("--fix", type=Path, metavar="OUT.json", help="write a repaired copy")
    parser.add_argument("--output", type=Path, metavar="REPORT.json", help="write the findings")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    add_workers(parser)
    arguments = parser.parse_intermixed_args()
    files, overrides = split_arguments(arguments.positional)
    if len(files) != 1:
        raise UserError(f"command line: expected one JSON, got {len(files)}")
    workers = workers_of(arguments)
    path, fix = files[0], arguments.fix
    _check_outputs(arguments, path)
    network = _network_view(arguments.config, overrides)

    from backbones.images import quiet_opencv
    from detection.datasets.check.repair import repair_columns
    from detection.datasets.check.run import Inputs, check_columns, read_inputs
    from engine.files import write_file
    from engine.log import RunLog, make_console

    quiet_opencv()
    log = RunLog(None, is_main=True)
    inputs = Inputs(path, arguments.images, arguments.against, arguments.against_images, workers)
    say_large(log, path, arguments.against)
    columns, context = read_inputs(inputs, network=network, log=log)
    report = check_columns(columns, context)
    notes = []
    if fix:
        report, changes = repair_columns(columns, report, context, note=log.note)
        columns.document.write(fix)
        lines = ",\n".join(json.dumps(line) for line in changes.lines)
        write_file(_changes_path(fix), f"[{lines}]\n")
        notes = [f"{fix}: repaired copy, {len(changes.lines)} changes, see {_changes_path(fix)}"]
    if arguments.output:
        write_file(arguments.output, json.dumps(report.as_json(), indent=1) + "\n")
    show = make_console(width=160).print
    if report.findings:
        show(_table_of(report, is_repaired=fix is not None), soft_wrap=False)
    show("\n".join([f"{path}: {report.summary()}", *notes]), highlight=False)
    counts = report.counts()
    if arguments.strict and counts["error"] + counts["warning"]:
        raise UserError(f"{path}: expected no errors and warnings (--strict), {report.summary()}")


def _changes_path(fix: Path) -> Path:
    return fix.with_name(f"{fix.stem}.changes.json")


def _check_outputs(arguments: argparse.Namespace, path: Path) -> None:
    """Create the folders of the files to write.

    Raises:
        UserError: a file to write is one of the inputs, or exists, or its folder is not writable.
    """
    from detection.datasets.coco_document import prepare_outputs
    from engine import paths

    outputs = [arguments.fix, arguments.fix and _changes_path(arguments.fix), arguments.output]
    given = [each for each in outputs if each is not None]
    if len({paths.resolved(each) for each in given}) < len(given):
        raise UserError("command line: expected another file for --output than for --fix")
    inputs = [each for each in (path, arguments.against) if each is not None]
    prepare_outputs(given, inputs, force=arguments.force)


def _network_view(config: Path | None, overrides: Sequence[str]) -> "NetworkView":
    """Return the sizes and anchors of a config, by default of the schema's defaults."""
    from detection.commands.schemas import SCHEMAS
    from detection.config import DetectionConfig
    from detection.datasets.check.network import NetworkView
    from engine.config import load_config, parse_config

    if config is None:
        found = parse_config({}, overrides, schemas=SCHEMAS, source="command line")
    else:
        found = load_config(find_config(config, TRAIN_FOLDERS), overrides, schemas=SCHEMAS)
    if not isinstance(found, DetectionConfig):
        raise UserError(f"{config}: expected a config of a detector, got {type(found).__name__}")
    return NetworkView.of(found)


def _table_of(report: "Report", *, is_repaired: bool) -> "Table":
    """Return the findings for the console: worst first, with examples and what to do."""
    from rich.table import Table

    table = Table("", "count", "finding, examples", "what to do", show_lines=True)
    table.columns[1].justify = "right"
    if is_repaired:
        table.add_column("repaired copy")
    for finding in report.findings:
        kind = finding.kind
        what = kind.what + (finding.detail and f": {finding.detail}")
        lines = [what, *(f"  {example}" for example in finding.examples)]
        cells = [kind.severity, str(finding.count), "\n".join(lines), kind.advice]
        table.add_row(*cells, *([finding.repaired] if is_repaired else []))
    return table
