"""Score a detector, or a COCO results file: eval.py RUN_OR_CHECKPOINT | --results FILE.json."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import run_command, split_words
from engine.errors import UserError


def main() -> None:
    """Parse, then score the one or the other."""
    parser = argparse.ArgumentParser(description="Print the mAP table and write metrics.json.")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN_OR_CHECKPOINT | key=value",
        help="a run folder, a checkpoint or a .safetensors file, then changes to its config",
    )
    parser.add_argument("--results", type=Path, help="COCO results file to score; no model needed")
    parser.add_argument(
        "--all-images",
        action="store_true",
        help="with --results: score all annotated pictures (default: those that FILE names)",
    )
    parser.add_argument("--output", type=Path, help="folder for the files (default: RUN/eval)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU when there is one)")
    arguments = parser.parse_intermixed_args()
    runs, overrides = split_words(arguments.words)
    if len(runs) != (arguments.results is None):
        raise UserError("command line: expected one RUN_OR_CHECKPOINT, or --results FILE.json")
    if runs:
        _score_run(runs[0], overrides, output=arguments.output, device=arguments.device)
    else:
        more = {"output": arguments.output, "all_images": arguments.all_images}
        _score_file(arguments.results, overrides, **more)


def _score_run(run: Path, overrides: Sequence[str], *, output: Path | None, device: str) -> None:
    from detection.predict import load_trained
    from detection.tasks.detection import DetectionTask
    from engine.evaluate import evaluate

    trained = load_trained(run, overrides)
    task = DetectionTask(trained.config, trained.model, trained.classes)
    folder = run if run.is_dir() else run.parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    evaluate(task, trained.config, output=output or folder / "eval", device=device)


def _score_file(
    path: Path, overrides: Sequence[str], *, output: Path | None, all_images: bool
) -> None:
    from detection.config import SCHEMAS, DetectionConfig
    from engine.config import apply_overrides, parse_config

    config = parse_config(apply_overrides({}, overrides), schemas=SCHEMAS, source="command line")
    assert isinstance(config, DetectionConfig)
    if not config.data.val.annotations:
        raise UserError("--results: expected data.val.annotations=PATH beside it, got none")

    from detection.evaluation.coco_ap import score_file
    from engine.checkpoint import prepare_output
    from engine.log import make_console

    score = score_file(path, config.data.val.annotations, all_images=all_images)
    make_console().print(score.table(), soft_wrap=False)
    if output is not None:
        prepare_output(output)
        score.write(output)


if __name__ == "__main__":
    run_command(main)
