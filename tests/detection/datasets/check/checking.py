"""A check and a repair of a document, as the command runs them."""

import json
from pathlib import Path
from typing import Any

from detection.config import DetectionConfig
from detection.datasets.check.changes import Changes
from detection.datasets.check.findings import Finding
from detection.datasets.check.network import NetworkView
from detection.datasets.check.repair import repair_columns
from detection.datasets.check.run import Inputs, Report, check_columns, read_inputs
from engine.log import RunLog

NETWORK = NetworkView.of(DetectionConfig())
QUIET = RunLog(None, is_main=False)


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def report_of(path: Path, **inputs: Any) -> Report:
    columns, context = read_inputs(Inputs(path, **inputs), network=NETWORK, log=QUIET)
    return check_columns(columns, context)


def findings_of(path: Path, **inputs: Any) -> dict[str, Finding]:
    return {finding.code: finding for finding in report_of(path, **inputs).findings}


def repair(path: Path, output: Path, **inputs: Any) -> tuple[Report, Changes]:
    columns, context = read_inputs(Inputs(path, **inputs), network=NETWORK, log=QUIET)
    report = check_columns(columns, context)
    report, changes = repair_columns(columns, report, context, note=QUIET.note)
    columns.document.write(output)
    return report, changes
