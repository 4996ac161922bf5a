"""Results of a prediction on disk as JSON lines: written as they come, read in image order.

The first line describes the job. Each other line is an image: its detections, or why it has none.
"""

import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from errno import ENOSPC
from pathlib import Path
from typing import Any, Self

from engine.errors import UserError
from engine.paths import is_file, open_file

_START = re.compile(rb'\{"image": (\d+), "left": (\d+), ')
_MISSING = -1


def _has_job(path: Path) -> bool:
    """Return whether a file has the whole first line of a job; before it there are no results."""
    if not is_file(path):
        return False
    with open_file(path) as file:
        return file.readline().endswith(b"\n")


class ResultLines:
    """The JSON lines of a job, and where in the file the line of each image is.

    A line has `image` (its index), `left` (the images of its batch that follow) and what `append`
    was given. Only offsets are in memory, eight bytes an image. `is_new` says whether the job
    begins.

    Args:
        path: the file.
        job: what must be the same for the job to be resumed; JSON values.
        count: number of images.
        start: called for a job that begins, before the file is changed; returns more values, which
            a resumed job takes from the file (`started`).
        resume: continue the job in the file, if there is one. Lines of a batch that is not
            complete, and a line that was cut by a kill, are removed.

    Raises:
        UserError: the file cannot be written, or is of another job.
    """

    def __init__(
        self,
        path: Path,
        job: Mapping[str, Any],
        *,
        count: int,
        start: Callable[[], Mapping[str, Any]],
        resume: bool,
    ) -> None:
        self.started: Mapping[str, Any] = {}
        self._path, self._job = path, job
        self._offsets = array("q", [_MISSING]) * count
        self._end = 0
        if resume and _has_job(path):
            self._read()
        self.is_new = not self._end
        if self.is_new:
            self.started = start()
        try:
            if not self.is_new:
                os.truncate(path, self._end)
            self._file = path.open("wb" if self.is_new else "r+b", buffering=0)
        except OSError as error:
            raise self._write_error(error) from error
        if self.is_new:
            try:
                self._write(_json_line({"job": job, "started": self.started}))
            except UserError:
                self._file.close()
                raise

    def missing(self) -> "array[int]":
        """Return the indices of images without a line, ascending."""
        return array("L", (i for i, offset in enumerate(self._offsets) if offset == _MISSING))

    def append(self, batch: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """Write the lines of a batch: pairs of an image's index and its values.

        Raises:
            UserError: they cannot be written; the images stay without a line.
        """
        lines = [
            _json_line({"image": index, "left": len(batch) - number, **values})
            for number, (index, values) in enumerate(batch, start=1)
        ]
        end = self._end
        self._write(b"".join(lines))
        for (index, _), line in zip(batch, lines, strict=True):
            self._offsets[index] = end
            end += len(line)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that there are, by index."""
        with open_file(self._path) as file:
            for offset in self._offsets:
                if offset != _MISSING:
                    file.seek(offset)
                    yield json.loads(file.readline())

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()

    def remove(self) -> None:
        """Remove the file, when its content is in other files."""
        with suppress(OSError):
            self._path.unlink()

    def _write(self, data: bytes) -> None:
        try:
            self._file.seek(self._end)  # a part of a failed write may follow
            if self._file.write(data) != len(data):
                raise OSError(ENOSPC, os.strerror(ENOSPC))
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            raise self._write_error(error) from error
        self._end += len(data)

    def _write_error(self, error: OSError) -> UserError:
        return UserError(f"{self._path}: cannot be written: {error.strerror}")

    def _read(self) -> None:
        """Check the job, and find the lines of complete batches."""
        with open_file(self._path) as file:
            first = file.readline()
            self._check_job(first)
            self._end = end = len(first)
            batch: list[tuple[int, int]] = []
            for line in file:
                match = _START.match(line)
                if match is None or not line.endswith(b"}\n"):
                    return
                batch.append((int(match[1]), end))
                end += len(line)
                if int(match[2]) == 0:
                    for index, offset in batch:
                        self._offsets[index] = offset
                    self._end = end
                    batch.clear()

    def _check_job(self, line: bytes) -> None:
        try:
            content = json.loads(line)
            found, self.started = content["job"], content["started"]
            changed = [key for key in self._job if found[key] != self._job[key]]
        except (ValueError, KeyError, TypeError) as error:
            expected = "the lines of an interrupted prediction"
            raise UserError(f"{self._path}: --resume: expected {expected}, got others") from error
        for key in changed[:1]:
            expected, got = (json.dumps(job[key]) for job in (found, self._job))
            raise UserError(
                f"{self._path}: --resume: expected {key} as in the interrupted prediction, "
                f"{expected:.200}, got {got:.200}"
            )


def _json_line(values: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(values)}\n".encode("ascii")
