"""Config files: bases, overrides, validation and its messages."""

import math
from pathlib import Path
from typing import Any, Literal, Self

import pytest
from pydantic import model_validator

from engine.config import describe_config, differences, dump_config, load_config, parse_config
from engine.errors import UserError
from engine.schema import Config, LoopConfig, OptimConfig, RunConfig


class RangeConfig(Config):
    """A section with a validator over two values."""

    low: int = 0
    """Lower end."""
    high: int = 1
    """Upper end."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low: expected at most high, {self.high}, got {self.low}")
        return self


class FirstConfig(RunConfig):
    """A task's config."""

    task: Literal["first"] = "first"
    """Tag."""
    folder: str = ""
    """Text."""
    extra: LoopConfig | None = None
    """An optional section."""
    range: RangeConfig = RangeConfig()
    """A section with its own validator."""


class SecondConfig(RunConfig):
    """Another task's config."""

    task: Literal["second"]
    """Tag."""
    size: int
    """A value without a default."""


SCHEMAS: dict[str, type[RunConfig]] = {"first": FirstConfig, "second": SecondConfig}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def load(tmp_path: Path, text: str, *overrides: str) -> FirstConfig:
    config = load_config(write(tmp_path / "c.yaml", text), overrides, schemas=SCHEMAS)
    assert isinstance(config, FirstConfig)
    return config


def test_empty_file_gives_the_defaults_of_the_first_schema(tmp_path: Path) -> None:
    assert load(tmp_path, "") == FirstConfig()


def test_task_key_selects_the_schema(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "task: second\nsize: 3")
    assert load_config(path, schemas=SCHEMAS) == SecondConfig(task="second", size=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-2", 0.01),
        ("1E5", 1e5),
        ("2.5e-3", 0.0025),
        (".5", 0.5),
        ("1.", 1.0),
        ("3", 3.0),
        ("1_000", 1000.0),
    ],
)
def test_numbers_in_files_and_overrides(tmp_path: Path, text: str, expected: float) -> None:
    for config in (
        load(tmp_path, f"optim: {{lr: {text}}}"),
        load(tmp_path, "", f"optim.lr={text}"),
    ):
        assert type(config.optim.lr) is float
        assert math.isclose(config.optim.lr, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no", "no"),
        ("2020-01-02", "2020-01-02"),
        ("a=b", "a=b"),
        ("12:30:45", "12:30:45"),
        ("'1e-2'", "1e-2"),
        ("/a b/c", "/a b/c"),
    ],
)
def test_text_stays_text(tmp_path: Path, text: str, expected: str) -> None:
    assert load(tmp_path, f"folder: {text}").folder == expected
    assert load(tmp_path, "", f"folder={text}").folder == expected


@pytest.mark.parametrize("text", ["", "null", "~"], ids=["empty", "null", "tilde"])
def test_empty_values_are_none(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, "loop: {patience: 3}", f"loop.patience={text}").loop.patience is None


def test_lists_and_mappings_as_overrides(tmp_path: Path) -> None:
    text = "schedule: {milestones: [1, 2, 3], gamma: 0.5}"
    config = load(tmp_path, text, "schedule.milestones=[4, 5]", "schedule={warmup_steps: 7}")
    assert config.schedule.milestones == (4.0, 5.0)
    assert config.schedule.warmup_steps == 7
    assert config.schedule.gamma == 0.5


def test_override_creates_an_absent_section(tmp_path: Path) -> None:
    config = load(tmp_path, "extra: null", "extra.batch_size=3")
    assert config.extra == LoopConfig(batch_size=3)


def test_overrides_do_not_change_the_input_mapping() -> None:
    values: dict[str, Any] = {"optim": {"lr": 1.0}}
    config = parse_config(values, ["optim.lr=2.0", "seed=1"], schemas=SCHEMAS, source="x")
    assert config == FirstConfig(optim=OptimConfig(lr=2.0), seed=1)
    assert values == {"optim": {"lr": 1.0}}


