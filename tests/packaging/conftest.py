"""Fixtures of the packaging tests: sdist and wheels, built from a copy of the repository."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SOURCES = ("engine", "backbones", "detection", "configs", "tools", "tests")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


def build(kind: str, source: Path, output: Path) -> Path:
    """Build an `sdist` or a `wheel` of a folder, with the setuptools of this environment."""
    hook = f"from setuptools import build_meta; build_meta.build_{kind}({str(output)!r})"
    output.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", hook], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Package would be ignored" not in done.stdout + done.stderr
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository: a build writes files beside the sources."""
    folder = tmp_path_factory.mktemp("repository") / "resdet"
    folder.mkdir()
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture(scope="session")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive `resdet-VERSION.tar.gz`."""
    return build("sdist", source, tmp_path_factory.mktemp("sdist") / "dist")


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel `resdet-VERSION-py3-none-any.whl`."""
    return build("wheel", source, tmp_path_factory.mktemp("wheel") / "dist")
