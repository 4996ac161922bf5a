"""Run under torchrun by test_processes.py: one training step's gradients, or an evaluation."""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from detection.tasks.detection import DetectionTask
from engine.distributed import World, process_group
from engine.evaluate import run_evaluation
from engine.loader import SampleKey, split_batches
from engine.log import RunLog
from engine.step import wrap_losses
from tests.detection.tasks.tiny import NECKS, tiny_config


def gradients(root: Path, neck: str, world: World) -> dict[str, Tensor | None]:
    """Return this process's gradients of one global batch of four images, after averaging."""
    config = tiny_config(root, neck=neck)
    task = DetectionTask.for_training(config)
    data = task.train_data()
    plan = [[SampleKey(index, 100 + index) for index in range(4)]]
    share = {"rank": world.rank, "world_size": world.size, "accumulate": 1}
    (mine,) = split_batches(data, plan, **share)
    samples = [data.load(key.index, key.seed, mine.batch_shape) for key in mine.sample_keys]
    batch = data.collate(samples, mine.batch_shape)
    losses_of = wrap_losses(task, config.loop, world)
    torch.stack(list(losses_of(batch).values())).sum().backward()
    return {name: parameter.grad for name, parameter in task.model.named_parameters()}


def main(what: str, root: str, output: str, *settings: str) -> None:
    """Write gradients by neck (`gradients`) or metrics (`evaluate BATCH_SIZE`) to `output`."""
    torch.set_num_threads(1)
    with process_group("cpu", timeout_s=60) as world:
        if what == "gradients":
            result = {neck: gradients(Path(root), neck, world) for neck in NECKS}
            if world.is_main:
                torch.save(result, output)
        else:
            config = tiny_config(Path(root), loop={"eval_batch_size": int(settings[0])})
            task = DetectionTask.for_training(config)
            metrics = run_evaluation(task, config, world, RunLog(None, is_main=False)).metrics
            metrics.pop("images_per_second")
            if world.is_main:
                Path(output).write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(*sys.argv[1:])
