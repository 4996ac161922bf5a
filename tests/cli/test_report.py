"""The report command: results files and runs, hostile names, mistakes, the page in a browser."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detection.commands import pretrain, report, train
from detection.evaluation.coco_ap import SUMMARY, score_file
from engine.config import dump_config
from tests.backbones.classification.tiny import write_folder
from tests.cli.conftest import Call
from tests.cli.test_pretrain import CONFIG as CLASSIFIER
from tests.detection.evaluation.matched_tables import DEGENERATE, document_of, results_of
from tests.detection.localization.tiny_localizer import tiny_config, write_tiny_imagenet
from tests.detection.report.browser import Browser, find_chromium
from tests.detection.report.page_checks import check_page, read_strictly

DETECTION = [
    *("summary", "classes", "errors", "confusion", "scores", "calibration", "parts"),
    *("worst", "wrong", "missed", "labels"),
]
NAMES = ("<script>alert(1)</script>", "\"quotes' & <b>", "Kätzchen 猫 \u202e")
FILES = ("ein Bild 画像.jpg", '"><img src=x onerror=alert(2)>.jpg', "c.png", "missing.jpg")


def hostile_site(folder: Path) -> dict[str, Any]:
    """Write images, truth.json and results.json with names that try to leave their place."""
    rng = np.random.default_rng(0)
    boxes = [(10, 10, 40, 40), (100, 20, 50, 30), (60, 60, 20, 30)]
    objects = [(i, k + 1, boxes[k]) for i in range(4) for k in range(3)]
    found = [(i, (k + i) % 3 + 1, boxes[k], float(rng.random())) for i in range(4) for k in (0, 1)]
    found += [(i, i % 3 + 1, (150, 70, 20, 20), 0.99) for i in range(4)]  # of nothing
    document = document_of(objects)
    for category, name in zip(document["categories"], NAMES, strict=True):
        category["name"] = name.replace("\u202e", "")
    (folder / "images").mkdir()
    for image, name in zip(document["images"], FILES, strict=True):
        image["file_name"] = name
        pixels = rng.integers(256, size=(100, 200, 3), dtype=np.uint8)
        if name != "missing.jpg":
            (folder / "images" / name).write_bytes(
                cv2.imencode(Path(name).suffix, pixels)[1].tobytes()
            )
    (folder / "truth.json").write_text(json.dumps(document))
    (folder / "results.json").write_text(json.dumps(results_of(found)))
    return document


def test_hostile_names_stay_text(tmp_path: Path, call: Call) -> None:
    hostile_site(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    done = call(
        report,
        *("--results", tmp_path / "results.json", "--output", tmp_path / "out"),
        f"data.val.annotations={tmp_path / 'truth.json'}",
        f"data.val.images={tmp_path / 'images'}",
    )
    assert done.code == 0, done.err
    page = check_page(tmp_path / "out/report.html")
    assert page.sections == [*DETECTION, "origin"]
    for text in (NAMES[0], NAMES[1], *FILES[:2]):
        assert text in page.shown
    numbers = read_strictly(tmp_path / "out/report.json")
    assert numbers["images"]["not_shown"][0]["file_name"] == "missing.jpg"
    assert numbers["boxes"]["classes"][0]["name"] == NAMES[0]
    judge = score_file(tmp_path / "results.json", tmp_path / "truth.json").metrics
    for name in SUMMARY:
        got = numbers["boxes"]["summary"][name]
        assert got == (None if np.isnan(judge[name]) else pytest.approx(judge[name]))
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert before == after


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_results_have_a_report(name: str, tmp_path: Path, call: Call) -> None:
    objects, found, crowds = DEGENERATE[name]
    document = document_of(objects, crowds=crowds)
    for image in document["images"]:  # only ids are needed
        del image["height"], image["width"], image["file_name"]
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "results.json").write_text(json.dumps(results_of(found)))
    annotations = f"data.val.annotations={tmp_path / 'truth.json'}"
    done = call(report, tmp_path / "results.json", annotations)
    assert done.code == 0, done.err
    page = check_page(tmp_path / "report.html")
    assert "No images were given" in page.shown
    read_strictly(tmp_path / "report.json")


@pytest.mark.extended
def test_run_of_a_detector(trained: Path, call: Call, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(trained.parent)
    flags = ["--against", "run", "--output", tmp_path, "--device", "cpu"]
    done = call(report, "run", *flags)
    assert done.code == 0, done.err
    page = check_page(tmp_path / "report.html")
    expected = ["summary", "comparison", *DETECTION[1:], "training", "origin"]
    assert page.sections == expected
    numbers = read_strictly(tmp_path / "report.json")
    assert numbers["comparison"]["difference"]["ap"]["value"] == 0
    assert numbers["comparison"]["difference"]["ap"]["p_value"] == 1
    assert numbers["proposals"]["100"]["all"]["objects"] == 2
    assert numbers["training"]["train"]["step"] == [1, 2]
    assert [each["step"] for each in numbers["training_starts"]] == [0]
    assert len(numbers["origin"]["files"]["annotations"]["sha256"]) == 64
    done = call(report, "run", "--output", tmp_path, "--device", "cpu", "data.val.images=gone")
    assert done.code == 0
    assert "recall of proposals: skipped, because the run's weights or images are not" in done.out
    assert read_strictly(tmp_path / "report.json").get("proposals") is None


@pytest.mark.extended
def test_run_of_a_classifier(tmp_path: Path, call: Call, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "classes")
    (tmp_path / "tiny.yaml").write_text(CLASSIFIER)
    assert call(pretrain, "tiny.yaml", "--output", "run", "--device", "cpu").code == 0
    done = call(report, "run", "--device", "cpu")
    assert done.code == 0, done.err
    page = check_page(tmp_path / "run/report.html")
    expected = ["summary", "classes", "confusion", "calibration", "worst", "training", "origin"]
    assert page.sections == expected
    numbers = read_strictly(tmp_path / "run/report.json")
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert numbers["top1"]["value"] == metrics["top1"]
    assert numbers["top1"]["low"] <= metrics["top1"] <= numbers["top1"]["high"]
    assert numbers["calibration"]["error"] == pytest.approx(metrics["calibration_error"])
    assert "expected a detector's run" in call(report, "run", "--proposals").err


@pytest.mark.extended
def test_run_of_a_localizer(tmp_path: Path, call: Call, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_imagenet(tmp_path / "data")
    (tmp_path / "tiny.yaml").write_text(dump_config(tiny_config(Path("data"))))
    assert call(train, "tiny.yaml", "--output", "run", "--device", "cpu").code == 0
    done = call(report, "run", "--device", "cpu")
    assert done.code == 0, done.err
    page = check_page(tmp_path / "run/report.html")
    assert page.sections == ["summary", "errors", "classes", "worst", "training", "origin"]
    numbers = read_strictly(tmp_path / "run/report.json")
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert numbers["accuracy"]["value"] == pytest.approx(metrics["localization_accuracy"])
    assert sum(numbers["iou_histogram"]["images"]) == metrics["num_images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one run folder or one results file, got 0: none"),
        (["a", "b"], "got 2: a, b"),
        (["--results", "results.json"], "expected data.val.annotations=PATH as well"),
        (["absent"], "absent: expected a run folder or a COCO results file, got no such folder"),
        (["data"], "data: expected a run folder with config.yaml, got one without"),
        (["run"], "detections.json: expected the detections of a finished run, got none"),
        (
            ["results.json", "data.val.annotations=data/val.json", "--proposals"],
            "--proposals: expected a run folder with a model, got a results file",
        ),
    ],
)
def test_mistakes_are_one_line(site: Path, call: Call, arguments: Any, message: str) -> None:
    (site / "results.json").write_text("[]")
    (site / "run").mkdir()
    (site / "run/config.yaml").write_text((site / "tiny.yaml").read_text())
    done = call(report, *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err


@pytest.mark.extended
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium browser is installed")
def test_page_in_a_browser(tmp_path: Path, call: Call) -> None:
    hostile_site(tmp_path)
    values = {"annotations": tmp_path / "truth.json", "images": tmp_path / "images"}
    overrides = [f"data.val.{key}={value}" for key, value in values.items()]
    assert call(report, tmp_path / "results.json", *overrides).code == 0
    page = tmp_path / "report.html"
    chromium = find_chromium()
    assert chromium is not None
    with Browser(chromium, tmp_path / "profile") as browser:
        for width in (1400, 400):
            visit = browser.open(page, width=width)
            assert visit.errors == []
            outside = [url for url in visit.requests if not url.startswith(("data:", "file:"))]
            assert outside == []
            assert [url for url in visit.requests if url.startswith("file:")] == [page.as_uri()]
            # the page itself does not scroll sideways
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        cards = "document.querySelectorAll('#wrong-cards > :not([hidden])').length"
        everything = browser.evaluate(cards)
        browser.evaluate(
            "{const s = document.querySelector('[data-filter=wrong-cards]');"
            "s.selectedIndex = 1; s.dispatchEvent(new Event('change'))}"
        )
        assert 0 < browser.evaluate(cards) < everything
        cell = "document.querySelector('#classes tbody tr td').textContent"
        browser.evaluate("document.querySelector('#classes th button').click()")
        assert browser.evaluate(cell) == min(NAMES[:2])
        assert visit.errors == []
