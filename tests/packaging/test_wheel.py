"""Sdist and wheel: their files, the same wheel from both, configs by name, types for users."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.packaging.conftest import build

pytestmark = pytest.mark.extended

PACKAGES = ("engine", "backbones", "detection")
SUFFIXES = {".py", ".css", ".js", ".typed"}
RESDET = "from detection.commands.main import run; run()"
SCRIPT = """\
from backbones import resnet101
from detection import load_detector

for found in load_detector("runs/demo").predict(["image.jpg"]):
    boxes: str = found.boxes
resnet101(num_classes="many")
"""


def expected_files() -> set[str]:
    """Return the files of the repository that the wheel holds, by their names in it."""
    code = [
        path.relative_to(REPOSITORY).as_posix()
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*")
        if path.suffix in SUFFIXES
    ]
    configs = (REPOSITORY / "configs").glob("*/*.yaml")
    return {*code, *(f"detection/{path.relative_to(REPOSITORY).as_posix()}" for path in configs)}


def checksums(wheel: Path) -> dict[str, int]:
    """Return the CRC of each file in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {each.filename: each.CRC for each in archive.infolist()}


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def resdet(*arguments: str, packages: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the console script's function in a folder, with only `packages` on PYTHONPATH."""
    return subprocess.run(
        [sys.executable, "-c", RESDET, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(packages), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_all_of_the_packages_and_nothing_else(wheel: Path) -> None:
    names = {name for name in checksums(wheel) if ".dist-info/" not in name}
    assert names == expected_files()
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_the_sdist_gives_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    assert not {"tools", "tests"} & {path.name for path in folder.iterdir()}
    again = build("wheel", folder, tmp_path / "dist")
    assert checksums(again) == checksums(wheel)


def test_configs_are_found_by_name_in_any_folder(unpacked: Path, tmp_path: Path) -> None:
    found = resdet("config", "faster_rcnn_r50_fpn_coco", packages=unpacked, folder=tmp_path)
    assert found.returncode == 0, found.stderr
    configs = unpacked / "detection" / "configs" / "detection"
    assert f"  kind: resnet50  # {configs}/faster_rcnn_r50_fpn_coco.yaml\n" in found.stdout
    assert f"  lr: 0.02  # {configs}/base_coco.yaml\n" in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_installed_package_says_its_version(unpacked: Path, wheel: Path, tmp_path: Path) -> None:
    program = "from engine.provenance import current_commit; print(current_commit())"
    environment = {"PYTHONPATH": str(unpacked), "PATH": ""}
    command = [sys.executable, "-c", program]
    said = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert said == f"version {wheel.name.split('-')[1]}\n"


@pytest.mark.slow
def test_mypy_finds_the_types_of_an_installed_package(unpacked: Path, tmp_path: Path) -> None:
    # mypy heeds py.typed in site-packages only; those of this environment come after the wheel's
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    for name in PACKAGES:
        (packages / name).symlink_to(unpacked / name)
    these = [folder for folder in sys.path if Path(folder).name == "site-packages"]
    (packages / "these.pth").write_text("\n".join(these))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    python = environment / Path(sys.executable).relative_to(sys.prefix)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, script.name],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "MYPYPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if "error: " in line]
    assert len(errors) == 2, done.stdout + done.stderr
    assert 'expression has type "Tensor", variable has type "str"' in errors[0]
    assert 'Argument "num_classes" to "resnet101" has incompatible type "str"' in errors[1]
