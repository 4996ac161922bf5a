"""Stages that run whole trainings with the project's commands, and read their logs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from tools.lab.gpu_check.record import (
    DATA,
    DEVICE,
    DRY,
    PRECISION,
    SCRATCH,
    note,
    overrides_of,
    save,
    split_overrides,
    wait_for_device,
)

RUNS = SCRATCH / "runs"
SPLITS = ("train", "val")
SMALL = {  # a dry run's network and images
    "model.backbone.kind": "resnet18",
    "data.augment.short_sides": "[128]",
    "data.augment.max_side": 160,
    "data.eval_short_side": 96,
    "data.eval_max_side": 128,
    "model.roi.num_samples": 16,
    "model.rpn.pre_nms_topk_train": 100,
    "model.rpn.post_nms_topk_train": 50,
    "model.rpn.pre_nms_topk_test": 50,
    "model.rpn.post_nms_topk_test": 10,
    "loop.log_every": 1,
    "loader.workers": 1,
}


def seconds_left(default: int) -> int:
    """Return the time limit of the stage in seconds, less a margin to write its results."""
    return int(os.environ.get("LIMIT", default)) - 5


def train(stage: str, arguments: list[str], *, limit: int, script: str = "train_det") -> Path:
    """Run a training command, save the numbers of its log, and return its run folder."""
    folder = RUNS / stage
    device = ["--device", "cpu"] if DRY else []
    command = [sys.executable, f"tools/{script}.py", *arguments, "--output", str(folder), *device]
    start = time.time()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        # the end of the output has the error; the log of all trainings stays readable
        code, text = str(done.returncode), done.stdout[-3000:] + done.stderr[-1500:]
    except subprocess.TimeoutExpired as error:
        code, text = "timeout", str(error.stdout or b"")[-2000:]
    # read the log even after a timeout or a failure: it has the steps until then
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rates = [
        (each["step"], round(each["images_per_second"], 1), round(each["data_wait"], 3))
        for each in lines
        if each["kind"] == "train"
    ]
    scores = [
        {key: round(value, 4) for key, value in each.items() if isinstance(value, float)}
        for each in lines
        if each["kind"] == "eval"
    ]
    seconds = round(time.time() - start, 1)
    save(stage, code=code, seconds=seconds, step_rate_wait=rates, evaluation=scores[-1:])
    note(f"\n===== {stage}\n{' '.join(command)}\n{text}", file="trainings.log")
    return folder


def coco_overrides(name: str) -> list[str]:
    """Return overrides for COCO's configs on coco128, with a file of random weights.

    The configs freeze the first stages, and frozen weights must come from a file.
    """
    from backbones.resnet import build_resnet

    # a file per stage, because stages may run at the same time
    kind = "resnet18" if DRY else "resnet101"
    weights = SCRATCH / f"{kind}_{name}.pth"
    torch.save(build_resnet(kind, num_classes=1000, norm="frozen").state_dict(), weights)
    images = DATA / "coco128/train2017"
    document = DATA / "coco128/annotations/instances_train2017.json"
    return overrides_of(
        {
            **split_overrides(dict.fromkeys(SPLITS, images), dict.fromkeys(SPLITS, document)),
            "data.on_bad_box": "skip",
            "data.cache": "false",
            "model.backbone.weights": weights,
        }
    )


def _documents(root: Path) -> dict[str, Path]:
    return {split: root / f"annotations/{split}.json" for split in SPLITS}


def train_on_jpegs(name: str) -> None:
    """Train for sixty steps on the JPEGs of coco128 with the loader, and evaluate."""
    steps = 4 if DRY else 60
    keys: dict[str, object] = {
        "loop.max_steps": steps,
        "loop.batch_size": 2 if DRY else 16,
        "loop.precision": PRECISION,
        "optim.lr": 0.0005,
        "loop.eval_every": 0,
        "loop.checkpoint_every": steps,
        "loop.log_every": 10,
        "loop.eval_batch_size": 8,
        "schedule.warmup_steps": 20,
        "loader.workers": 12,
        "optim.clip_grad_norm": 35.0,
        **(SMALL if DRY else {}),
    }
    config = f"configs/detection/faster_rcnn_r101_{name}_coco.yaml"
    arguments = [config, *coco_overrides(name), *overrides_of(keys)]
    train(f"train_{name}", arguments, limit=seconds_left(90))


def train_demo(precision: str) -> None:
    """Train the demo from random weights, to compare its score with that on a CPU."""
    root = SCRATCH / f"demo_{precision}"
    keys: dict[str, object] = {
        "loop.precision": precision,
        "loop.max_steps": 6 if DRY else 1000,
        "loop.eval_every": 0,
        "loader.workers": 3,
        "loop.log_every": 2 if DRY else 100,
        "data.demo.root": root,
        **split_overrides({split: root / split for split in SPLITS}, _documents(root)),
        **({"data.demo.num_train": 12, "data.demo.num_val": 6} if DRY else {}),
    }
    arguments = ["configs/detection/demo.yaml", *overrides_of(keys)]
    train(f"demo_{precision}", arguments, limit=seconds_left(150))


def train_blood_cells() -> None:
    """Train on BCCD with its config, and score the test split."""
    root, stage = DATA / "bccd", "bccd"
    keys: dict[str, object] = {
        "loader.workers": 4,
        **split_overrides(dict.fromkeys(SPLITS, root / "images"), _documents(root)),
    }
    if DRY:
        keys |= {"loop.max_steps": 4, "loop.eval_every": 0, "loop.batch_size": 2}
    arguments = ["configs/detection/bccd.yaml", *overrides_of(keys)]
    run = train(stage, arguments, limit=seconds_left(150))
    test, output = f"data.val.annotations={root}/annotations/test.json", RUNS / "bccd_test"
    arguments = [str(run), test, "--output", str(output), *(["--device", "cpu"] if DRY else [])]
    subprocess.run([sys.executable, "tools/eval.py", *arguments], capture_output=True, check=False)
    scores = output / "metrics.json"
    save(stage, test=json.loads(scores.read_text()) if scores.exists() else "no scores")


def train_cifar() -> None:
    """Train ResNet-20 on CIFAR-10 with the paper's recipe, as CUDA graphs.

    CIFAR_ROOT holds cifar-10-batches-py; CIFAR_STEPS are 64,000 unless set.
    """
    steps = int(os.environ.get("CIFAR_STEPS", "64000"))
    keys: dict[str, object] = {
        "data.root": os.environ["CIFAR_ROOT"],
        "loop.precision": PRECISION,
        "loop.max_steps": steps,
        "loop.eval_every": max(steps // 8, 1),
        "loop.log_every": max(steps // 64, 1),
        "schedule.milestones": "[0.5,0.75]",
    }
    if not DRY:
        keys |= {"loop.compile": "true", "loop.compile_mode": "reduce-overhead"}
    arguments = ["configs/backbones/resnet20_cifar10.yaml", *overrides_of(keys)]
    train("cifar", arguments, limit=seconds_left(600), script="pretrain_backbone")


def time_loader() -> None:
    """Time the input pipeline, from JPEG files to the device, without a network."""
    from detection.commands.schemas import SCHEMAS
    from detection.commands.tasks import build_task
    from engine.config import load_config
    from engine.loader import read_batches, split_batches, training_batches
    from engine.schema import LoaderConfig

    config_file = Path("configs/detection/faster_rcnn_r101_fpn_coco.yaml")
    small = ["model.backbone.kind=resnet18"] if DRY else []
    config = load_config(config_file, [*coco_overrides("loader"), *small], schemas=SCHEMAS)
    data = build_task(config).train_data()
    count = 2 if DRY else 16
    for workers in (1, 2) if DRY else (2, 4, 14):
        plan = training_batches(data.groups, batch_size=count, seed=0)
        parts = split_batches(data, plan, rank=0, world_size=1, accumulate=1)
        loader = LoaderConfig(workers=workers)
        batches = read_batches(data, parts, config=loader, device=DEVICE, substitute=True)
        for _ in range(2 if DRY else 2 * workers + 1):  # batches that were requested all at once
            next(batches)
        wait_for_device()
        # enough batches that the prefetched ones do not dominate
        timed, start = 4 if DRY else 2 * workers + 40, time.perf_counter()
        for _ in range(timed):
            next(batches)
        wait_for_device()
        rate = round(timed * count / (time.perf_counter() - start))
        save("loader", **{f"workers_{workers}_images_s": rate})
        batches.close()
