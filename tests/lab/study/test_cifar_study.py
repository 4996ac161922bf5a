"""The CIFAR-10 study: planning, run status, averages and verdicts, and a tiny complete study."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engine.config import dump_config
from engine.errors import UserError
from tools.lab.planned_runs import run_status
from tools.lab.study.cifar_report import check_expectations, run_study, write_report
from tools.lab.study.cifar_runs import Run, measure, plan_runs
from tools.lab.study.config import ExpectationConfig, ScaleConfig
from tools.lab.study.responses import measure_responses
from tools.lab.study.training import origin_of, plan_table, train_run

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
CONFIG = """\
task: classification
data: {{kind: cifar10}}
augment: {{crop: 32, pad: 4}}
model: {{backbone: {{kind: cifar_{kind}}}}}
evaluation: {{resize: 32, crop: 32}}
optim: {{lr: 0.05}}
loader: {{workers: 0}}
loop: {{max_steps: 12, batch_size: 16, log_every: 2, eval_batch_size: 1000, drawn_images: 2}}
"""
NETWORKS = {"cifar_plain8": "plain8.yaml", "cifar_resnet8": "resnet8.yaml"}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """Folder with the configs of two networks of eight layers."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for kind in ("plain8", "resnet8"):
        (folder / f"{kind}.yaml").write_text(CONFIG.format(kind=kind))
    return folder


def scale_of(**changes: Any) -> ScaleConfig:
    return ScaleConfig(networks=NETWORKS, **changes)


def plan(configs: Path, scale: ScaleConfig, **changes: Any) -> list[Run]:
    return plan_runs(scale, configs=configs, output=configs.parent / "study", **changes)


def finish(run: Run, train_errors: list[float], test_errors: list[float]) -> None:
    """Write the files of a finished run that the study reads; its speed is 100 images/s."""
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump_config(run.config))
    lines: list[dict[str, Any]] = [
        {"kind": "train", "step": 2 * i, "train_error": error, "images_per_second": 100.0}
        for i, error in enumerate(train_errors, start=1)
    ]
    lines += [
        {"kind": "eval", "step": 2 * i, "top1_error": error}
        for i, error in enumerate(test_errors, start=1)
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (run.folder / "metrics.jsonl").write_text(text)
    (run.folder / "origin.txt").write_text("a machine, torch 0.0, commit 123\n")
    for name in ("metrics.json", "model.safetensors"):
        (run.folder / name).touch()


def report_of(scale: ScaleConfig, runs: list[Run], folder: Path) -> str:
    write_report(scale, runs, output=folder, command="python tools/repro.py run")
    assert (folder / "figure6.png").read_bytes()[:4] == b"\x89PNG"
    return (folder / "report.md").read_text()


def test_plan_is_ordered_by_network_then_seed(configs: Path) -> None:
    scale = scale_of(overrides=("loop.max_steps=7",), seeds=(3, 1))
    runs = plan(configs, scale)
    assert [run.name for run in runs] == [
        *("cifar_plain8-seed3", "cifar_plain8-seed1"),
        *("cifar_resnet8-seed3", "cifar_resnet8-seed1"),
    ]
    assert [run.config.seed for run in runs] == [3, 1, 3, 1]
    assert {run.config.loop.max_steps for run in runs} == {7}
    assert runs[0].config.model.backbone.kind == "cifar_plain8"


def test_seeds_and_data_of_the_command_line_override_the_scale(configs: Path) -> None:
    runs = plan(configs, scale_of(seeds=(3, 1)), seeds=[5, 5], data="my #1: images")
    assert [run.seed for run in runs] == [5, 5]
    assert {run.config.data.root for run in runs} == {"my #1: images"}


def test_config_of_another_network_is_an_error(configs: Path) -> None:
    scale = ScaleConfig(networks={"cifar_plain8": "resnet8.yaml"})
    with pytest.raises(UserError, match=r"kind: expected cifar_plain8, got cifar_resnet8$"):
        plan(configs, scale)


def test_status_of_a_run(configs: Path) -> None:
    run = plan(configs, scale_of())[0]
    assert run_status(run) == "not run"
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(dump_config(run.config))
    assert run_status(run) == "not run"  # stopped before its first checkpoint
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "step_00000004.pt").touch()
    assert run_status(run) == "interrupted"
    (run.folder / "metrics.json").touch()  # of an evaluation during training
    assert run_status(run) == "interrupted"
    (run.folder / "model.safetensors").touch()
    assert run_status(run) == "done"


