"""A COCO JSON whose entries are decoded one at a time, can be changed, and are written again.

COCO's training annotations are 0.45 GB of text, and over 2 GB as Python objects. So the entries
stay encoded until they are read, and unchanged entries are written byte for byte as they were.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from detection.data.json_files import json_kind, parse_json
from engine import paths
from engine.errors import UserError
from engine.files import write_atomically

LISTS = ("images", "annotations", "categories")
"""The keys of a COCO file that are checked; all others are kept as they are."""

_DECODER = msgspec.json.Decoder()


class Entries:
    """The entries of one list of the file. A row is a position in the file, and never changes."""

    def __init__(self, values: list[Any]) -> None:
        """Take encoded (`msgspec.Raw`) or decoded JSON values."""
        self._values = values
        self._dropped: set[int] = set()

    def __len__(self) -> int:
        """Return the number of rows, dropped ones included."""
        return len(self._values)

    def __getitem__(self, row: int) -> Any:
        """Return the decoded entry of a row; for a dropped row, what was there."""
        value = self._values[row]
        return _DECODER.decode(value) if isinstance(value, msgspec.Raw) else value

    def rows(self) -> list[int]:
        """Return the rows that are left, in file order."""
        return [row for row in range(len(self._values)) if row not in self._dropped]

    def is_there(self, row: int) -> bool:
        """Return whether a row is left."""
        return row not in self._dropped

    def replace(self, row: int, value: Any) -> None:
        """Change the entry of a row."""
        self._values[row] = value

    def append(self, value: Any) -> int:
        """Add an entry at the end and return its row."""
        self._values.append(value)
        return len(self._values) - 1

    def drop(self, row: int) -> None:
        """Drop a row; the others keep their numbers."""
        self._dropped.add(row)

    def encoded(self) -> Iterator[bytes]:
        """Yield the entries that are left as JSON."""
        for row in self.rows():
            yield _encoded(self._values[row])


class Document:
    """A COCO file: `lists` by the names in `LISTS`, and what else it has.

    faults: what is wrong with a key of `LISTS` that is not a list; the list is then empty.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.faults: dict[str, str] = {}
        self.lists: dict[str, Entries] = {}
        self._content = content  # in the order of the file
        for key in LISTS:
            value = content.get(key)
            if isinstance(value, msgspec.Raw):
                is_list = bytes(memoryview(value)[:1]) == b"["
                value = _raw_list(value) if is_list else _DECODER.decode(value)
            if not isinstance(value, list):
                got = json_kind(value) if key in content else "nothing"
                self.faults[key] = f"expected a list, got {got}"
            self.lists[key] = Entries(value if isinstance(value, list) else [])

    def write(self, path: Path) -> None:
        """Write the file as it is now; raise UserError if it cannot be written."""
        write_atomically(path, self._write)

    def _write(self, file: BinaryIO) -> None:
        opening = b"{"
        for key in [*self._content, *(key for key in LISTS if key not in self._content)]:
            file.write(opening + json.dumps(key).encode() + b": ")
            if key in self.lists:
                separator = b"["
                for entry in self.lists[key].encoded():
                    file.write(separator + entry)
                    separator = b",\n"
                file.write(b"]" if separator != b"[" else b"[]")
            else:
                file.write(_encoded(self._content[key]))
            opening = b",\n"
        file.write(b"}\n")


def read_document(path: Path, *, encoded: bool = True) -> Document:
    """Read a COCO file.

    Args:
        path: the file.
        encoded: whether entries stay encoded. Some entries, such as numbers above float64's range,
            can only be decoded with the whole file: decoding one then raises msgspec.DecodeError
            or UnicodeDecodeError.

    Raises:
        UserError: the file cannot be read, is not JSON, or is not an object.
    """
    if encoded:
        # parse_json accepts more, or says what is wrong
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            return Document(path, msgspec.json.decode(paths.read_bytes(path), type=_RawObject))
    content = parse_json(path)
    if isinstance(content, dict):
        return Document(path, content)
    hint = ""
    if isinstance(content, list) and content and isinstance(content[0], dict):
        hint = " (a results file?)" if "score" in content[0] else ""
    kind = json_kind(content)
    raise UserError(f"{path}: expected a COCO object with {', '.join(LISTS)}, got {kind}{hint}")


_RawObject = dict[str, msgspec.Raw]


def _raw_list(value: msgspec.Raw) -> list[Any]:
    return msgspec.json.decode(value, type=list[msgspec.Raw])


def _encoded(value: Any) -> bytes:
    # json, not msgspec, for changed entries: msgspec would write NaN in other keys as null
    return bytes(value) if isinstance(value, msgspec.Raw) else json.dumps(value).encode()