def test_base_then_file_then_overrides(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    write(tmp_path / "shared" / "base.yaml", "optim: {lr: 1.0, momentum: 0.5}\nseed: 1")
    text = "base: shared/base.yaml\noptim: {lr: 2.0}"
    config = load(tmp_path, text, "seed=3")
    assert (config.optim.lr, config.optim.momentum, config.seed) == (2.0, 0.5, 3)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("optim: {lrr: 1}", [], "c.yaml: optim.lrr: unknown key; nearest: optim.lr"),
        ("", ["optim.lrr=1"], "command line: optim.lrr: unknown key; nearest: optim.lr"),
        ("opitm: {lr: 1}", [], "c.yaml: opitm: unknown key; nearest: optim"),
        (
            "batch_size: 4",
            [],
            "c.yaml: batch_size: unknown key; nearest: loop.batch_size or extra.batch_size",
        ),
        (
            "extra: {log_evry: 4}",
            [],
            "c.yaml: extra.log_evry: unknown key; nearest: extra.log_every",
        ),
        ("loader: {zzz: 1}", [], "c.yaml: loader.zzz: unknown key; known here: workers, prefetch"),
        ("optim: {lr: '0.1'}", [], 'c.yaml: optim.lr: expected a valid number, got "0.1"'),
        ("optim: {lr: true}", [], "c.yaml: optim.lr: expected a valid number, got true"),
        ("optim: {lr: .nan}", [], "c.yaml: optim.lr: expected a finite number, got NaN"),
        ("", ["optim.lr=-1"], "command line: optim.lr: expected greater than 0, got -1"),
        ("seed: 1.0", [], "c.yaml: seed: expected a valid integer, got 1.0"),
        ("seed: true", [], "c.yaml: seed: expected a valid integer, got true"),
        ("seed: 010", [], 'c.yaml: seed: expected a valid integer, got "010"'),
        ("seed:", [], "c.yaml: seed: expected a valid integer, got null"),
        (
            "loop: {compile: 'true'}",
            [],
            'c.yaml: loop.compile: expected a valid boolean, got "true"',
        ),
        (
            "loop: {compile: true, compile_mode: reduce-overhead}",
            ["loop.accumulate=2"],
            "loop: accumulate: expected 1 with compile_mode=reduce-overhead, got 2",
        ),
        ("loop: {compile: 1}", [], "c.yaml: loop.compile: expected a valid boolean, got 1"),
        ("folder: 1e5", [], "c.yaml: folder: expected a valid string, got 100000.0"),
        ("optim: {kind: sdg}", [], "c.yaml: optim.kind: expected 'sgd' or 'adamw', got \"sdg\""),
        ("optim: 3", [], "c.yaml: optim: expected a mapping of keys, got 3"),
        ("", ["optim=3"], "command line: optim: expected a mapping of keys, got 3"),
        (
            "schedule: {milestones: 3}",
            [],
            "c.yaml: schedule.milestones: expected a list, got 3; in brackets, [a, b]",
        ),
        (
            "schedule: {milestones: [3, x]}",
            [],
            'c.yaml: schedule.milestones.1: expected a valid number, got "x"',
        ),
        (
            "",
            ["schedule.milestones=[x]"],
            'command line: schedule.milestones.0: expected a valid number, got "x"',
        ),
        ("optim: {betas: [0.1]}", [], "c.yaml: optim.betas.1: expected a value, got none"),
        ("task: second", [], "c.yaml: size: expected a value, got none"),
        ("task: third", [], 'c.yaml: task: expected first or second, got "third"'),
        ("", ["task=[1]"], 'command line: task: expected first or second, got "[1]"'),
        ("task: [1]", [], "c.yaml: task: expected first or second, got [1]"),
        ("1: 2", [], "c.yaml: 1: unknown key; known here: "),
        ("base: 1", [], "c.yaml: base: expected a file name or a list of them, got 1"),
        ("base: [a, 1]", [], 'c.yaml: base: expected a file name or a list of them, got ["a", 1]'),
        ("base: gone.yaml", [], "gone.yaml: no such file"),
        ("seed: 1\nseed: 2", [], "c.yaml: not YAML: key seed is given twice (line 2, column 1)"),
        ("seed: [1", [], "c.yaml: not YAML: "),
        ("- 1", [], "c.yaml: expected a mapping of keys, got [1]"),
        ("", ["seed"], "command line: expected key=value, got seed"),
        ("", ["=1"], "command line: expected key=value, got =1"),
        ("", ["seed=@x"], "command line: seed: not YAML: found character '@'"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_three_of_many_mistakes_are_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"seed: .*; .*optim.lr: .*; .*loop.a: .*; and 1 more$"):
        load(tmp_path, "seed: x\noptim: {lr: x}\nloop: {a: 1, b: 2}")


def test_base_file_may_have_a_base(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    write(tmp_path / "far" / "a.yaml", "optim: {lr: 1.0, momentum: 0.5}\nseed: 1")
    write(tmp_path / "b.yaml", "base: far/a.yaml\noptim: {lr: 2.0}\nseed: 2")
    config = load(tmp_path, "base: b.yaml\nseed: 3")
    assert (config.optim.lr, config.optim.momentum, config.seed) == (2.0, 0.5, 3)
    described = describe_config(tmp_path / "c.yaml", ["seed=4"]).replace(f"{tmp_path}/", "")
    assert described == "config: c.yaml over b.yaml over far/a.yaml, with seed=4"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["a.yaml", "b.yaml", "d.yaml"],
            "c.yaml -> a.yaml -> b.yaml -> d.yaml: base: expected a chain of at most 2 base files",
        ),
        (["c.yaml"], "c.yaml -> c.yaml: base: expected a chain of files, got a cycle"),
        (["a.yaml", "c.yaml"], "c.yaml -> a.yaml -> c.yaml: base: expected a chain"),
        (["gone.yaml"], "c.yaml: base: gone.yaml: no such file"),
        (["~/gone.yaml"], "c.yaml: base: home/gone.yaml: no such file"),
        (["$ABSENT/a.yaml"], "c.yaml: base: expected a path, got $ABSENT/a.yaml: variable"),
        (["''"], "c.yaml: base: .: expected a file, got a folder"),
        (["a\\0.yaml"], "expected a path, got one that cannot exist"),
    ],
    ids=["too long", "itself", "circle", "missing", "home", "variable", "empty", "NUL"],
)
def test_invalid_base_chains_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], message: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, base in zip(["c.yaml", *files], files, strict=False):
        quoted = base if base.startswith("'") else f'"{base}"'
        write(tmp_path / name, f"base: {quoted}")
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "c.yaml", schemas=SCHEMAS)
    assert message in str(caught.value).replace(f"{tmp_path}/", "").replace(str(tmp_path), ".")