def test_run_folder_of_another_config_is_an_error_that_names_the_key(configs: Path) -> None:
    finish(plan(configs, scale_of())[0], [0.5], [0.5])
    changed = plan(configs, scale_of(overrides=("optim.lr=0.2",)))
    for call in (lambda: run_status(changed[0]), lambda: plan_table(changed)):
        with pytest.raises(UserError, match=r"cifar_plain8-seed0: .*optim\.lr: 0\.05 -> 0\.2\)"):
            call()


def test_plan_table_counts_the_runs_that_are_left(configs: Path) -> None:
    runs = plan(configs, scale_of())
    finish(runs[1], [0.5], [0.5])
    table = plan_table(runs)
    assert table.title == "1 runs done, 1 left"
    assert [list(column.cells) for column in table.columns][2] == ["not run", "done"]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        pytest.param([0.9], 0.9, id="one line"),
        pytest.param([0.9] * 9 + [0.2], 0.2, id="ten lines: the last one"),
        pytest.param([0.9] * 18 + [0.2, 0.4], 0.3, id="twenty lines: two"),
        pytest.param([0.9] * 9 + [0.2, 0.4], 0.3, id="eleven lines: two, rounded up"),
    ],
)
def test_training_error_is_the_mean_of_the_last_tenth(
    configs: Path, errors: list[float], expected: float
) -> None:
    run = plan(configs, scale_of())[0]
    finish(run, errors, [0.8, 0.6])
    measured = measure(run)
    assert measured.train_error == pytest.approx(expected)
    assert measured.test_error == 0.6
    assert measured.seconds == pytest.approx(len(errors) * 2 * 16 / 100)
    assert origin_of(run) == "a machine, torch 0.0, commit 123"


def test_log_lines_without_a_value_are_skipped(configs: Path) -> None:
    run = plan(configs, scale_of())[0]
    finish(run, [0.5], [0.5])
    null = {"kind": "train", "step": 4, "train_error": None, "images_per_second": 100.0}
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(null) + "\n")
    assert measure(run).train_curve == [(2, 0.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "train", "step": 1, "images_per_second": 1}\n', "train_error, got none"),
        ("{", "a JSON object in each line"),
    ],
)
def test_error_names_a_damaged_log(configs: Path, text: str, message: str) -> None:
    run = plan(configs, scale_of())[0]
    finish(run, [0.5], [0.5])
    (run.folder / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=rf"metrics\.jsonl: .*{message}"):
        measure(run)


EXPECTED = (
    ExpectationConfig(error="train", network="cifar_plain8", above="cifar_resnet8", at_least=10),
    ExpectationConfig(error="train", network="cifar_resnet8", at_most=2),
)


def test_report_of_a_finished_study(configs: Path, tmp_path: Path) -> None:
    scale = scale_of(seeds=(0, 1), paper_errors={"cifar_resnet8": 8.75}, expectations=EXPECTED)
    runs = plan(configs, scale)
    for run, train, test in zip(runs, (0.2, 0.3, 0.1, 0.1), (0.3, 0.3, 0.09, 0.093), strict=True):
        finish(run, [train], [0.9, test])
    text = report_of(scale, runs, tmp_path)
    assert "| cifar_plain8 | 0.08 M | 12 | 25.00 +- 7.07 | 30.00 +- 0.00 | - | - |" in text
    assert "| cifar_resnet8 | 0.08 M | 12 | 10.00 +- 0.00 | 9.15 +- 0.21 | 8.75 | PASS |" in text
    difference = "training error of cifar_plain8 minus that of cifar_resnet8"
    assert f"- {difference}: wanted at least 10.00, measured 15.00: PASS" in text
    assert "error of cifar_resnet8: wanted at most 2.00, measured 10.00: FAIL" in text
    assert "test error of cifar_resnet8: wanted at most 9.15, measured 9.15: PASS" in text
    assert "Command: `python tools/repro.py run`" in text
    assert text.count("| a machine, torch 0.0, commit 123 |") == 4


