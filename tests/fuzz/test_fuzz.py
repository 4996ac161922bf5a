"""Hostile files of every kind: read, or refused in one line; never a traceback, hang or crash."""

import sys
from pathlib import Path

import pytest

from tests.fuzz.checkpoint_files import CheckpointFiles
from tests.fuzz.coco_documents import CocoDocuments
from tests.fuzz.coco_results import CocoResults
from tests.fuzz.harness import Kind, faults_of, run_kind
from tests.fuzz.image_files import ImageFiles
from tests.fuzz.report import figures
from tests.fuzz.yaml_configs import YamlConfigs

KINDS: tuple[type[Kind], ...] = (
    CocoDocuments,
    CocoResults,
    YamlConfigs,
    ImageFiles,
    CheckpointFiles,
)


def check(kind: Kind, count: int, folder: Path) -> None:
    outcomes = run_kind(kind, count, folder)
    sys.stdout.write(f"{figures(kind.name, outcomes)}\n")  # seen with -s
    faults = [f"{number} x {first}" for first, number in faults_of(outcomes)]
    assert not faults, f"{folder}/faults holds the input of:\n" + "\n".join(faults)
    assert len({outcome.index for outcome in outcomes}) == count


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_first_hostile_files(kind: type[Kind], tmp_path: Path) -> None:
    case = kind()
    check(case, case.quick, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_all_hostile_files(kind: type[Kind], tmp_path: Path) -> None:
    case = kind()
    check(case, case.full, tmp_path)
