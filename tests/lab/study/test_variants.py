"""Studies of variants: rows and their settings, report and verdicts from files, a tiny study."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from tests.lab.study.finished import finish_run, finish_scoring, write_annotations
from tests.lab.study.tiny_configs import DATA, DETECTOR, write_configs
from tools.lab.study.config import VariantsStudyConfig
from tools.lab.study.variants import VariantsPlan, plan_study, run_study, write_report

VALUES: dict[str, Any] = {
    "title": "Variants of a detector",
    "training": {"config": "detector.yaml", "data": DATA},
    "networks": {"plain": [], "context": ["model.roi.global_context=true"]},
    "rows": {
        "plain": {"network": "plain"},
        "refined": {"after": "plain", "overrides": ["evaluation.refine_boxes=true"]},
        "context": {"after": "refined", "network": "context"},
        "two scales": {"after": "context", "overrides": ["evaluation.scales=[48, 64]"]},
        "joined": {
            "after": "context",
            "overrides": ["evaluation.merge=union", "evaluation.mirror=true"],
        },
        "ensemble": {"after": "two scales", "ensemble": True},
    },
    "seeds": [0, 1],
    "expectations": [
        {"row": "ensemble", "above": "plain", "at_least": 1.5},
        {"row": "refined", "score": "ap50", "at_most": 20},
    ],
}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """Folder with the config of the training."""
    detector = DETECTOR.replace("norm: frozen", "kind: resnet18, norm: group")
    return write_configs(tmp_path / "configs", detector=detector)


def scale_of(**changes: Any) -> VariantsStudyConfig:
    return VariantsStudyConfig.model_validate({**VALUES, **changes})


def plan(configs: Path, scale: VariantsStudyConfig, **changes: Any) -> VariantsPlan:
    arguments = {"output": configs.parent / "study", "data": str(configs.parent / "data")}
    return plan_study(scale, configs=configs, **{**arguments, **changes})


def report_of(scale: VariantsStudyConfig, planned: VariantsPlan, folder: Path) -> str:
    write_report(scale, planned, output=folder, command="python tools/repro.py run")
    return (folder / "report.md").read_text()


def test_rows_add_to_the_settings_of_the_row_that_they_follow(configs: Path) -> None:
    planned = plan(configs, scale_of())
    assert [run.name for run in planned.trainings] == [
        *("plain-seed0", "context-seed0", "plain-seed1", "context-seed1")
    ]
    settings = {
        row.name: [
            ([run.name for run in scoring.runs], scoring.overrides) for scoring in row.scorings
        ]
        for row in planned.rows
    }
    refined, scales = "evaluation.refine_boxes=true", "evaluation.scales=[48, 64]"
    assert settings["plain"] == [(["plain-seed0"], ()), (["plain-seed1"], ())]
    assert settings["refined"][1] == (["plain-seed1"], (refined,))
    assert settings["context"][0] == (["context-seed0"], (refined,))
    assert settings["two scales"][0] == (["context-seed0"], (refined, scales))
    joined = ("evaluation.merge=union", "evaluation.mirror=true")
    assert settings["joined"][0] == (["context-seed0"], (refined, *joined))
    assert settings["ensemble"] == [(["context-seed0", "context-seed1"], (refined, scales))]
    folders = {scoring.folder for row in planned.rows for scoring in row.scorings}
    assert len(folders) == 11
    # commands with other seeds share the folder of the study, at the same time, too
    other = plan(configs, scale_of(), seeds=[0, 2]).rows[-1].scorings[0].folder
    assert other not in folders


def test_seeds_and_test_data(configs: Path) -> None:
    scale = scale_of(test={"data.val.annotations": "test.json"})
    planned = plan(configs, scale, seeds=[7], data="here")
    assert [run.config.seed for run in planned.trainings] == [7, 7]
    (scoring,) = planned.rows[0].scorings
    assert scoring.overrides == ('data.val.annotations="here/test.json"',)
    assert scoring.annotations == Path("here/test.json")


def test_wrong_test_time_settings_are_found_before_training(configs: Path) -> None:
    rows = {"plain": {"network": "plain", "overrides": ["evaluation.mirror=true"]}}
    with pytest.raises(UserError, match="mirror: expected false, or merge=union"):
        plan(configs, scale_of(rows=rows, expectations=[]))


def test_config_of_another_task_is_an_error(configs: Path) -> None:
    scale = scale_of(
        training={"config": "classifier.yaml"},
        networks={"plain": []},
        rows={"plain": {"network": "plain"}},
        expectations=[],
    )
    with pytest.raises(UserError, match="plain: task: expected detection or segmentation, got"):
        plan(configs, scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"rows": {"a": {"network": "plain", "after": "b"}}},
            r"rows\.a\.after: expected null in the first row, got b",
            id="first row after another",
        ),
        pytest.param(
            {"rows": {"a": {"network": "plain"}, "b": {"network": "plain"}}},
            r"rows\.b\.after: expected a, got None",
            id="second row after none",
        ),
        pytest.param(
            {"rows": {"a": {"network": "big"}}},
            r"rows\.a\.network: expected plain or context, got big",
            id="unknown network",
        ),
        pytest.param(
            {"rows": {"a": {}}},
            r"rows\.a\.network: expected plain or context, got None",
            id="first row without a network",
        ),
        pytest.param(
            {"expectations": [{"row": "refined", "above": "best", "at_least": 1}]},
            r"expected one of rows \(plain, .*\), got best",
            id="unknown row",
        ),
    ],
)
def test_inconsistent_rows_are_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scale_of(**{"expectations": [], **changes})


def finish_trainings(planned: VariantsPlan) -> None:
    for run in planned.trainings:
        finish_run(run, [{"kind": "eval", "step": 2, "ap": 0.5}], ap=0.5)


def test_report_of_a_finished_study(configs: Path, tmp_path: Path) -> None:
    scale = scale_of()
    planned = plan(configs, scale)
    write_annotations(planned.rows[0].scorings[0].annotations)
    finish_trainings(planned)
    for row, found in zip(
        planned.rows, ((1, 2), (2, 2), (3, 3), (4, 3), (3, 3), (4,)), strict=True
    ):
        for scoring, count in zip(row.scorings, found, strict=True):
            finish_scoring(scoring, found=count)
    text = report_of(scale, planned, tmp_path / "report")
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines()}
    assert cells["plain"][1] == "38.12 +- 17.50"
    assert "| refined | 50.50 +- 0.00 |" in text
    # 51 minus the mean of 26 and 51, of 101 recalls; the same in every resample
    assert (
        "| plain | +12.38 (+12.38 to +12.38) | 0.002 | +12.38 (+12.38 to +12.38) | 5.00 |" in text
    )
    assert "| ensemble | 100.00 | 100.00 | 100.00 | two scales | +12.38 (+12.38 to +12.38) " in text
    assert "| refined | +24.75 (+24.75 to +24.75) | +0.00 (+0.00 to +0.00) |" in text
    assert (
        "- ap of ensemble minus that of plain: wanted at least 1.50, measured 61.88: PASS" in text
    )
    assert "- ap50 of refined: wanted at most 20.00, measured 50.50: FAIL" in text
    assert (
        "- two scales: context `evaluation.refine_boxes=true` `evaluation.scales=[48, 64]`" in text
    )
    assert "- ensemble: context-seed0 context-seed1 `evaluation.refine_boxes=true`" in text
    assert "on the validation images (6)" in text
    assert text.count("| a machine, torch 0.0, commit 123 |") == 4


@pytest.mark.parametrize("all_have_masks", [True, False])
def test_report_compares_the_chosen_score(
    configs: Path, tmp_path: Path, all_have_masks: bool
) -> None:
    rows = {"plain": {"network": "plain"}, "context": {"after": "plain", "network": "context"}}
    expectations = [{"row": "context", "score": "ap75", "above": "plain", "at_least": 0}]
    scale = scale_of(rows=rows, expectations=expectations, compared="ap75", title="Two networks")
    planned = plan(configs, scale)
    write_annotations(planned.rows[0].scorings[0].annotations)
    finish_trainings(planned)
    for row, found in zip(planned.rows, (1, 3), strict=True):
        for scoring in row.scorings:
            finish_scoring(scoring, found=found)
            if all_have_masks or row.name == "plain":
                path = scoring.folder / "metrics.json"
                path.write_text(json.dumps({**json.loads(path.read_text()), "mask_ap": 0.25}))
    text = report_of(scale, planned, tmp_path / "report")
    assert text.startswith("# Two networks\n")
    masks = " mask AP |" if all_have_masks else ""
    assert f"| detector | AP | AP50 | AP75 |{masks} AP75 minus that of | difference" in text
    assert ("25.00 +- 0.00" in text) == all_have_masks
    assert "- ap75 of context minus that of plain: wanted at least 0.00, measured 49.50" in text
    assert "difference is that of the mean AP75 over seeds" in text
    assert "nsemble" not in text
    assert "- context: `model.roi.global_context=true`" in text


def test_missing_evaluations_are_reported_as_not_run(configs: Path, tmp_path: Path) -> None:
    scale = scale_of()
    planned = plan(configs, scale)
    write_annotations(planned.rows[0].scorings[0].annotations)
    assert "not run" in report_of(scale, planned, tmp_path / "report")
    finish_trainings(planned)
    finish_scoring(planned.rows[0].scorings[0], found=2)
    text = report_of(scale, planned, tmp_path / "report")
    assert "| plain | 50.50 (one seed), 1 of 2 runs |" in text
    assert "| ensemble | not run | not run | not run | two scales | - | - | - | - |" in text
    assert "measured" not in text


@pytest.mark.extended
def test_tiny_study_end_to_end(configs: Path) -> None:
    scale = scale_of()
    planned = plan(configs, scale)
    output = configs.parent / "study"
    report = run_study(scale, planned, output=output, command="this test", device="cpu")
    assert [len(row.values("ap")) for row in report.rows] == [2, 2, 2, 2, 2, 1]
    assert all(row.step is not None for row in report.rows[1:])
    scored = [scoring.folder for row in planned.rows for scoring in row.scorings]
    times = [(folder / "scored.json").stat().st_mtime_ns for folder in scored]
    text = (output / "report.md").read_text()

    (scored[3] / "scored.json").unlink()  # as if killed during an evaluation
    run_study(scale, planned, output=output, command="this test", device="cpu")
    now = [(folder / "scored.json").stat().st_mtime_ns for folder in scored]
    assert [
        number for number, pair in enumerate(zip(times, now, strict=True)) if len(set(pair)) > 1
    ] == [3]
    again = (output / "report.md").read_text()
    assert [line for line in again.splitlines() if "| refined |" not in line] == [
        line for line in text.splitlines() if "| refined |" not in line
    ]  # the row's speed differs
