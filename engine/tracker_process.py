"""The process in which a tracker's package runs: wandb, mlflow or trackio.

`engine/tracking.py` starts it by file name, so it imports nothing of this project. Its argument is
the id of the run's process. It reads pickled tuples from stdin: the tracker's name with the
arguments of its class, then calls, each the name of a method of `Tracker` with its arguments. A
line of JSON on stdout answers each. The process ends after the call `finish`, or some time after
the run's process was killed.
"""

import json
import os
import pickle
import re
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from posixpath import normpath
from typing import Any, Protocol

PROJECT = "resdet"
"""Name of the project, in mlflow the experiment, if the package's environment variables give
none."""
FINISH_S = 20
"""Longest time to finish in, seconds; torchrun and Slurm kill a process 30 s after SIGTERM."""
_MAX_PARAMS, _MAX_METRICS = 100, 1000
"""mlflow's limits of one call."""


class Tracker(Protocol):
    """A run in the tracker's service.

    run_id: what resumes it. place: where it is seen; None if the package does not say.
    """

    run_id: str
    place: str | None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers by name, after `step` updates."""

    def image(self, step: int, name: str, pixels: Any) -> None:
        """Send an (H, W, 3) uint8 RGB array."""

    def finish(self, completed: bool) -> None:
        """Wait until all is sent. completed: whether the training came to its end."""


class WandbTracker:
    """A run of Weights & Biases; its files are in the run folder too."""

    def __init__(self, output: Path, config: dict[str, Any], run_id: str | None) -> None:
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=output.name,
            dir=str(output),
            id=run_id,
            resume="allow",
            config=config,
            allow_val_change=True,  # a resumed run may have other settings
            settings=wandb.Settings(console="off", x_stats_pid=os.getppid()),
        )
        # wandb's own step may not go back, as it does in a resumed run and for the best weights
        self._run.define_metric("*", step_metric="step")
        self.run_id, self.place = self._run.id, self._run.url

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers."""
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, pixels: Any) -> None:
        """Send an image."""
        self._run.log({"step": step, name: self._image(pixels)})

    def finish(self, completed: bool) -> None:
        """Wait until all is sent."""
        self._run.finish(exit_code=0 if completed else 1)


class MlflowTracker:
    """A run of mlflow."""

    def __init__(self, output: Path, config: dict[str, Any], run_id: str | None) -> None:
        import mlflow

        self._mlflow = mlflow
        chosen = {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys()
        if run_id is None and not chosen:
            mlflow.set_experiment(PROJECT)
        run = mlflow.start_run(run_id=run_id, run_name=output.name)
        self.run_id = run.info.run_id
        # without a password, because it is logged
        self.place: str | None = re.sub("//[^/]*@", "//", mlflow.get_tracking_uri())
        mlflow.log_dict(config, "config.yaml")
        if run_id is None:  # mlflow refuses other values, which a resumed run may have
            for part in _parts(_flat(config), _MAX_PARAMS):
                mlflow.log_params(part)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers."""
        # class names may have characters that mlflow refuses, or parts such as "//"
        named = {normpath(re.sub(r"[^\w.\- /]", "_", name)): x for name, x in values.items()}
        for part in _parts(named, _MAX_METRICS):
            self._mlflow.log_metrics(part, step=step, synchronous=True)

    def image(self, step: int, name: str, pixels: Any) -> None:
        """Send an image."""
        self._mlflow.log_image(pixels, key=name, step=step, synchronous=True)

    def finish(self, completed: bool) -> None:
        """Wait until all is sent."""
        self._mlflow.end_run("FINISHED" if completed else "KILLED")


class TrackioTracker:
    """A run of trackio, which knows runs by their names."""

    def __init__(self, output: Path, config: dict[str, Any], run_id: str | None) -> None:
        import trackio

        self._trackio = trackio
        self.run_id = run_id or f"{output.name}-{secrets.token_hex(3)}"
        run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=self.run_id,
            config=config,
            resume="allow",
            embed=False,
        )
        self.place = run.url

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers."""
        self._trackio.log(dict(values), step=step)

    def image(self, step: int, name: str, pixels: Any) -> None:
        """Send an image."""
        self._trackio.log({name: self._trackio.Image(pixels)}, step=step)

    def finish(self, completed: bool) -> None:
        """Wait until all is sent."""
        self._trackio.finish()


TRACKERS: dict[str, Callable[[Path, dict[str, Any], str | None], Tracker]] = {
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        flat |= inner or {f"{prefix}{key}": value}
    return flat


def _parts(values: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """Yield the items in mappings of at most `size`."""
    items = list(values.items())
    for start in range(0, len(items), size):
        yield dict(items[start : start + size])


def main() -> None:
    """Start the tracker, then make and answer calls until the last one."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", buffering=1)
    # what the packages read must not be the calls; what they print, not come between the answers
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    # on Windows the parent is a launcher of Python, which ends with the run
    parent = int(sys.argv[1]) if os.name == "posix" else os.getppid()
    threading.Thread(target=_end_after_parent, args=[parent], daemon=True).start()
    name, *arguments = pickle.load(calls)
    call, tracker = "start", None
    while True:
        answer: dict[str, str | None] = {"call": call}
        try:
            if call == "start":
                tracker = TRACKERS[name](*arguments)
                answer |= {"run_id": tracker.run_id, "place": tracker.place}
            else:
                getattr(tracker, call)(*arguments)
        except (Exception, SystemExit) as error:
            with suppress(OSError):  # the disk is full
                traceback.print_exc()
            answer["error"] = f"{type(error).__name__}: {error}"
        with suppress(OSError):  # the run's process has been killed
            answers.write(f"{json.dumps(answer)}\n")
        if tracker is None or call == "finish":
            return
        try:
            call, *arguments = pickle.load(calls)
        except (EOFError, pickle.UnpicklingError):  # killed, perhaps while it sent a call
            call, arguments = "finish", [False]


def _end_after_parent(parent: int) -> None:
    """End this process, whatever it waits for, some time after its parent has been killed."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(FINISH_S)
    os._exit(1)


if __name__ == "__main__":
    main()
