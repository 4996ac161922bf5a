"""Checksums of checkpoints and weights: stored inside each file and verified when it is read.

A checkpoint ends with a line that holds the SHA-256 of all bytes before it. torch and other zip
readers search backwards for the end of the zip, so they ignore that line. A safetensors file holds
its SHA-256 in its metadata, computed with zeros in place of the digits. So the checksum covers
every byte of either file.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engine.errors import DamagedFileError, UserError
from engine.paths import open_file

CHECKSUM_KEY = "resdet_checksum"
"""Metadata key of the checksum in a safetensors file."""

_PREFIX = "resdet-sha256:"
_DIGITS = 64
_LINE = re.compile(rb"\nresdet-sha256:([0-9a-f]{64})\n")
_LINE_LENGTH = 1 + len(_PREFIX) + _DIGITS + 1
_VALUE = re.compile(rf'"{CHECKSUM_KEY}":"{_PREFIX}([0-9a-f]{{64}})"'.encode())
_TRACES = (f'"{CHECKSUM_KEY}'.encode(), f'"{_PREFIX}'.encode())
_ZIP_END_LENGTH = 22
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
_CHUNK_BYTES = 1 << 20


class _HashingWriter:
    """A writable file that hashes everything written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write all of `data`."""
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()


def digest_of(arrays: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 (hex) of arrays of numbers or text: of shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 (hex) of the bytes of a file; UserError as for `open_file`."""
    with open_file(path) as file:
        return str(_hash_of(file, os.fstat(file.fileno()).st_size).hexdigest())


def write_with_checksum(file: BinaryIO, write: Callable[[Any], object]) -> None:
    """Call `write` to write a whole file, then append the checksum line.

    write: writes strictly front to back; it may not seek.
    """
    writer = _HashingWriter(file)
    write(writer)
    file.write(f"\n{_PREFIX}{writer.digest.hexdigest()}\n".encode())


def verify_checksum(file: BinaryIO, path: Path) -> bool:
    """Verify the checksum line of a checkpoint; afterwards the file is at its beginning.

    Returns:
        Whether the file has a checksum; foreign files and old checkpoints of ours have none.

    Raises:
        UserError: the content does not match the checksum.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _LINE_LENGTH, 0))
    line = _LINE.fullmatch(file.read())
    if line is None:
        # A zip file without comment ends in its end-of-central-directory record. Without that, and
        # without a checksum, one of the two was cut off or altered.
        file.seek(max(size - _ZIP_END_LENGTH, 0))
        end = file.read()
        file.seek(0)
        if file.read(4) == b"PK\x03\x04" and not end.startswith(b"PK\x05\x06"):
            raise _damaged(path, "checkpoint", "its end is missing or altered")
    else:
        file.seek(0)
        if _hash_of(file, size - _LINE_LENGTH).hexdigest() != line[1].decode():
            raise _damaged(path, "checkpoint", "its content does not match its checksum")
    file.seek(0)
    return line is not None


def safetensors_with_checksum(content: bytes) -> tuple[bytes, memoryview]:
    """Return the header and the data of a safetensors file, with a checksum in the header.

    Keys are sorted, so that equal weights and metadata give equal bytes.

    Args:
        content: a file of the safetensors library, with metadata in any order.
    """
    length = int.from_bytes(content[:8], "little")
    entries: dict[str, Any] = json.loads(content[8 : 8 + length])
    metadata: Mapping[str, str] = entries.pop("__metadata__", {})
    with_checksum = {CHECKSUM_KEY: _PREFIX + "0" * _DIGITS} | {
        key: metadata[key] for key in sorted(metadata)
    }
    tensors = sorted(entries.items(), key=lambda entry: (entry[1]["data_offsets"], entry[0]))
    table = {"__metadata__": with_checksum, **dict(tensors)}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    data = memoryview(content)[8 + length :]
    header = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(header)
    digest.update(data)
    found = _VALUE.search(header)
    assert found is not None
    start, end = found.span(1)
    return header[:start] + digest.hexdigest().encode() + header[end:], data


def verify_safetensors(path: Path) -> bool:
    """Verify the checksum in the metadata of a safetensors file.

    Returns:
        Whether the file has a checksum.

    Raises:
        UserError: the file cannot be read, is not a safetensors file, or does not match.
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
        if _hash_of(file, size - len(header), digest).hexdigest() != found[1].decode():
            raise _damaged(path, "safetensors file", "its content does not match its checksum")
    return True


def checksum_note(path: Path) -> str | None:
    """Return a log line if a weights file has no checksum, otherwise None.

    Raises:
        UserError: the file cannot be read.
    """
    with open_file(path) as file:
        if path.suffix == ".safetensors":
            has_checksum = _VALUE.search(_header_of(file, path)) is not None
        else:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - _LINE_LENGTH, 0))
            has_checksum = _LINE.fullmatch(file.read()) is not None
    return (
        None if has_checksum else f"{path}: has no checksum, so damaged values cannot be detected"
    )


def _header_of(file: BinaryIO, path: Path) -> bytes:
    """Return the header of a safetensors file: 8 bytes of length (little endian) and the JSON."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
        raise UserError(f"{path}: expected a safetensors file, got a truncated or foreign file")
    return start + file.read(length)


def _hash_of(file: BinaryIO, size: int, digest: Any = None) -> Any:
    """Return the SHA-256 of what `digest` has hashed so far and the next `size` bytes."""
    digest = hashlib.sha256() if digest is None else digest
    while size > 0 and (chunk := file.read(min(size, _CHUNK_BYTES))):
        digest.update(chunk)
        size -= len(chunk)
    return digest


def _damaged(path: Path, kind: str, what: str) -> DamagedFileError:
    return DamagedFileError(f"{path}: expected a {kind}, got a damaged one: {what}")