def test_later_bases_override_earlier_ones_and_their_bases(tmp_path: Path) -> None:
    write(tmp_path / "far.yaml", "optim: {lr: 1.0, momentum: 0.1}\nseed: 1\nfolder: far")
    write(tmp_path / "a.yaml", "base: far.yaml\noptim: {lr: 2.0}\nseed: 2")
    write(tmp_path / "deep.yaml", "optim: {momentum: 0.5}")
    write(tmp_path / "b.yaml", "base: [deep.yaml]\nseed: 3")
    config = load(tmp_path, "base: [a.yaml, b.yaml]\nloop: {max_steps: 4}")
    assert (config.optim.lr, config.optim.momentum, config.seed) == (2.0, 0.5, 3)
    assert (config.folder, config.loop.max_steps) == ("far", 4)
    described = describe_config(tmp_path / "c.yaml").replace(f"{tmp_path}/", "")
    assert described == ("config: c.yaml over b.yaml over deep.yaml over a.yaml over far.yaml")


def test_an_empty_list_of_bases_names_none(tmp_path: Path) -> None:
    assert load(tmp_path, "base: []\nseed: 3").seed == 3


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ("[a.yaml, a.yaml]", "c.yaml -> a.yaml: base: expected each file once, got this one again"),
        ("[a.yaml, ./a.yaml]", "c.yaml -> a.yaml: base: expected each file once"),
        ("[b.yaml, a.yaml]", "c.yaml -> b.yaml -> a.yaml: base: expected each file once"),
        ("[a.yaml, c.yaml]", "c.yaml -> c.yaml: base: expected a chain of files, got a cycle"),
        ("[a.yaml, circle.yaml]", "c.yaml -> circle.yaml -> c.yaml: base: expected a chain"),
        ("[long.yaml, a.yaml]", "c.yaml -> long.yaml -> circle.yaml -> c.yaml: base: expected a"),
        ("[a.yaml, gone.yaml]", "c.yaml: base: gone.yaml: no such file"),
    ],
    ids=[
        "twice",
        "spelled otherwise",
        "by two ways",
        "itself",
        "circle",
        "circle below",
        "missing",
    ],
)
def test_invalid_lists_of_bases_are_rejected(tmp_path: Path, bases: str, message: str) -> None:
    write(tmp_path / "a.yaml", "seed: 1")
    write(tmp_path / "b.yaml", "base: a.yaml")
    write(tmp_path / "circle.yaml", "base: c.yaml")
    write(tmp_path / "long.yaml", "base: circle.yaml")
    with pytest.raises(UserError) as caught:
        load(tmp_path, f"base: {bases}")
    assert message in str(caught.value).replace(f"{tmp_path}/", "")


