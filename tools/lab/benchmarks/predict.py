"""Benchmark: the predict command on JPEGs: share of the network, memory, and files after kills."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import cv2
import torch

from backbones.images import images_in, read_image
from detection.commands import predict, predict_files
from detection.commands.predict_output import PARTIAL
from detection.config import DetectionConfig
from detection.inference.pipeline import InferencePipeline
from detection.models.build import build_faster_rcnn
from engine.checkpoint import write_safetensors
from engine.errors import UserError
from engine.paths import files_in, is_file, make_folder, read_bytes, read_text
from tools.lab import REPOSITORY
from tools.lab.benchmarks.images import coco128
from tools.lab.benchmarks.measure import Row
from tools.lab.benchmarks.settings import Settings

NUM_IMAGES = 2000
NUM_SLOW = 12
"""Images of the large network, which takes seconds for each."""
KILLS = 2
_POLL_S = 0.2
_PROGRAM = "from tools.lab.benchmarks.predict import run_timed; run_timed()"


@dataclass(frozen=True)
class Network:
    """A detector with FPN.

    short_side: of images at prediction. channels: of the pyramid. proposals: of an image.
    """

    kind: str
    short_side: int
    channels: int
    proposals: int

    def __str__(self) -> str:
        """Return its description in the table."""
        kind = self.kind.replace("resnet", "ResNet-")
        return f"{kind} FPN at {self.short_side} ({self.channels} channels, {self.proposals} RoIs)"


SMALL = Network("resnet18", 192, 64, 300)
LARGE = Network("resnet50", 800, 256, 1000)


def prediction(settings: Settings) -> list[Row]:
    """Measure the command with drawings and CSV, on `settings.images` images.

    The small network predicts on all of them: once without interruption, and once killed at random
    times and resumed. The large one predicts on the first few.
    """
    count = settings.images or (30 if settings.small else NUM_IMAGES)
    images = settings.folder / "images"
    write_images(images, count)
    settings.log(f"wrote {count} JPEGs")
    run = write_run(settings.folder / "small", SMALL)
    whole, killed = settings.folder / "whole", settings.folder / "killed"
    small = timed_run([str(run), str(images)], whole)
    settings.log(f"predicted on {count} images in {small.wall_s:.0f} s")
    done = kill_and_resume([str(run), str(images)], killed, count=count)
    settings.log(f"killed after {done} images, and resumed")
    names = files_in(whole) | files_in(killed)
    different = [name for name in sorted(names) if _content(whole, name) != _content(killed, name)]
    first, last = small.quarters()
    rows = [
        _busy_row(f"{SMALL}, {count} images", small, count),
        Row(
            f"{SMALL}, {count} images: peak memory, last quarter to first",
            last / first,
            "",
            1.05,
            1.0,
            True,
            f"{first:.0f} MB, then {last:.0f} MB",
        ),
        Row(
            f"killed after {' and '.join(map(str, done))} of {count} images: files that differ",
            len(different),
            "",
            0,
            None,
            True,
            f"of {len(names)}: detections.json, detections.csv, drawings",
        ),
    ]
    if not settings.small:
        few = [f"{images}/{name}" for name in images_in(images)[0][:NUM_SLOW]]
        run = write_run(settings.folder / "large", LARGE)
        large = timed_run([str(run), *few], settings.folder / "slow")
        rows.append(_busy_row(f"{LARGE}, {len(few)} images", large, len(few)))
    return rows


def _busy_row(what: str, run: "TimedRun", count: int) -> Row:
    detail = f"{run.busy_s:.1f} of {run.wall_s:.1f} s, {count / run.wall_s:.3g} images/s"
    share = 100 * run.busy_s / run.wall_s
    return Row(f"{what}: time in which the network runs", share, "%", 90, detail=detail)


def _content(folder: Path, name: str) -> bytes | None:
    return read_bytes(folder / name) if is_file(folder / name) else None


def write_images(folder: Path, count: int) -> None:
    """Write JPEGs of full size: coco128's images, mirrored and cut by a few pixels."""
    make_folder(folder)
    source = Path(str(coco128().images))
    names = images_in(source)[0]
    for number in range(count):
        turn, place = divmod(number, len(names))
        pixels = read_image(source / names[place])[turn:, turn:]
        pixels = pixels[:, ::-1] if turn % 2 else pixels
        cv2.imwrite(str(folder / f"{number:05}.jpg"), pixels[..., ::-1])


