"""TensorBoard's event files, written at once: a full disk is the caller's to hear of.

The writer of torch.utils.tensorboard hands events to a thread, which prints a traceback of its own.
"""

import io
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np


class EventFile:
    """Appends numbers and images to one event file."""

    def __init__(self, directory: Path, *, number: int, purge_step: int | None) -> None:
        """Start a file.

        Args:
            directory: where it goes.
            number: tells the files of one process and second apart.
            purge_step: TensorBoard forgets what earlier files say of this step and later ones.

        Raises:
            OSError: the disk refuses.
        """
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow, where installed, chats
        from tensorboard.compat.proto import event_pb2, summary_pb2  # takes a second or more
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
        """Add numbers by name; OSError: the disk refuses."""
        kind = self._summary.Summary.Value
        found = [kind(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=self._summary.Summary(value=found))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Add (H, W, 3) uint8 RGB; OSError: the disk refuses."""
        from PIL import Image  # comes with torchvision

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
