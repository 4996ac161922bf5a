"""Progress of a run besides its tensors: step, best score, and a pending evaluation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from engine.schema import LoopConfig, ScheduleConfig


@dataclass
class Progress:
    """Progress of a run after `step` updates; stored in every checkpoint.

    score: latest main metric; None if there was none. best: the highest main metric so far, of the
    weights of `best_step`, which is 0 before the first score. evaluations_since_best: scheduled
    evaluations since then. rate_drops: of the plateau schedule. bad_in_a_row: non-finite steps in
    a row up to this step. evaluation_due: the weights of this step must still be evaluated.
    """

    step: int = 0
    score: float | None = None
    best: float = float("-inf")
    best_step: int = 0
    evaluations_since_best: int = 0
    rate_drops: int = 0
    bad_in_a_row: int = 0
    evaluation_due: bool = False
    evaluations_failed: int = 0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the progress in a checkpoint; unknown keys of other versions are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def add_score(self, score: float, *, scheduled: bool) -> bool:
        """Record an evaluation of this step's weights; return whether it is the best so far.

        Args:
            score: main metric. NaN (no objects in the validation images) does not count.
            scheduled: whether `loop.eval_every` falls on this step. Only such evaluations affect
                patience and learning rate. Otherwise the extra evaluation at the last step would
                change how a run trains if `loop.max_steps` is raised later.
        """
        self.evaluation_due = False
        self.score = None if math.isnan(score) else score
        is_best = score > self.best  # False for NaN
        if is_best:
            self.best, self.best_step = score, self.step
        if scheduled and self.score is not None:
            self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        return is_best

    def is_out_of_patience(self, loop: LoopConfig) -> bool:
        """Return whether the score has not improved for `loop.patience` evaluations."""
        return loop.patience is not None and self.evaluations_since_best >= loop.patience

    def drop_rate_on_plateau(self, schedule: ScheduleConfig) -> bool:
        """After a scheduled evaluation, count a drop of the learning rate if one is due.

        Returns:
            Whether the rate drops.
        """
        waited = self.evaluations_since_best
        due = schedule.kind == "plateau" and waited and waited % schedule.plateau_evaluations == 0
        self.rate_drops += bool(due)  # at every multiple of plateau_evaluations without improvement
        return bool(due)