def write_run(folder: Path, network: Network) -> Path:
    """Write a run folder with random weights, whose scores differ as those of a trained one."""
    values = {
        "data": {
            "eval_short_side": network.short_side,
            "eval_max_side": network.short_side * 5 // 3,
        },
        "model": {
            "backbone": {"kind": network.kind},
            "neck": {"kind": "fpn", "channels": network.channels},
            "rpn": {"post_nms_topk_test": network.proposals},
        },
    }
    config = DetectionConfig.model_validate(values)
    torch.manual_seed(0)
    model = build_faster_rcnn(config.model, num_classes=80, size_divisor=config.data.size_divisor)
    with torch.no_grad():
        model.box_predictor.class_logits.weight *= 60
    metadata = {
        "task": "detection",
        "config": config.model_dump_json(),
        "class_names": json.dumps([f"class {number}" for number in range(80)]),
        "category_ids": json.dumps([*range(1, 81)]),
    }
    make_folder(folder)
    write_safetensors(folder / "model.safetensors", model.state_dict(), metadata)
    return folder


@dataclass(frozen=True)
class TimedRun:
    """A run of the command. busy_s: seconds in the network; wall_s: of the whole prediction.

    memory_mb: of the process (resident set), at equal intervals during the prediction.
    """

    busy_s: float
    wall_s: float
    memory_mb: Sequence[float]

    def quarters(self) -> tuple[float, float]:
        """Return the peaks of the memory in the first and the last quarter."""
        quarter = -(-len(self.memory_mb) // 4)
        return max(self.memory_mb[:quarter]), max(self.memory_mb[-quarter:])


def timed_run(inputs: Sequence[str], output: Path) -> TimedRun:
    """Run the command in a new process; measure its memory from outside."""
    path = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{_PROGRAM}"
    memory: list[float] = []
    with _started([sys.executable, "-c", path], inputs, output) as process:
        while process.poll() is None:
            time.sleep(_POLL_S)
            if is_file(output / PARTIAL):
                with suppress(UserError, IndexError):  # it has just ended
                    status = read_text(f"/proc/{process.pid}/status")
                    memory.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
        text, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"predict ended with exit code {process.returncode}")
    busy_s, wall_s = json.loads(text.splitlines()[-1])
    return TimedRun(busy_s, wall_s, memory)


def kill_and_resume(inputs: Sequence[str], output: Path, *, count: int) -> list[int]:
    """Run the command, kill it (SIGKILL) at random times and resume it each time, to the end.

    Returns:
        The number of images that were done at each kill.
    """
    rng = random.Random(0)
    command = [sys.executable, str(REPOSITORY / "tools" / "predict.py")]
    lines = output / PARTIAL
    done = []
    for number in range(KILLS):
        # in the first half, then in the second, while lines, drawings or nothing is written
        wanted = int(count * (number + rng.random()) / KILLS * 0.9)
        with _started(command, [*inputs, "--resume"], output) as process:
            while process.poll() is None and _num_lines(lines) <= wanted:
                time.sleep(_POLL_S / 4)
            time.sleep(rng.random() * _POLL_S)
            process.kill()
        done.append(max(0, _num_lines(lines) - 1))
    with _started(command, [*inputs, "--resume"], output) as process:
        process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"predict --resume ended with exit code {process.returncode}")
    return done


def _started(
    command: Sequence[str], inputs: Sequence[str], output: Path
) -> "subprocess.Popen[str]":
    options = ["--device", "cpu", "--format", "csv", "--output", str(output)]
    return subprocess.Popen([*command, *inputs, *options], stdout=subprocess.PIPE, text=True)


def _num_lines(path: Path) -> int:
    return read_bytes(path).count(b"\n") if is_file(path) else 0


def run_timed() -> None:
    """Run the predict command of `sys.argv`; print the seconds in the network and of it all."""
    seconds = {"network": 0.0, "all": 0.0}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return work(*arguments, **options)
            finally:
                seconds[name] += time.perf_counter() - start

        return call

    InferencePipeline.predict = timed("network", InferencePipeline.predict)  # type: ignore[method-assign]
    predict_files.predict_files = timed("all", predict_files.predict_files)
    predict.main()
    sys.stdout.write(f"\n{json.dumps([seconds['network'], seconds['all']])}\n")
