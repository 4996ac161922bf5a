"""TensorBoard event files, written synchronously so that a full disk raises in the caller.

torch.utils.tensorboard writes in a background thread, which prints a traceback if the disk is full.
"""

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np


class EventFile:
    """Appends scalars and images to one TensorBoard event file."""

    def __init__(self, directory: Path, *, number: int, purge_step: int | None) -> None:
        """Create the file.

        Args:
            directory: where it is created.
            number: makes the names of files unique that a process creates in the same second.
            purge_step: TensorBoard drops events of earlier files at this step and later.

        Raises:
            OSError: the file cannot be written.
        """
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # silences TensorFlow, if installed
        from tensorboard.compat.proto import (
            event_pb2,
            summary_pb2,
        )  # imported late: a second or more
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        place = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{number}"
        self._file = (directory / f"events.out.tfevents.{place}").open("wb")
        self._writer = RecordWriter(self._file)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(0, file_version="brain.Event:2")
        if purge_step is not None:
            self._write(purge_step, session_log=start)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add scalars by name; OSError if the file cannot be written."""
        kind = self._summary.Summary.Value
        found = [kind(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=self._summary.Summary(value=found))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Add an (H, W, 3) uint8 RGB image; OSError if the file cannot be written."""
        from PIL import Image  # a dependency of torchvision

        png = io.BytesIO()
        Image.fromarray(pixels).save(png, format="PNG")
        kind, (height, width) = self._summary.Summary, pixels.shape[:2]
        image = kind.Image(
            height=height, width=width, colorspace=3, encoded_image_string=png.getvalue()
        )
        self._write(step, summary=kind(value=[kind.Value(tag=name, image=image)]))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        event = self._event.Event(wall_time=time.time(), step=step, **content)
        self._writer.write(event.SerializeToString())
        self._writer.flush()
