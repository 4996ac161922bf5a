"""Find objects in pictures: predict.py RUN_OR_CHECKPOINT IMAGE_OR_FOLDER ... [--output DIR]."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import CommandParser, run_command


def main() -> None:
    """Parse, load the detector, predict, draw."""
    parser = CommandParser(description="Write detections.json and drawn pictures to a folder.")
    parser.add_argument("run", help="a run folder, a checkpoint or a .safetensors file")
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--output", type=Path, default="predictions", help="default: %(default)s")
    parser.add_argument(
        "--score",
        type=float,
        help="leave out what scores less (default: the run's model.roi.score_thresh, and its "
        "evaluation.draw_score_thresh in pictures)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="name damaged pictures and go on")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU when there is one)")
    arguments = parser.parse_intermixed_args()

    from backbones.pictures import read_image
    from detection.data.coco import ClassMap, detections_to_coco
    from detection.predict import find_pictures, load_detector
    from detection.visualize import draw_detections, free_paths, write_picture
    from engine.checkpoint import prepare_output
    from engine.errors import UserError
    from engine.files import write_file
    from engine.log import RunLog
    from engine.run_folder import holds_run

    if holds_run(arguments.output):
        raise UserError(f"--output: expected a folder for drawings, got a run: {arguments.output}")
    if arguments.score is not None and not 0 <= arguments.score <= 1:
        raise UserError(f"--score: expected a number from 0 to 1, got {arguments.score}")
    keys = ("model.roi.score_thresh", "evaluation.draw_score_thresh")
    overrides = [] if arguments.score is None else [f"{key}={arguments.score}" for key in keys]
    detector = load_detector(arguments.run, device=arguments.device, overrides=overrides)
    paths, num_others = find_pictures(arguments.inputs, apart_from=arguments.output)
    prepare_output(arguments.output)
    # beside earlier detections pictures are taken for their drawings, and replaced
    earlier = (arguments.output / "detections.json").exists()
    drawings = free_paths(paths, arguments.output, replace=earlier)
    classes = ClassMap(detector.class_names, detector.category_ids)
    log = RunLog(None, is_main=True)
    entries = []
    bad: list[str] = []
    stream = detector.stream(paths, on_bad=bad.append if arguments.skip_bad else None)
    for index, found in log.progress(stream, len(paths), "predicting"):
        names = [detector.class_names[label] for label in found.labels.tolist()]
        results = detections_to_coco(index, found, classes)
        entries += [
            {"file_name": str(paths[index]), "category_name": name, **result}
            for name, result in zip(names, results, strict=True)
        ]
        drawing = draw_detections(
            read_image(paths[index]),
            found,
            class_names=detector.class_names,
            score_thresh=detector.config.evaluation.draw_score_thresh,
        )
        write_picture(drawings[index], drawing)
    entries.sort(key=lambda entry: entry["image_id"])
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    write_file(arguments.output / "detections.json", f"[{lines}]\n")
    if num_others:
        log.note(f"{num_others} files that are no pictures were left out")
    for reason in bad:
        log.note(f"left out: {reason}")
    log.note(f"{len(entries)} objects in {len(paths) - len(bad)} pictures: {arguments.output}")


if __name__ == "__main__":
    run_command(main)
