"""Reading the status of steps: which were skipped as not finite, and whether to stop."""

from collections import deque

from torch.optim import Optimizer

from engine.distributed import World, gather_objects
from engine.errors import DivergedError
from engine.log import RunLog
from engine.progress import Progress
from engine.step import HostCopy, StepResult


class StepStatuses:
    """Statuses that the device has not told yet; reading one waits for its step alone."""

    def __init__(self, world: World, log: RunLog, *, max_bad_steps: int) -> None:
        self._world, self._log, self._max_bad_steps = world, log, max_bad_steps
        self._unread: deque[tuple[int, StepResult, HostCopy]] = deque()

    def add(self, step: int, result: StepResult) -> None:
        """Take the result of `step`, counted from 0."""
        self._unread.append((step, result, HostCopy(result.status)))

    def read(self, progress: Progress, optimizer: Optimizer, *, all_of_them: bool = False) -> bool:
        """Count bad steps in `progress`; return whether one of the processes was asked to stop.

        Args:
            progress: its step is the number of steps so far.
            optimizer: its rate is told with a bad step.
            all_of_them: on a GPU the last step's status is else left for the next time, when it has
                finished.

        Raises:
            DivergedError: too many bad steps in a row.
        """
        lag = 1 if self._world.device.type == "cuda" and not all_of_them else 0
        stop = False
        while self._unread and self._unread[0][0] < progress.step - lag:
            step, result, status = self._unread.popleft()
            skipped, asked = status.tolist()
            stop |= bool(asked)
            progress.bad_in_a_row = progress.bad_in_a_row + 1 if skipped else 0
            if skipped:
                self._tell(
                    step, result, progress, rate=max(g["lr"] for g in optimizer.param_groups)
                )
        return stop

    def _tell(self, step: int, result: StepResult, progress: Progress, *, rate: float) -> None:
        values = {name: value.item() for name, value in result.losses.items()}
        values["grad_norm"] = result.grad_norm.item()
        ids = [i for part in result.image_ids for i in part.tolist()]
        everywhere = gather_objects((ids, values))
        told = "; ".join(
            f"images {ids}, " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            for ids, values in everywhere
        )
        self._log.note(f"step {step + 1} skipped, not finite: {told}; rate {rate:.3g}")
        if progress.bad_in_a_row >= self._max_bad_steps:
            raise DivergedError(
                f"{progress.bad_in_a_row} non-finite steps in a row, "
                f"the last at step {step + 1}; try a lower optim.lr (now {rate:.3g}) "
                "or set optim.clip_grad_norm"
            )
