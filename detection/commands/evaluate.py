"""Command `eval`: evaluate a trained model, or score a COCO results file.

Usage: resdet eval RUN_OR_CHECKPOINT | --results FILE.json [key=value ...] (tools/eval.py)
"""

from collections.abc import Sequence
from pathlib import Path

from engine.cli import CommandParser, split_arguments
from engine.errors import UserError


def main() -> None:
    """Parse the command line, then evaluate runs or a results file."""
    parser = CommandParser(description="Print a table of scores and write metrics.json.")
    parser.add_argument(
        "positional",
        nargs="*",
        metavar="RUN_OR_CHECKPOINT | key=value",
        help="run folder, checkpoint or .safetensors file (several classifiers, or several "
        "detectors, form an ensemble), then overrides of their configs",
    )
    parser.add_argument("--results", type=Path, help="COCO results file to score without a model")
    choice = parser.add_mutually_exclusive_group()
    named = "with --results: score only images with results (default: all images, as COCO does)"
    choice.add_argument("--named-images", action="store_true", help=named)
    all_images = "with --results: score all annotated images (the default)"
    choice.add_argument("--all-images", action="store_true", help=all_images)
    parser.add_argument(
        "--output",
        type=Path,
        help="folder for the files (default: RUN/eval; with --results none is written)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if available)")
    arguments = parser.parse_intermixed_args()
    runs, overrides = split_arguments(arguments.positional)
    # the two flags belong to --results
    flagged = arguments.named_images or arguments.all_images
    # either runs or --results: both or neither is an error
    if bool(runs) == (arguments.results is not None) or (runs and flagged):
        raise UserError(
            "command line: expected RUN_OR_CHECKPOINT or --results FILE.json [--named-images]"
        )
    _check_output(arguments.output, runs)
    if runs:
        _score_runs(runs, overrides, output=arguments.output, device=arguments.device)
    else:
        _score_file(arguments.results, overrides, arguments.output, arguments.named_images)


def _check_output(output: Path | None, runs: Sequence[Path]) -> None:
    """Raise UserError if the scores would replace those of another run."""
    from engine.paths import resolved
    from engine.run_folder import contains_run, run_folder_of

    own = {resolved(run_folder_of(run)) for run in runs}
    if output is not None and contains_run(output) and resolved(output) not in own:
        raise UserError(f"--output: expected a folder for scores, got another run: {output}")


def _score_runs(
    runs: Sequence[Path], overrides: Sequence[str], *, output: Path | None, device: str | None
) -> None:
    from detection.commands.tasks import load_task
    from engine.evaluate import evaluate
    from engine.log import make_console
    from engine.run_folder import run_folder_of

    task = load_task(runs, overrides)
    if len(runs) > 1:
        ensemble = (
            f"ensemble of {len(runs)} networks; data and test settings are those of {runs[0]}"
        )
        make_console().print(ensemble)
    evaluate(task, task.config, output=output or run_folder_of(runs[0]) / "eval", device=device)


def _score_file(path: Path, overrides: Sequence[str], output: Path | None, named: bool) -> None:
    from detection.config import SCHEMAS, DetectionConfig
    from engine.config import parse_config

    config = parse_config({}, overrides, schemas=SCHEMAS, source="command line")
    assert isinstance(config, DetectionConfig)
    annotations, rules = config.data.val.annotations, config.evaluation
    if not annotations:
        raise UserError("--results: expected data.val.annotations=PATH as well, got none")

    from detection.evaluation.coco_ap import score_file
    from engine.checkpoint import prepare_output
    from engine.log import make_console

    score = score_file(
        path, annotations, named_images=named, backend=rules.backend, protocols=rules.protocols
    )
    make_console().print(score.table(), soft_wrap=False)
    if output is not None:
        prepare_output(output)
        score.write(output)
