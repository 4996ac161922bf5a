"""Mutations of valid input: of JSON or YAML trees, of text, of bytes, and of the file itself."""

import copy
import json
import math
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Step = str | int
NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 7, 255, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64),
    *(10**30, 0.5, -0.0, -1.5, 1e-9, 5e-324, 1e18, 3.4e38, 1e39, 1e308, -1e308),
    *(math.nan, math.inf, -math.inf, True, False),
)
NAMES: tuple[str, ...] = (
    *("", " ", ".", "..", "/", "a", "0", "1", "nan", "null", "\x00", "a\x00b.jpg", "a\nb\rc", "\t"),
    *(
        "\x1b[31mred\x1b[0m\x07",
        "\x7f\x9b2J",
        "line\u2028two\u2029",
        "\u202eevil",
        "\ud800",
        "a\udc80",
    ),
    *("\u00e9" * 200, "x" * 300, "y/" * 3000, "x" * 100_000, "/etc/passwd", "../../0.jpg"),
    *(
        "//0.jpg",
        "/0.jpg",
        "./0.jpg",
        "0.jpg/",
        "C:\\0.jpg",
        "~",
        "$HOME",
        "$x_{",
        "[bold]b[/]",
        "%s",
    ),
    *("{0}", "<b>", "'\"", "\u5b57", "\U0001f4a9", "\ufeff", "0.jpg\n", "\ufffe", "-", "--help"),
)
SHAPES: tuple[Any, ...] = (
    *(None, [], {}, [[]], [None], [math.nan], [[1, 2, 3]], [[0, 0, 0, 0, 0, 0]], {"a": {}}),
    *([1, 2, 3, 4], [1, 2, 3], ["a"] * 4, [{}], [[[[[]]]]], {"id": 1}, {"size": [64, 64]}),
    *({"counts": "", "size": [64, 64]}, {"counts": [4096], "size": [64, 64]}),
    *({"counts": [2**31, 1], "size": [64, 64]}, {"counts": "\ud800", "size": [1, 1]}),
    *([1e308] * 8, [-1] * 8, list(range(5000)), [True] * 4, [10**30] * 4),
)
HOSTILE = NUMBERS + NAMES + SHAPES


