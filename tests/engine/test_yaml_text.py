"""YAML parser for configs: limits and rejected features."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config import load_config, parse_config
from engine.errors import UserError
from tests.engine.test_config import SCHEMAS, load

Run = Callable[[], object]


def both_ways(tmp_path: Path, text: str) -> tuple[Run, Run]:
    """Return loaders of the text as a file and as an override."""
    return lambda: load(tmp_path, f"seed: {text}"), lambda: load(tmp_path, "", f"seed={text}")


HOSTILE = {
    "object tag": ("!!python/object/apply:os.system [x]", "expected no tag, got !!python/object"),
    "int tag": ("!!int abc", "expected a value of type !!int, got abc"),
    "float tag": ("!!float x", "expected a value of type !!float, got x"),
    "bool tag": ("!!bool abc", "expected a value of type !!bool, got abc"),
    "null tag": ("!!null abc", "expected a value of type !!null, got abc"),
    "empty int": ("!!int ''", "expected a value of type !!int"),
    "set": ("!!set {a}", "expected no tag, got !!set"),
    "binary": ("!!binary aGk=", "expected no tag, got !!binary"),
    "timestamp": ("!!timestamp abc", "expected no tag, got !!timestamp"),
    "tag of another node": ("!!map [a]", "expected no tag, got !!map"),
    "own tag": ("!x y", "expected no tag, got !x"),
    "complex key": ("{? [a] : b}", "expected a plain key"),
    "list that holds itself": ("&a [*a]", "expected at most 32 levels"),
    "mapping that holds itself": ("&a {b: *a}", "expected at most 32 levels"),
    "merge key": ("{<<: {a: 1}}", "expected no merge key"),
    "nested key twice": ("{b: 1, b: 2}", "key b is given twice"),
    "5,000 digits": ("9" * 5000, "expected a number of at most 300 characters, got 5,000"),
    "float of 5,000 digits": (f"1e{'9' * 5000}", "expected a number of at most 300 characters"),
    "directive": ("%x", "not YAML"),
    "escape beyond Unicode": ('"\\UFFFFFFFF"', "a version is too large"),
    "half a character": ('"\\ud800"', "UTF-8"),
    "NUL": ("a\0b", "got the character U+0000"),
    "escape code": ("\x1b[2J", "got the character U+001B"),
    "deep list": ("[" * 50_000, "expected at most 32 levels"),
    "deep sequence": ("- " * 40_000, "not YAML"),
    "deep mapping": ("{a: " * 20_000, "expected at most 32 levels"),
    "unknown alias": ("*nobody", "found undefined alias"),
    "long": ("[" + "1," * 60_000, "expected YAML of at most 100,000 characters, got 120,0"),
}
BOMB = [f"&a0 [{'x,' * 9}]", *(f"&a{i} [{f'*a{i - 1},' * 9}]" for i in range(1, 12))]


@pytest.mark.parametrize(("text", "message"), HOSTILE.values(), ids=HOSTILE)
def test_invalid_yaml_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    started = time.monotonic()
    for run in both_ways(tmp_path, text):
        with pytest.raises(UserError) as caught:
            run()
        assert message in str(caught.value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
    assert time.monotonic() - started < 5


def test_anchor_bomb_is_rejected_quickly(tmp_path: Path) -> None:
    started = time.monotonic()
    for run in both_ways(tmp_path, f"[{', '.join(BOMB)}]"):
        with pytest.raises(UserError, match="expected at most 20,000 values"):
            run()
    assert time.monotonic() - started < 5


def test_number_of_300_digits_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c.yaml: seed: .*, got 9999.*\.\.\.$"):
        load(tmp_path, f"seed: {'9' * 300}")


def test_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(2**40)  # sparse: NUL bytes that take no disk space
    with pytest.raises(UserError, match=r"huge.yaml: expected YAML of at most 100,000 characters"):
        load_config(tmp_path / "huge.yaml", schemas=SCHEMAS)


def holding_itself() -> dict[str, Any]:
    values: dict[str, Any] = {"seed": 1}
    values["loop"] = values
    return values


FOREIGN_VALUES: dict[str, tuple[Any, str]] = {
    "list": ([1, 2], "expected a mapping of keys, got [1, 2]"),
    "text": ("x", 'expected a mapping of keys, got "x"'),
    "none": (None, "expected a mapping of keys, got null"),
    "part that is a list": ({"optim": [1]}, "optim: expected a mapping of keys, got [1]"),
    "part that is text": ({"loop": "x"}, 'loop: expected a mapping of keys, got "x"'),
    "key that is a number": ({1: 2}, "1: unknown key"),
    "key that is a tuple": ({(1, 2): 2}, "expected only text and numbers"),
    "value that is an object": ({"seed": object()}, "expected only text and numbers"),
    "value that is a set": ({"seed": {1}}, "expected only text and numbers"),
    "number of 5,000 digits": ({"seed": 10**5000}, "expected only text and numbers"),
    "mapping that holds itself": (holding_itself(), "expected only text and numbers"),
    "half a character": ({"folder": "\ud800"}, "UTF-8"),
    "half a character in a key": ({"\ud800": 1}, "UTF-8"),
    "line break in a key": ({"a\nb\x1b[2J": 1}, "a\\nb\\x1b[2J: unknown key"),
    "long key": ({"a" * 10_000: 1}, "aaa...: unknown key"),
    "task that is a list": ({"task": ["first"]}, "task: expected first or second"),
    "task that is another's": ({"task": "x" * 10_000}, "task: expected first or second"),
}


@pytest.mark.parametrize(("values", "message"), FOREIGN_VALUES.values(), ids=FOREIGN_VALUES)
def test_mapping_of_a_foreign_file_is_validated(values: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(values, schemas=SCHEMAS, source="run.pt")
    assert str(caught.value).startswith("run.pt: ")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
