"""What a run remembers besides tensors: its step, its best score, and what is still to be done."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from engine.schema import LoopConfig, ScheduleConfig


@dataclass
class Progress:
    """State of a run after `step` updates; kept in every checkpoint.

    score: latest main metric; None: there was none. best: the highest so far, that of `best_step`,
    which is 0 before there was one.
    evaluation_due: the weights of this step are still to be evaluated.
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
        """Return the progress that a checkpoint holds, of an earlier version too."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def add_score(self, score: float, *, scheduled: bool) -> bool:
        """Count an evaluation of this step's weights; return whether it is the best so far.

        Args:
            score: main metric; not a number (nothing to find in the validation images) is no score.
            scheduled: whether a longer run is evaluated at this step too. Patience and rate heed no
                other evaluation, or a run that is lengthened later would train otherwise.
        """
        self.evaluation_due = False
        self.score = None if math.isnan(score) else score
        is_best = score > self.best
        if is_best:
            self.best, self.best_step = score, self.step
        if scheduled and self.score is not None:
            self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        return is_best

    def is_out_of_patience(self, loop: LoopConfig) -> bool:
        """Return whether the run stops because its score has not improved for too long."""
        return loop.patience is not None and self.evaluations_since_best >= loop.patience

    def drop_rate_on_plateau(self, schedule: ScheduleConfig) -> bool:
        """Count a drop of the learning rate where one is due after a scheduled evaluation."""
        waited = self.evaluations_since_best
        due = schedule.kind == "plateau" and waited and waited % schedule.plateau_evaluations == 0
        self.rate_drops += bool(due)
        return bool(due)
