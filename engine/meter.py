"""Running means of losses between two log lines, and the time between them."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from engine.distributed import mean_over_ranks
from engine.step import StepResult


class StepMeter:
    """Sums since the last log line, kept on the device: adding a step does not wait for it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.measured: frozenset[str] = frozenset()
        self.steps = self.timed_steps = 0
        self.good = torch.zeros(())
        self.started = time.perf_counter()
        self.paused = 0.0
        self.data_seconds = 0.0
        self.skipped = 0

    def add(self, result: StepResult) -> None:
        """Add a step's losses, measurements and gradient norm, unless the step was skipped."""
        self.measured = result.measured | {"grad_norm"}
        good = (~result.status[0]).float()  # 1 for a finite step, 0 for a skipped one
        self.good = good + (self.good if self.steps else 0)
        for name, value in {**result.losses, "grad_norm": result.grad_norm}.items():
            # where, not a product: 0 x NaN would be NaN
            share = torch.where(good > 0, value, torch.zeros_like(value))
            self.sums[name] = share + self.sums[name] if name in self.sums else share
        self.steps += 1
        self.timed_steps += 1

    def state(self) -> dict[str, Any]:
        """Return the sums of this process, on the CPU, for a checkpoint; waits for the device."""
        return {
            "sums": {name: value.cpu() for name, value in self.sums.items()},
            "good": self.good.cpu(),
            "measured": sorted(self.measured),
            "steps": self.steps,
            "skipped": self.skipped,
        }

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore sums from `state`; the time of those steps is not counted."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.good = state["good"].to(device)
        self.measured = frozenset(state["measured"])
        self.steps, self.skipped = state["steps"], state["skipped"]
        self.timed_steps = 0  # the restored steps were timed by the earlier process

    def means(self) -> dict[str, float]:
        """Return means over finite steps and processes by name, and their sum `loss`.

        NaN if no step was finite. Waits for the device; all processes must call it.
        """
        names = list(self.sums)
        # One message and one wait for all values. The status is shared, so `good` is the same on
        # all processes.
        sums = mean_over_ranks(torch.stack([self.sums[name] for name in names]))
        values = (sums / self.good).tolist()
        means = dict(zip(names, values, strict=True))
        loss = sum(value for name, value in means.items() if name not in self.measured)
        return {"loss": loss, **means}

    def seconds(self) -> float:
        """Return wall-clock seconds since the start, without evaluations and checkpoints."""
        return max(time.perf_counter() - self.started - self.paused, 1e-9)
