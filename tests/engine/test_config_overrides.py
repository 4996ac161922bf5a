"""Command-line overrides: how values are parsed by the type of their key."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from engine.config import dump_config, load_config, parse_config
from engine.errors import UserError
from engine.schema import Config, PathText
from tests.engine.test_config import SCHEMAS, SecondConfig, write


class PartConfig(Config):
    """A section with text that is not a path."""

    text: str = ""
    """Text."""


class PathsConfig(Config):
    """A task with paths and choices."""

    task: Literal["paths"] = "paths"
    """Tag."""
    images: PathText = ""
    """A path."""
    weights: PathText | None = None
    """An optional path."""
    kind: Literal["one", "1e3"] = "one"
    """A choice."""
    names: tuple[str, ...] = ()
    """A list of text."""
    files: dict[str, PathText] = Field(default_factory=dict)
    """Paths by name."""
    inner: PartConfig = PartConfig()
    """A section with text."""


def load_paths(tmp_path: Path, text: str, *overrides: str) -> PathsConfig:
    path = write(tmp_path / "p.yaml", text)
    return load_config(path, overrides, schemas={"paths": PathsConfig})


LITERAL = (
    *("set #2", "2024", "1e3", "true", "null", "&x", "*x", "[x", "{x", "{a: b}", "a: b", "x #y"),
    *("%x", "@x", "`x", "!x", "|", ">", "- a", "? a", " padded ", "a'b'", "'a' b 'c'", "a=b=c"),
    *("a\\nb", "#", "", "100%", "%USERPROFILE%", "~user", "a/~/b", "cash$money", "été", "日本"),
)


@pytest.mark.parametrize("text", LITERAL)
def test_text_override_is_taken_literally(tmp_path: Path, text: str) -> None:
    config = load_paths(tmp_path, "inner: {text: x}", f"images={text}", f"inner.text={text}")
    assert (config.images, config.inner.text) == (text, text)
    assert load_paths(tmp_path, dump_config(config)) == config
    assert load_paths(tmp_path, "", f"files.a={text}").files == {"a": text}
    optional = load_paths(tmp_path, "weights: x", f"weights={text}").weights
    assert optional == (None if text in ("", "null") else text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'a b'", "a b"),
        ('"a b"', "a b"),
        ("'it''s'", "it's"),
        ('"a\\tb"', "a\tb"),
        ('"\\x41"', "A"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ("' x '", " x "),
        ("'null'", "null"),
        ("''", ""),
        ('"\\"x\\""', '"x"'),
        ("'", "'"),
        ("'a", "'a"),
    ],
)
def test_quotes_around_text_are_removed(tmp_path: Path, text: str, expected: str) -> None:
    assert load_paths(tmp_path, "", f"images={text}").images == expected
    assert load_paths(tmp_path, "", f"weights={text}").weights == expected


def test_choices_and_lists_of_text_are_not_numbers(tmp_path: Path) -> None:
    config = load_paths(tmp_path, "", "kind= 1e3 ", "names=[2024, 1e3, true, null, 'a #b']")
    assert config.kind == "1e3"
    assert config.names == ("2024", "1e3", "true", "null", "a #b")


def test_task_override_may_be_quoted(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "seed: 3")
    config = load_config(path, ["size=3", 'task="second"'], schemas=SCHEMAS)
    assert config == SecondConfig(task="second", size=3, seed=3)


HOME_PATHS = {
    "~": "/home/me",
    "~/data": "/home/me/data",
    "$HOME": "/home/me",
    "$HOME/data": "/home/me/data",
    "${HOME}/data": "/home/me/data",
    "/scratch/$SET/x": "/scratch/a b/x",
    "$SET": "a b",
}


@pytest.mark.parametrize("text", HOME_PATHS)
def test_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SET", "a b")
    expected = HOME_PATHS[text]
    for config in (
        load_paths(tmp_path, "", f"images={text}"),
        load_paths(tmp_path, f"images: '{text}'"),
        parse_config({"images": text}, schemas={"paths": PathsConfig}, source="run.pt"),
    ):
        assert config.images == expected
        assert f"images: {expected}\n" in dump_config(config)
    text_of_another_kind = load_paths(tmp_path, "", f"inner.text={text}").inner.text
    assert text_of_another_kind == text


def test_unset_variable_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABSENT", raising=False)
    message = r"^command line: images: expected a path, got \$ABSENT/x: variable ABSENT is not set$"
    with pytest.raises(UserError, match=message):
        load_paths(tmp_path, "", "images=$ABSENT/x")


@pytest.mark.parametrize("text", ["2024", "1e3", "true", "~", "null", "&x", "[x]", "{x: y}", ""])
def test_unquoted_text_in_a_file_that_yaml_parses_as_another_type_is_rejected(
    tmp_path: Path, text: str
) -> None:
    message = r"p.yaml: images: expected a valid string, got .*; in quotes it is text$"
    with pytest.raises(UserError, match=message):
        load_paths(tmp_path, f"images: {text}")
