"""Command `report`: write why a score is what it is, as one HTML page and as JSON.

Usage: resdet report RUN_OR_RESULTS [key=value ...] [--output DIR] (tools/report.py)
"""

import json
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli import CommandParser, command_line, split_arguments
from engine.errors import UserError
from engine.run_files import CONFIG_FILE, DETECTIONS_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from detection.config import DetectionConfig
    from detection.evaluation.ground_truth import GroundTruth
    from detection.report.detection_report import Report
    from engine.log import RunLog

PAGE, NUMBERS = "report.html", "report.json"
MOST_IMAGES_ON_CPU = 200
"""A detector's first stage takes about a second for an image of 800 pixels on two cores."""


def main() -> None:
    """Parse the command line, analyse, write the page and the numbers."""
    parser = CommandParser(
        description="Write report.html, one file that needs no network, and report.json: scores "
        "by class, where they are lost, and images to look at."
    )
    parser.add_argument(
        "positional",
        nargs="*",
        metavar="RUN_OR_RESULTS | key=value",
        help="a run folder or a COCO results file, then overrides of the run's config, such as "
        "data.val.annotations=PATH and data.val.images=DIR (needed for a results file)",
    )
    parser.add_argument("--results", type=Path, help="a COCO results file, without a model")
    parser.add_argument(
        "--named-images",
        action="store_true",
        help="score only images with results (default: all annotated images, as COCO does)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RUN_OR_RESULTS",
        help="another run or results file of the same images: adds the paired difference",
    )
    parser.add_argument(
        "--proposals",
        action=BooleanOptionalAction,
        help="run the detector's first stage over all images and add the recall of its proposals "
        f"(default: of a run with images, on a GPU or for up to {MOST_IMAGES_ON_CPU} images)",
    )
    parser.add_argument(
        "--output", type=Path, help="folder (default: RUN, or the folder of the results file)"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N, where a network has to run")
    arguments = parser.parse_intermixed_args()
    paths, overrides = split_arguments(arguments.positional)
    given = [*paths, *([arguments.results] if arguments.results else [])]
    if len(given) != 1:
        raise UserError(
            "command line: expected one run folder or one results file, got "
            f"{len(given)}: {', '.join(map(str, given)) or 'none'}"
        )

    from backbones.images import quiet_opencv
    from engine.log import RunLog
    from engine.paths import is_file

    quiet_opencv()
    log = RunLog(None, is_main=True)
    path = given[0]
    if arguments.results or is_file(path):
        _report_results(path, overrides, arguments, log)
    else:
        _report_run(path, overrides, arguments, log)


def _report_results(
    path: Path, overrides: Sequence[str], arguments: Namespace, log: "RunLog"
) -> None:
    from detection.config import SCHEMAS, DetectionConfig
    from engine.config import parse_config

    config = parse_config({}, overrides, schemas=SCHEMAS, source="command line")
    assert isinstance(config, DetectionConfig)
    if not config.data.val.annotations:
        raise UserError(
            f"{path}: expected data.val.annotations=PATH as well, the COCO JSON that the results "
            "are scored against, got none"
        )
    _report_detection(path, config, None, overrides, arguments, log)


def _report_run(run: Path, overrides: Sequence[str], arguments: Namespace, log: "RunLog") -> None:
    from detection.commands.schemas import ALL_SCHEMAS
    from detection.config import DetectionConfig
    from engine.config import load_config
    from engine.paths import is_file, require_folder

    require_folder(run, "a run folder or a COCO results file")
    if not is_file(run / CONFIG_FILE):
        raise UserError(f"{run}: expected a run folder with config.yaml, got one without")
    config = load_config(run / CONFIG_FILE, overrides, schemas=ALL_SCHEMAS)
    if isinstance(config, DetectionConfig):
        _report_detection(_results_of(run), config, run, overrides, arguments, log)
        return
    for flag in ("against", "proposals", "named_images"):
        if getattr(arguments, flag):
            raise UserError(
                f"--{flag.replace('_', '-')}: expected a detector's run, got another task's"
            )

    from detection.commands.report_runs import report_on_network
    from engine.checkpoint import prepare_output

    prepare_output(arguments.output or run)
    report = report_on_network(run, overrides, device=arguments.device, log=log)
    _write(arguments.output or run, report, f"Report: {run}", {}, run, log)


def _results_of(path: Path) -> Path:
    """Return the results file of a run folder, or the path itself if it is a file."""
    from engine.paths import exists, is_file

    results = path if is_file(path) else path / DETECTIONS_FILE
    if not exists(results):
        raise UserError(
            f"{results}: expected the detections of a finished run, got none; "
            f"{command_line('eval', 'eval')} {path} --output {path} writes them"
        )
    return results


def _report_detection(
    results: Path,
    config: "DetectionConfig",
    run: Path | None,
    overrides: Sequence[str],
    arguments: Namespace,
    log: "RunLog",
) -> None:
    from detection.report.detection_report import detection_report
    from detection.report.inputs import read_scored
    from engine.checkpoint import prepare_output

    output = arguments.output or run or results.parent
    prepare_output(output)
    split = config.data.val
    title, annotations = str(run or results), Path(split.annotations)
    files = {"results": results, "annotations": annotations}
    against, proposals = None, None
    if arguments.against:
        files["compared with"] = _results_of(arguments.against)
        against = read_scored(files["compared with"], annotations)
    scored = read_scored(results, annotations, named_images=arguments.named_images)
    num_images = len(scored.ground_truth.image_ids)
    if _wants_proposals(arguments, config, run, log, num_images=num_images):
        proposals = _proposals(run, overrides, scored.ground_truth, arguments.device, log)
    report = detection_report(
        scored,
        image_folder=split.images,
        progress=log.progress,
        proposals=proposals,
        against=against,
        names=(title, str(arguments.against)),
    )
    _write(output, report, f"Report: {title}", files, run, log)


def _wants_proposals(
    arguments: Namespace,
    config: "DetectionConfig",
    run: Path | None,
    log: "RunLog",
    *,
    num_images: int,
) -> bool:
    """Return whether to find proposals: as asked, else if there is a network and it is cheap."""
    from engine.distributed import pick_device
    from engine.paths import is_file, is_folder

    if arguments.proposals is not None or run is None:
        return bool(arguments.proposals)
    images = config.data.val.images
    if not is_file(run / WEIGHTS_FILE) or not images or not is_folder(images):
        log.note("recall of proposals: skipped, because the run's weights or images are not there")
        return False
    if pick_device(arguments.device).type == "cpu" and num_images > MOST_IMAGES_ON_CPU:
        log.note(f"recall of proposals: skipped for {num_images} images; --proposals finds them")
        return False
    return True


def _proposals(
    run: Path | None,
    overrides: Sequence[str],
    ground_truth: "GroundTruth",
    device: str | None,
    log: "RunLog",
) -> dict[str, Any]:
    from detection.commands.report_runs import recall_of_proposals
    from engine.distributed import pick_device

    if run is None:
        raise UserError("--proposals: expected a run folder with a model, got a results file")
    place = pick_device(device)
    return recall_of_proposals(run, overrides, ground_truth, device=place, log=log)


def _write(
    output: Path,
    report: "Report",
    title: str,
    files: Mapping[str, Path],
    run: Path | None,
    log: "RunLog",
) -> None:
    from detection.report.markup import plain
    from detection.report.origin import (
        origin,
        origin_section,
        read_config_text,
        read_curves,
        training_section,
    )
    from detection.report.page import page
    from engine.files import write_file
    from engine.provenance import read_starts

    source = origin(files)
    curves = read_curves(run) if run else {}
    config = read_config_text(run) if run else None
    starts = read_starts(run) if run else []
    numbers = {
        **{"title": title, **report.numbers, "origin": source},
        **{"training": curves, "training_starts": starts},
    }
    text = json.dumps(plain(numbers), ensure_ascii=True, allow_nan=False)
    sections = [*report.sections, training_section(curves), origin_section(source, config, starts)]
    lead = ", ".join(f"{name} {path}" for name, path in files.items())
    write_file(output / NUMBERS, f"{text}\n")
    write_file(output / PAGE, page(title, lead, sections))
    log.note(f"wrote {output / PAGE} and {output / NUMBERS}")
