"""Status of training steps, read from the device: skipped as not finite, and stop requested."""

from collections import deque

from torch.optim import Optimizer

from engine.distributed import World, gather_objects
from engine.errors import DivergedError
from engine.log import RunLog
from engine.progress import Progress
from engine.step import HostCopy, StepResult


class StepStatuses:
    """Queue of step statuses that were not read yet; reading one waits only for its own step."""

    def __init__(self, world: World, log: RunLog, *, max_bad_steps: int) -> None:
        self._world, self._log, self._max_bad_steps = world, log, max_bad_steps
        self._unread: deque[tuple[int, StepResult, HostCopy]] = deque()

    def add(self, step: int, result: StepResult) -> None:
        """Append the result of `step`, counted from 0."""
        self._unread.append((step, result, HostCopy(result.status)))

    def read(self, progress: Progress, optimizer: Optimizer, *, all_of_them: bool = False) -> bool:
        """Count non-finite steps in `progress`; return whether a process was asked to stop.

        Args:
            progress: its `step` is the number of steps so far.
            optimizer: its learning rate is logged with a non-finite step.
            all_of_them: also read the last step's status. By default, on a GPU, that is left for
                the next call, so that the host does not wait for the running step.

        Raises:
            DivergedError: `max_bad_steps` non-finite steps in a row.
        """
        # A GPU runs behind the host: leave the last step's status unread, unless all are needed.
        lag = 1 if self._world.device.type == "cuda" and not all_of_them else 0
        stop = False
        while self._unread and self._unread[0][0] < progress.step - lag:
            step, result, status = self._unread.popleft()
            skipped, asked = status.tolist()
            stop |= bool(asked)
            progress.bad_in_a_row = progress.bad_in_a_row + 1 if skipped else 0
            if skipped:
                self._log_bad_step(
                    step, result, progress, rate=max(g["lr"] for g in optimizer.param_groups)
                )
        return stop

    def _log_bad_step(
        self, step: int, result: StepResult, progress: Progress, *, rate: float
    ) -> None:
        """Log a skipped step with its images, losses and rate; raise after too many."""
        # Waits for the device and for all processes; bad steps are rare. The status is the same on
        # all processes, so all of them call gather_objects.
        values = {name: value.item() for name, value in result.losses.items()}
        values["grad_norm"] = result.grad_norm.item()
        ids = [i for part in result.image_ids for i in part.tolist()]
        all_processes = gather_objects((ids, values))
        details = "; ".join(
            f"images {ids}, " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            for ids, values in all_processes
        )
        self._log.note(f"step {step + 1} skipped, not finite: {details}; rate {rate:.3g}")
        if progress.bad_in_a_row >= self._max_bad_steps:
            raise DivergedError(
                f"{progress.bad_in_a_row} non-finite steps in a row, "
                f"the last at step {step + 1}; try a lower optim.lr (now {rate:.3g}) "
                "or set optim.clip_grad_norm"
            )
