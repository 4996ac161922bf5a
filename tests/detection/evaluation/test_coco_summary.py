"""COCO's twelve numbers from matched tables: pycocotools' numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from detection.evaluation.coco_ap import SUMMARY, score_file
from detection.evaluation.coco_summary import coco_summary
from detection.evaluation.match_files import match_file
from tests.detection.evaluation.matched_tables import DEGENERATE, random_table, table_of


def check(folder: Path, got: dict[str, float]) -> None:
    judge = score_file(folder / "results.json", folder / "truth.json", backend="pycocotools")
    for name in SUMMARY:
        np.testing.assert_allclose(got[name], judge.metrics[name], atol=1e-12, err_msg=name)


@pytest.mark.parametrize("seed", range(3))
def test_random_runs(tmp_path: Path, seed: int) -> None:
    check(tmp_path, coco_summary(random_table(tmp_path, seed)))


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_runs(name: str, tmp_path: Path) -> None:
    objects, found, crowds = DEGENERATE[name]
    check(tmp_path, coco_summary(table_of(tmp_path, objects, found, crowds=crowds)))


@pytest.mark.data
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_real_results(data_dir: Path, kind: str) -> None:
    folder = data_dir / "coco128"
    found = match_file(
        folder / "results" / f"{kind}.json",
        folder / "annotations/instances_train2017.json",
        named_images=True,
    )
    expected = json.loads((folder / "results/expected.json").read_text())
    got = coco_summary(next(iter(found.matches.values())))
    numbers = expected[kind]
    numbers = numbers if isinstance(numbers, list) else list(numbers.values())
    np.testing.assert_allclose(list(got.values()), numbers, atol=1e-9)
