"""Train a detector: train_det.py [CONFIG] [key=value ...] [--output DIR] [--resume]."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import run_command, split_words
from engine.errors import UserError

DEMO = Path(__file__).resolve().parent.parent / "configs" / "detection" / "demo.yaml"


def main() -> None:
    """Parse, load the config, train."""
    parser = argparse.ArgumentParser(description="Train a detector; on many GPUs with torchrun.")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value",
        help="a YAML file (default: the demo's), then changes to it such as optim.lr=0.01",
    )
    parser.add_argument("--output", type=Path, help="run folder (default: runs/<name of CONFIG>)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU when there is one)")
    arguments = parser.parse_intermixed_args()
    files, overrides = split_words(arguments.words)
    if len(files) > 1:
        raise UserError(f"command line: expected one config, got {files[0]} and {files[1]}")
    config_path = files[0] if files else DEMO
    output = arguments.output or Path("runs") / config_path.stem
    if arguments.resume and not files and (output / "config.yaml").is_file():
        config_path = output / "config.yaml"

    from detection.config import SCHEMAS
    from engine.config import load_config

    config = load_config(config_path, overrides, schemas=SCHEMAS)
    if arguments.resume and not list(output.glob("checkpoints/step_*.pt")):
        raise UserError(f"--resume: expected checkpoints in {output / 'checkpoints'}, got none")

    from detection.evaluation.report import write_curves
    from detection.tasks import build_task
    from engine.log import RunLog
    from engine.trainer import fit

    task = build_task(config)
    is_main = os.environ.get("RANK", "0") == "0"  # torchrun's; the processes meet in fit
    if is_main and not arguments.resume and (aside := _move_aside(output)):
        RunLog(None, is_main=True).note(f"{output}: the run that lay there is now {aside}")
    fit(task, config, output=output, resume=arguments.resume, device=arguments.device)
    if is_main:
        write_curves(output)


def _move_aside(output: Path) -> Path | None:
    """Move an earlier run to the next free of `output`.1, .2 ... and return it; None: no run."""
    if not any((output / name).exists() for name in ("config.yaml", "checkpoints")):
        return None
    number = 1
    while (aside := output.with_name(f"{output.name}.{number}")).exists():
        number += 1
    return output.rename(aside)


if __name__ == "__main__":
    run_command(main)
