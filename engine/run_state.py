"""Training state of a run: everything a checkpoint contains, and how to restore it."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint import check_resumed, load_model, rng_state, set_rng_state
from engine.config import parse_config
from engine.distributed import World, gather_objects
from engine.meter import StepMeter
from engine.optim import load_optimizer_state, optimizer_state
from engine.payload import check_payload, load_average
from engine.progress import Progress
from engine.schema import RunConfig
from engine.step import WeightAverage
from engine.task import HasDigest, Task


@dataclass
class RunState:
    """Everything that changes during a run. average: None without `loop.ema_decay`."""

    task: Task
    config: RunConfig
    world: World
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    progress: Progress = field(default_factory=Progress)
    meter: StepMeter = field(default_factory=StepMeter)

    def payload(self) -> dict[str, Any]:
        """Return the content of a checkpoint; all processes must call it."""
        return {
            "model": self.task.model.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "average": None if self.average is None else self.average.values,
            "progress": vars(self.progress).copy(),
            "meters": gather_objects(self.meter.state()),
            "rng": rng_state(),
            "config": self.config.model_dump(mode="json"),
            "metadata": self.task.metadata(),
            "data": self._data_digests(),
        }

    def load(self, payload: Mapping[str, Any], *, source: Path) -> None:
        """Restore a checkpoint, so that training continues bit for bit.

        Args:
            payload: the checkpoint.
            source: where it comes from, for messages.

        Raises:
            UserError: the classes or the network differ, or its step is above `loop.max_steps`.
        """
        check_resumed(payload, self.task.metadata(), max_steps=self.config.loop.max_steps)
        self.load_weights(payload, source=source)
        load_optimizer_state(self.optimizer, payload["optimizer"])
        self.progress = Progress.of(payload["progress"])
        meters = payload.get("meters") or []
        # with another number of processes the sums since the last log line are dropped
        if len(meters) == self.world.size:
            self.meter.load_state(meters[self.world.rank], self.world.device)
        set_rng_state(payload["rng"])  # last, so that nothing above advances the generators

    def load_weights(self, payload: Mapping[str, Any], *, source: Path) -> None:
        """Restore only the weights and their averages from a checkpoint.

        Raises:
            UserError: they belong to another network.
        """
        load_model(self.task.model, payload["model"], source=source)
        if self.average is not None:
            load_average(self.average.values, payload, source=source)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the network has its averaged weights, if there are any."""
        if self.average is None:
            return contextlib.nullcontext()
        return self.average.applied(self.task.model)

    def saved_config(self, payload: Mapping[str, Any], *, source: Path) -> RunConfig:
        """Validate a checkpoint; return its config.

        Raises:
            UserError: `payload` is not the checkpoint of a run.
        """
        check_payload(payload, source=source)
        tag = str(payload["config"].get("task", "run"))
        schemas = {tag: type(self.config)}
        return parse_config(payload["config"], schemas=schemas, source=str(source))

    def changed_data(self, payload: Mapping[str, Any]) -> list[str]:
        """Return a line for each data set whose files or annotations differ from a checkpoint's."""
        before, step = payload.get("data") or {}, payload["progress"]["step"]
        lines = {
            "training": f"training data differ from those of the steps up to {step}",
            "validation": f"validation data differ from those of the scores up to step {step}, "
            "including the best score",
        }
        return [
            f"{lines[name]}: file names or annotations have changed"
            for name, digest in self._data_digests().items()
            if before.get(name, digest) != digest
        ]

    def _data_digests(self) -> dict[str, str]:
        data = {"training": self.task.train_data(), "validation": self.task.val_data()}
        return {name: each.digest for name, each in data.items() if isinstance(each, HasDigest)}

    def is_finite(self) -> bool:
        """Return whether all weights and averages are finite. Once they are not, they stay so."""
        averages = {} if self.average is None else self.average.values
        values = [*self.task.model.state_dict().values(), *averages.values()]
        found = [value.isfinite().all() for value in values if value.is_floating_point()]
        return bool(torch.stack(found).all())
