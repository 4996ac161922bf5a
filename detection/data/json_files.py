"""Reading of JSON files, and names of JSON values for messages."""

import contextlib
import gc
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec

from engine import paths
from engine.errors import UserError


@contextlib.contextmanager
def without_garbage_collection() -> Generator[None]:
    """Disable garbage collection, which halves the time of parsing.

    It would search millions of new objects for reference cycles, which JSON does not have.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_garbage_collection()
def parse_json(path: Path) -> Any:
    """Return the content of a JSON file; raise UserError if it cannot be read or is not JSON."""
    data = paths.read_bytes(path)
    # msgspec takes a quarter of json's time for files with many decimals. What msgspec refuses goes
    # to json, which accepts NaN and byte order marks, and reports the line of a mistake.
    try:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            return msgspec.json.decode(data)
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if not data.strip():
            raise UserError(f"{path}: not valid JSON: the file is empty") from error
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: not valid JSON: {where}: {error.msg}") from error
    except UnicodeDecodeError as error:
        got = paths.describe_bytes(data)
        raise UserError(f"{path}: not valid JSON: expected UTF-8 text, got {got}") from error
    except ValueError as error:  # more digits than int() accepts
        raise UserError(f"{path}: not valid JSON: a number with too many digits") from error
    except RecursionError as error:
        raise UserError(f"{path}: not valid JSON: lists or objects nested too deep") from error


def json_kind(value: Any) -> str:
    """Return what a JSON value is, in JSON's words, for a message."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    return kinds.get(type(value), "a number")
