"""The Dockerfile, read without Docker: its sources, arguments and user. No image is built."""

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.packaging.conftest import build
from tests.packaging.test_wheel import checksums

TEXT = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
INSTRUCTIONS = [line.split(maxsplit=1) for line in LINES if line.strip()]
IGNORED = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()


def values_of(name: str) -> list[str]:
    """Return what follows each instruction of a kind, in order."""
    return [value for instruction, value in INSTRUCTIONS if instruction == name]


def sources() -> list[str]:
    """Return the files and folders of the repository that are copied into the image."""
    copied = [value.split() for value in values_of("COPY")]
    return [name for names in copied if not names[0].startswith("--from") for name in names[:-1]]


def test_instructions_are_known_and_the_user_is_not_root() -> None:
    known = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
    assert {instruction for instruction, _ in INSTRUCTIONS} == known
    (user,) = values_of("USER")
    assert user != "root"
    assert any(command.startswith("useradd") and user in command for command in values_of("RUN"))
    assert [instruction for instruction, _ in INSTRUCTIONS][-4:-1] == [
        "USER",
        "WORKDIR",
        "ENTRYPOINT",
    ]


def test_sources_exist_and_are_not_ignored() -> None:
    assert [name for name in sources() if not (REPOSITORY / name).exists()] == []
    assert [name for name in sources() if f"!{name}" not in IGNORED] == []
    kept = [line.removeprefix("!") for line in IGNORED if line.startswith("!")]
    assert sorted(kept) == sorted(sources())
    assert any(fnmatch("engine/__pycache__", pattern) for pattern in IGNORED)


def test_every_argument_is_used_and_every_variable_is_an_argument() -> None:
    arguments = [value.partition("=")[0] for value in values_of("ARG")]
    uses = re.findall(r"\$\{(\w+)\}", TEXT)
    assert sorted(set(arguments)) == sorted(set(uses))
    assert "TORCH_INDEX=" in values_of("ARG")  # PyPI unless a user names another index
    assert "://" not in TEXT


def test_torch_has_the_bounds_of_the_project() -> None:
    settings = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    bounds = re.findall(r'"(torch(?:vision)?>=[\d.]+)"', TEXT)
    assert len(bounds) == 2
    assert [bound for bound in bounds if f'"{bound}"' not in settings] == []


@pytest.mark.extended
def test_the_copied_sources_give_the_wheel(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in sources():
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, folder / name)
    assert checksums(build("wheel", folder, tmp_path / "dist")) == checksums(wheel)
