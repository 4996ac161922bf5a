"""Keys of the content of image files: equal files have equal keys."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.checksum import file_digest
from engine.errors import UserError
from engine.log import RunLog


def content_keys(paths: Sequence[Path], *, log: RunLog) -> list[str | None]:
    """Return the SHA-256 (hex) of the bytes of each file; None if it cannot be read.

    The same image saved twice by different programs has different bytes, and so different keys.

    Args:
        paths: image files.
        log: shows the progress.
    """
    files: Iterable[Path] = log.progress(paths, len(paths), "hashing images")
    return [_key_of(path) for path in files]


def _key_of(path: Path) -> str | None:
    try:
        return file_digest(path)
    except UserError:
        return None