def test_mistake_in_the_base_names_the_base(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "seed: x")
    with pytest.raises(UserError, match=r"a.yaml: seed: expected"):
        load(tmp_path, "base: a.yaml")


def test_unreadable_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: no such file"):
        load_config(tmp_path / "none.yaml", schemas=SCHEMAS)
    with pytest.raises(UserError, match="expected a file, got a folder"):
        load_config(tmp_path, schemas=SCHEMAS)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match=r"bytes.yaml: expected YAML text"):
        load_config(tmp_path / "bytes.yaml", schemas=SCHEMAS)


def test_message_of_a_schema_validator_is_shown() -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"range": {"low": 3}}, schemas=SCHEMAS, source="run.pt")
    assert str(caught.value) == "run.pt: range: low: expected at most high, 1, got 3"


@pytest.mark.parametrize(
    "config",
    [
        FirstConfig(),
        FirstConfig(folder="1e-2", extra=LoopConfig(patience=2)),
        FirstConfig(folder="é: null # x\n y", optim=OptimConfig(lr=1e-5, betas=(0.5, 1 / 3))),
        FirstConfig(folder="010"),
        FirstConfig(folder="true"),
    ],
    ids=["defaults", "number-like", "odd text", "octal-like", "bool-like"],
)
def test_dump_loads_to_an_equal_config(tmp_path: Path, config: Config) -> None:
    assert isinstance(config, FirstConfig)
    assert load(tmp_path, dump_config(config)) == config
    values = config.model_dump(mode="json")
    assert parse_config(values, schemas=SCHEMAS, source="checkpoint") == config


def test_differences_are_listed_by_dotted_path() -> None:
    old = FirstConfig()
    new = FirstConfig(optim=OptimConfig(lr=0.01), seed=3)
    assert differences(old, new) == ["seed: 0 -> 3", "optim.lr: 0.02 -> 0.01"]
    assert differences(old, old) == []


def test_keys_of_earlier_versions_are_accepted_with_a_note(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "loop:\n  drawn_pictures: 3\n")
    assert load_config(path, schemas=SCHEMAS).loop.drawn_images == 3
    assert describe_config(path).endswith("; loop.drawn_pictures is now called loop.drawn_images")
    changed = load(tmp_path, "", "loop.drawn_pictures=5")
    assert changed.loop.drawn_images == 5
    values = {"loop": {"drawn_pictures": 1}}
    assert parse_config(values, schemas=SCHEMAS, source="a run").loop.drawn_images == 1


def test_key_under_old_and_new_name_is_rejected(tmp_path: Path) -> None:
    text = "loop: {drawn_pictures: 3, drawn_images: 4}"
    with pytest.raises(UserError, match=r"expected only its current name loop\.drawn_images"):
        load(tmp_path, text)