def paths_of(tree: Any, prefix: tuple[Step, ...] = ()) -> Iterator[tuple[Step, ...]]:
    """Yield the path (keys and indices) of each value below `tree`."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*prefix, key)
        if isinstance(value, dict | list):
            yield from paths_of(value, (*prefix, key))


def value_at(tree: Any, path: tuple[Step, ...]) -> Any:
    """Return the value at a path."""
    for step in path:
        tree = tree[step]
    return tree


def all_changes(tree: Any, seed: int) -> list[tuple[tuple[Step, ...], Any]]:
    """Return every possible (path, new value), shuffled by `seed`.

    Entries of a list count as one path. A value of `Ellipsis` means removal.
    """
    by_kind = {tuple("*" if isinstance(s, int) else s for s in p): p for p in paths_of(tree)}
    changes = [(path, value) for path in by_kind.values() for value in (..., *HOSTILE)]
    random.Random(seed).shuffle(changes)
    return changes


def put(tree: Any, path: tuple[Step, ...], value: Any) -> str:
    """Set or remove (`...`) the value at a path; return a description."""
    *above, last = path
    parent = value_at(tree, tuple(above))
    where = ".".join(map(str, path))
    if value is ...:
        del parent[last]
        return f"{where} removed"
    parent[last] = copy.deepcopy(value)
    return f"{where} = {value!r:.80}"


def mutate_tree(tree: Any, rng: random.Random) -> str:
    """Change a tree at random; return a description."""
    path = rng.choice(list(paths_of(tree)))
    *above, step = path
    last: Any = step
    parent, where = value_at(tree, tuple(above)), ".".join(map(str, path))
    action = rng.choice(("put", "put", "put", "remove", "twice", "swap", "nest", "key", "number"))
    if action == "remove":
        return put(tree, path, ...)
    if action == "twice" and isinstance(parent, list):
        parent += [copy.deepcopy(parent[last])] * rng.choice((1, 1, 50))
        return f"{where} repeated"
    if action == "swap":
        other = rng.choice(list(paths_of(tree)))
        return put(tree, path, copy.deepcopy(value_at(tree, other)))
    if action == "nest":
        value: Any = parent[last]
        for _ in range(depth := rng.choice((1, 2, 20, 200))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        parent[last] = value
        return f"{where} nested {depth} deep"
    if action == "key" and isinstance(parent, dict):
        key = rng.choice(NAMES)
        parent[key] = rng.choice(HOSTILE)
        return f"{where} beside a key {key!r:.60}"
    if action == "number" and type(parent[last]) in (int, float):
        parent[last] = rng.choice(
            (parent[last] + 1, -parent[last], parent[last] * 1000, parent[last] / 3)
        )
        return f"{where} = {parent[last]!r}"
    return put(tree, path, rng.choice(HOSTILE))


def mutate_bytes(data: bytes, rng: random.Random, *, first: int = 0) -> tuple[bytes, str]:
    """Change bytes at or after position `first`; return them and a description."""
    changed, size = bytearray(data), len(data)
    if size <= first:
        return data + b"\0", "one byte appended"
    at = rng.randrange(first, size)
    width = rng.randrange(1, min(64, size - at) + 1)
    action = rng.choice(
        ("bit", "bit", "bits", "cut", "extend", "swap", "zero", "insert", "drop", "ff")
    )
    if action == "bit":
        bit = rng.randrange(8)
        changed[at] ^= 1 << bit
        return bytes(changed), f"bit {bit} of byte {at} flipped"
    if action == "bits":
        for _ in range(count := rng.choice((2, 10, 100))):
            changed[rng.randrange(first, size)] ^= 1 << rng.randrange(8)
        return bytes(changed), f"{count} bits flipped"
    if action == "cut":
        return data[:at], f"cut to {at} of {size} bytes"
    if action == "extend":
        more = rng.choice((b"\0" * 100, b"x", rng.randbytes(1000), data))
        return data + more, f"{len(more)} bytes appended"
    if action == "swap":
        other = rng.randrange(first, size)
        a, b = changed[at : at + width], changed[other : other + width]
        changed[at : at + len(b)] = b
        changed[other : other + len(a)] = a
        return bytes(changed[:size]), f"{width} bytes swapped, at {at} and {other}"
    if action == "insert":
        return data[:at] + rng.randbytes(width) + data[at:], f"{width} bytes inserted at {at}"
    if action == "drop":
        return data[:at] + data[at + width :], f"{width} bytes dropped at {at}"
    changed[at : at + width] = (b"\0" if action == "zero" else b"\xff") * width
    return bytes(changed), f"{width} bytes at {at} made {action}"


def mutate_text(text: str, rng: random.Random) -> tuple[bytes, str]:
    """Encode text in an unusual or invalid way; return the bytes and a description."""
    data = text.encode("utf-8", "surrogatepass")
    at = rng.randrange(len(data) + 1)
    made: dict[str, bytes] = {
        "byte order mark": b"\xef\xbb\xbf" + data,
        "two byte order marks": b"\xef\xbb\xbf" * 2 + data,
        "UTF-16": text.encode("utf-16", "surrogatepass"),
        "UTF-16-LE": text.encode("utf-16-le", "surrogatepass"),
        "UTF-32": text.encode("utf-32", "surrogatepass"),
        "byte of Latin-1": data[:at] + b"\xe9" + data[at:],
        "overlong UTF-8": data[:at] + b"\xc0\xaf" + data[at:],
        "surrogate in UTF-8": data[:at] + b"\xed\xa0\x80" + data[at:],
        "control characters": data[:at] + b"\x00\x1b\x08\x7f" + data[at:],
        "cut": data[:at],
        "one byte": data[:1],
        "empty": b"",
        "blank": b" \n\t\r\n",
        "garbage behind": data + b"}]",
        "twice": data + data,
        "carriage returns": data.replace(b"\n", b"\r"),
        "a long line behind": data + b" " * 1_000_000,
        "deep lists": b"[" * 100_000,
        "deep lists, closed": b"[" * 5000 + b"]" * 5000,
        "deep mappings": b'{"a":' * 50_000,
        "digits": b"9" * 5000,
        "many digits": b"1" * 200_000,
        "gzip": b"\x1f\x8b\x08\x00" + data,
        "zeros": b"\0" * len(data),
    }
    name = rng.choice(sorted(made))
    return made[name], name


def dump_json(tree: Any, rng: random.Random) -> bytes:
    """Return the JSON of a tree, randomly indented and escaped."""
    try:
        text = json.dumps(tree, ensure_ascii=rng.random() < 0.8, indent=rng.choice((None, 1)))
    except RecursionError:
        return b"[" * 5000
    return text.encode("utf-8", "surrogatepass")


def replace_file(path: Path, rng: random.Random) -> str:
    """Replace a file with something that is not a regular file; return a description."""
    path.unlink(missing_ok=True)
    what = rng.choice(
        ("nothing", "folder", "FIFO", "circle", "dangling", "zeros", "null", "socket")
    )
    if what == "folder":
        path.mkdir()
    elif what == "FIFO":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)  # short: the working directory is its folder
    elif what != "nothing":
        targets = {
            "circle": path.name,
            "dangling": "absent",
            "zeros": "/dev/zero",
            "null": "/dev/null",
        }
        path.symlink_to(targets[what])
    return f"{what} in place of the file"
