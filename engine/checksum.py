"""Checksums of our own weights and checkpoints: inside each file, checked when it is read.

A checkpoint ends with a line that holds the SHA-256 of all bytes before it; readers of zip files,
torch's among them, look for the end of the zip before it. A safetensors file holds its SHA-256 in
its metadata, computed with zeros in the place of the digits. So every byte of both is covered.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engine.errors import UserError
from engine.paths import open_file

KEY = "resdet_checksum"
"""Of the checksum among a safetensors file's metadata."""

_PREFIX = "resdet-sha256:"
_DIGITS = 64
_LINE = re.compile(rb"\nresdet-sha256:([0-9a-f]{64})\n")
_LINE_LENGTH = 1 + len(_PREFIX) + _DIGITS + 1
_VALUE = re.compile(rf'"{KEY}":"{_PREFIX}([0-9a-f]{{64}})"'.encode())
_TRACES = (f'"{KEY}'.encode(), f'"{_PREFIX}'.encode())
_ZIP_END_LENGTH = 22
_MAX_HEADER = 100_000_000  # what the safetensors library takes
_CHUNK_BYTES = 1 << 20


class _SummingWriter:
    """A file to write to that sums what it is given."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sum = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write all of `data`."""
        self.sum.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Hand on what is buffered."""
        self._file.flush()


def digest_of(arrays: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 of arrays of numbers or text, in hex: of their shapes, kinds and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def write_with_sum(file: BinaryIO, write: Callable[[Any], object]) -> None:
    """Let `write` fill a file from its beginning to its end, then add the line of the checksum."""
    writer = _SummingWriter(file)
    write(writer)
    file.write(f"\n{_PREFIX}{writer.sum.hexdigest()}\n".encode())


def check_sum(file: BinaryIO, path: Path) -> bool:
    """Compare a file with the line of its checksum; the file is left at its beginning.

    Returns:
        Whether it has one; a file of others and an old one of ours have none.

    Raises:
        UserError: the content is not what was written.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _LINE_LENGTH, 0))
    line = _LINE.fullmatch(file.read())
    if line is None:
        file.seek(max(size - _ZIP_END_LENGTH, 0))
        end = file.read()
        file.seek(0)
        if file.read(4) == b"PK\x03\x04" and not end.startswith(b"PK\x05\x06"):
            raise _damaged(path, "checkpoint", "its end is missing or altered")
    else:
        file.seek(0)
        if _sum_of(file, size - _LINE_LENGTH).hexdigest() != line[1].decode():
            raise _damaged(path, "checkpoint", "its bytes do not give its checksum")
    file.seek(0)
    return line is not None


def summed_safetensors(content: bytes) -> tuple[bytes, memoryview]:
    """Return the header and the data of a safetensors file with its checksum.

    The header's order is fixed, so that equal weights and metadata give equal bytes.

    Args:
        content: what the safetensors library wrote, whose metadata come in any order.
    """
    length = int.from_bytes(content[:8], "little")
    entries: dict[str, Any] = json.loads(content[8 : 8 + length])
    metadata: Mapping[str, str] = entries.pop("__metadata__", {})
    summed = {KEY: _PREFIX + "0" * _DIGITS} | {key: metadata[key] for key in sorted(metadata)}
    tensors = sorted(entries.items(), key=lambda entry: (entry[1]["data_offsets"], entry[0]))
    table = {"__metadata__": summed, **dict(tensors)}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    data = memoryview(content)[8 + length :]
    header = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(header)
    digest.update(data)
    found = _VALUE.search(header)
    assert found is not None
    start, end = found.span(1)
    return header[:start] + digest.hexdigest().encode() + header[end:], data


def check_safetensors(path: Path) -> bool:
    """Compare a safetensors file with the checksum in its metadata.

    Returns:
        Whether it has one.

    Raises:
        UserError: it cannot be read, is no safetensors file, or not what was written.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = _header_of(file, path)
        found = _VALUE.search(header)
        if found is None:
            if any(trace in header for trace in _TRACES):
                raise _damaged(path, "safetensors file", "its checksum is altered")
            return False
        start, end = found.span(1)
        digest = hashlib.sha256(header[:start] + b"0" * _DIGITS + header[end:])
        if _sum_of(file, size - len(header), digest).hexdigest() != found[1].decode():
            raise _damaged(path, "safetensors file", "its bytes do not give its checksum")
    return True


def checksum_note(path: Path) -> str | None:
    """Return a line for the log where a file of weights has no checksum, else None.

    Raises:
        UserError: it cannot be read.
    """
    with open_file(path) as file:
        if path.suffix == ".safetensors":
            has_sum = _VALUE.search(_header_of(file, path)) is not None
        else:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - _LINE_LENGTH, 0))
            has_sum = _LINE.fullmatch(file.read()) is not None
    return None if has_sum else f"{path}: has no checksum, so damage to its numbers goes unnoticed"


def _header_of(file: BinaryIO, path: Path) -> bytes:
    """Return the length and the JSON with which a safetensors file opens."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
        raise UserError(f"{path}: expected a safetensors file, got one cut short or another file")
    return start + file.read(length)


def _sum_of(file: BinaryIO, size: int, digest: Any = None) -> Any:
    """Return the SHA-256 of the next `size` bytes, after what `digest` has summed."""
    digest = hashlib.sha256() if digest is None else digest
    while size > 0 and (chunk := file.read(min(size, _CHUNK_BYTES))):
        digest.update(chunk)
        size -= len(chunk)
    return digest


def _damaged(path: Path, kind: str, what: str) -> UserError:
    return UserError(f"{path}: expected a {kind}, got a damaged one: {what}")