def test_missing_runs_are_reported_as_not_run(configs: Path, tmp_path: Path) -> None:
    scale = scale_of(seeds=(0, 1), paper_errors={"cifar_resnet8": 8.75}, expectations=EXPECTED)
    runs = plan(configs, scale)
    finish(runs[2], [0.5], [0.5])
    text = report_of(scale, runs, tmp_path)
    assert "| cifar_plain8 | 0.08 M | 12 | not run | not run | - | - |" in text
    missing = "50.00 (one seed), 1 of 2 runs"
    assert f"| cifar_resnet8 | 0.08 M | 12 | {missing} | {missing} | 8.75 | not run |" in text
    assert "PASS" not in text
    assert "FAIL" not in text
    assert text.count("| not run | - |\n") == 3
    assert "test error of cifar_resnet8: wanted at most 9.15: not run" in text


def test_report_says_if_there_is_only_one_seed(configs: Path, tmp_path: Path) -> None:
    runs = plan(configs, scale_of())
    for run in runs:
        finish(run, [0.25], [0.125])
    assert report_of(scale_of(), runs, tmp_path).count("25.00 (one seed) | 12.50 (one seed)") == 2


def test_no_expectations_give_no_verdicts() -> None:
    assert check_expectations(ScaleConfig(networks={"cifar_plain8": "plain8.yaml"}), []) == ()


@pytest.mark.parametrize(
    ("bound", "value", "expected"),
    [
        ({"at_least": 10}, 10.0, True),
        ({"at_least": 10}, 9.99, False),
        ({"at_most": 2}, 2.0, True),
        ({"at_most": 2}, -30.0, True),
        ({"at_most": 2}, 2.01, False),
        ({"at_most": 2}, float("nan"), False),
    ],
)
def test_bounds_are_inclusive(bound: dict[str, float], value: float, expected: bool) -> None:
    expectation = ExpectationConfig(error="train", network="cifar_plain8", **bound)
    assert expectation.holds(value) is expected


@pytest.mark.parametrize("bounds", [{}, {"at_least": 1, "at_most": 2}])
def test_expectation_needs_exactly_one_bound(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at_least or at_most"):
        ExpectationConfig(error="train", network="cifar_plain8", **bounds)


@pytest.mark.parametrize(
    "changes",
    [
        {"paper_errors": {"cifar_resnet9": 8.75}},
        {"expectations": [{"error": "test", "network": "cifar_resnet9", "at_most": 2}]},
        {
            "expectations": [
                {"error": "test", "network": "cifar_plain8", "above": "cifar_resnet9", "at_most": 2}
            ]
        },
    ],
)
def test_expectation_of_an_unknown_network_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected one of networks .* got cifar_resnet9"):
        scale_of(**changes)


@pytest.mark.slow
def test_tiny_study_end_to_end(configs: Path, cifar_root: Path, tmp_path: Path) -> None:
    scale = scale_of(paper_errors={"cifar_resnet8": 8.75}, expectations=EXPECTED)
    runs = plan(configs, scale, data=str(cifar_root))
    arguments = {"output": tmp_path / "study", "command": "this test"}
    # the log of a run that was killed before its first checkpoint must not count
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "metrics.jsonl").write_text('{"kind": "train", "step": 999}\n')
    report = run_study(scale, runs, device="cpu", **arguments)  # type: ignore[arg-type]
    assert [run_status(run) for run in runs] == ["done", "done"]
    assert [each.outcome for each in report.verdicts][-1] == "FAIL"  # after twelve steps
    names = {path.name for path in (tmp_path / "study").iterdir()}
    assert names == {"report.md", "figure6.png", "figure7.png", *(run.name for run in runs)}
    assert [step for step, _ in measure(runs[0]).train_curve] == [2, 4, 6, 8, 10, 12]
    text = (tmp_path / "study" / "report.md").read_text()
    assert re.search(r"cifar_plain8-seed0 \| [\d.]+ \| .+ CPU with .*torch .*, commit", text)

    weights = [(run.folder / "model.safetensors").stat().st_mtime_ns for run in runs]
    (runs[1].folder / "model.safetensors").unlink()  # as if killed just before the end
    assert run_status(runs[1]) == "interrupted"
    train_run(runs[1], device="cpu")
    again = run_study(scale, runs, device="cpu", **arguments)  # type: ignore[arg-type]
    assert [each.value for each in again.verdicts] == [each.value for each in report.verdicts]
    assert (runs[0].folder / "model.safetensors").stat().st_mtime_ns == weights[0]

    few = measure_responses(runs[1].folder, num_images=3, device="cpu")
    assert len(few) == 7
    assert all(deviation > 0 for deviation in few.values())
