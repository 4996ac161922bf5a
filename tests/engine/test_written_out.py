"""The trainer on the toy task leaves the weights of the training loop written out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.checkpoint import read_safetensors
from engine.schema import LoaderConfig, LoopConfig, OptimConfig, RunConfig, ScheduleConfig
from engine.trainer import fit
from tests.engine.toy import ToyBatch, ToyTask
from tests.reference.training import Rules, train

STEPS = 9
WARMUP = [0.05 * (0.2 + 0.8 * step / 4) for step in range(4)]
SCHEDULES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "constant": ({"kind": "constant"}, [0.05] * STEPS),
    "drop at step 6": ({"milestones": [6.0], "gamma": 0.5}, [0.05] * 6 + [0.025] * 3),
    "warm-up": (
        {"kind": "constant", "warmup_steps": 4, "warmup_factor": 0.2},
        WARMUP + [0.05] * 5,
    ),
}
LOOPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"clip": 0.5},
    "averaged": {"decay": 0.6},  # from step 4 on; below it (1 + step) / (10 + step)
    "averaged, never at its limit": {"decay": 0.99},
    "in parts": {"accumulate": 2},
    "all": {"clip": 0.5, "decay": 0.4, "accumulate": 2},
}


class RecordingTask(ToyTask):
    """Keeps the batches that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[ToyBatch] = []

    def losses(self, batch: ToyBatch) -> dict[str, Tensor]:
        self.seen.append(batch)
        return super().losses(batch)


def stage_config(task: ToyTask, batch: ToyBatch) -> Tensor:
    return torch.stack(list(task.losses(batch).values())).sum()


PAIRS = [
    *(("constant", loop) for loop in LOOPS),
    *((schedule, "all") for schedule in SCHEDULES if schedule != "constant"),
]


@pytest.mark.parametrize(("schedule", "name"), PAIRS)
def test_weights_are_those_of_the_loop_written_out(
    tmp_path: Path, schedule: str, name: str
) -> None:
    (settings, rates), loop = SCHEDULES[schedule], LOOPS[name]
    clip, decay, parts = loop.get("clip"), loop.get("decay"), loop.get("accumulate", 1)
    config = RunConfig(
        optim=OptimConfig(lr=0.05, momentum=0.8, weight_decay=0.01, clip_grad_norm=clip),
        schedule=ScheduleConfig(**settings),
        loader=LoaderConfig(workers=0),
        loop=LoopConfig(
            max_steps=STEPS, batch_size=4, accumulate=parts, ema_decay=decay, export="last"
        ),
    )
    trained = RecordingTask()
    fit(trained, config, output=tmp_path)
    assert len(trained.seen) == STEPS * parts
    steps = [trained.seen[first : first + parts] for first in range(0, len(trained.seen), parts)]
    task = ToyTask()
    rules = Rules(rates, momentum=0.8, weight_decay=0.01, clip=clip, decay=decay)
    expected = train(task.model, lambda batch: stage_config(task, batch), steps, rules)
    found = read_safetensors(tmp_path / "model.safetensors")[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
