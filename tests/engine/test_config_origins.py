"""What sets each value of a config, and the same as comments in YAML."""

from pathlib import Path
from typing import Any

import pytest

from engine.config import dump_config, load_config, value_origins
from engine.yaml_text import dump_yaml, parse_yaml
from tests.engine.test_config import SCHEMAS, write


def origins(path: Path | None, *overrides: str) -> dict[str, str]:
    source = path or write(Path("empty.yaml"), "")
    return value_origins(load_config(source, overrides, schemas=SCHEMAS), path, overrides)


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config with a base and a base of that, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "far.yaml", "seed: 1\noptim: {lr: 1, momentum: 0.5}\nextra: {max_steps: 3}")
    write(tmp_path / "near.yaml", "base: far.yaml\noptim: {lr: 2}\nschedule: {milestones: [1, 2]}")
    return write(Path("top.yaml"), "base: near.yaml\nloop: {max_steps: 5, drawn_pictures: 2}")


def test_the_nearest_file_or_the_command_line_sets_a_value(chain: Path) -> None:
    found = origins(chain, "optim.momentum=0.1", "folder=x y")
    assert found["seed"] == "far.yaml"
    assert found["optim.lr"] == "near.yaml"
    assert found["optim.momentum"] == found["folder"] == "command line"
    assert found["schedule.milestones"] == "near.yaml"
    assert found["loop.max_steps"] == "top.yaml"
    assert found["loop.drawn_images"] == "top.yaml"  # under its earlier name
    assert found["extra.max_steps"] == "far.yaml"
    assert found["loop.batch_size"] == found["extra.batch_size"] == found["task"] == "default"
    assert "optim" not in found


def test_of_several_bases_the_last_one_sets_a_value(chain: Path) -> None:
    write(Path("other.yaml"), "optim: {momentum: 0.7}\nseed: 5")
    found = origins(write(Path("both.yaml"), "base: [near.yaml, other.yaml]\nfolder: x"))
    assert found["seed"] == found["optim.momentum"] == "other.yaml"
    assert found["optim.lr"] == "near.yaml"
    assert found["extra.max_steps"] == "far.yaml"
    assert found["folder"] == "both.yaml"


def test_a_section_that_is_replaced_has_only_later_values(chain: Path) -> None:
    assert origins(chain, "extra=null")["extra"] == "command line"
    write(Path("none.yaml"), "base: far.yaml\nextra: null")
    again = origins(Path("none.yaml"), "extra.batch_size=8")
    assert again["extra.batch_size"] == "command line"
    assert again["extra.max_steps"] == "default"  # far.yaml's 3 went with the section


def test_without_a_file_and_without_values(chain: Path) -> None:
    found = origins(None, "seed=3")
    assert {key for key, origin in found.items() if origin != "default"} == {"seed"}
    assert set(origins(None).values()) == {"default"}


def test_yaml_with_origins_loads_to_the_same_config(chain: Path) -> None:
    config = load_config(chain, ["folder=a # b"], schemas=SCHEMAS)
    text = dump_config(config, value_origins(config, chain, ["folder=a # b"]))
    assert "  lr: 2.0  # near.yaml\n" in text
    assert "  milestones:  # near.yaml\n  - 1.0\n" in text
    assert load_config(write(Path("again.yaml"), text), schemas=SCHEMAS) == config


def test_comments_follow_values_of_every_form() -> None:
    values: dict[str, Any] = {
        "long": "word " * 60,
        "quotes": "'q' " * 40,
        "empty": "",
        "null": None,
        "no keys": {},
        "no items": [],
        "lists": [[1, 2], [3]],
        "lines": "a\nb  # no comment\u2028c",
        "hash": "# " * 60,
    }
    text = dump_yaml({"part": values}, {f"part.{key}": f"of {key}\nx: 1" for key in values})
    assert parse_yaml(text, source="test") == {"part": values}
    assert text.count("  # of ") == len(values)
    assert dump_yaml({"a": 1}, {"b": "not there"}) == dump_yaml({"a": 1}) == "a: 1\n"
