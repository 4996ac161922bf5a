"""tools/repro.py: the list of the paper's tables and figures, the scales, bad arguments."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from detection.models.build import build_detector
from engine.config import differences
from engine.errors import UserError
from tests.cli.conftest import Call
from tools.lab.study import command as repro
from tools.lab.study import residual_backbone, variants
from tools.lab.study.cifar_runs import plan_runs
from tools.lab.study.config import VariantsStudyConfig, load_repro

REPOSITORY = Path(__file__).resolve().parents[2]
REPRO = load_repro(repro.REPRO)


def test_every_table_and_figure_is_listed() -> None:
    text = " ".join(figure.what for figure in REPRO.figures)
    assert [number for number in range(1, 15) if f"Table {number}" not in text] == []
    for figures in ("Figures 2, 3, 5", "Figures 1, 6", "Figure 4", "Figure 7"):
        assert figures in text


@pytest.mark.parametrize("name", ["quick", "paper"])
def test_scales_load(name: str, tmp_path: Path) -> None:
    scale = REPRO.cifar_degradation[name]
    runs = plan_runs(scale, configs=repro.REPRO.parent, output=tmp_path)
    assert len(runs) == len(scale.networks) * len(scale.seeds)
    assert all(run.config.data.kind == "cifar10" for run in runs)
    assert all(
        run.config.data.holdout == 0 for run in runs
    )  # with a holdout, validation would not use the test images


@pytest.mark.parametrize("name", list(REPRO.residual_backbone))
def test_scales_of_the_study_of_backbones_load(name: str, tmp_path: Path) -> None:
    scale = REPRO.residual_backbone[name]
    planned = residual_backbone.plan_runs(scale, configs=repro.REPRO.parent, output=tmp_path)
    assert len(planned) == len(scale.backbones) * len(scale.seeds)
    for each in planned:
        detector, classifier = each.detector.config, each.pretraining.config
        build_detector(detector, num_classes=3)  # refuses what does not fit
        multiplier = classifier.model.backbone.width_multiplier
        assert detector.model.backbone.width_multiplier == multiplier
    # alike: only the network differs, or what the file names
    for one in planned[1:]:
        if one.seed == planned[0].seed:
            changes = scale.backbones[one.backbone]
            for run, base, own in (
                (one.pretraining, planned[0].pretraining, changes.pretraining),
                (one.detector, planned[0].detector, changes.detection),
            ):
                keys = {line.split(": ")[0] for line in differences(base.config, run.config)}
                named = {text.split("=")[0] for text in own}
                assert keys <= {"model.backbone.kind", "model.backbone.weights", *named}


@pytest.mark.parametrize(
    "scale",
    [
        pytest.param(scale, id=f"{study}-{name}")
        for study in repro.VARIANTS
        for name, scale in getattr(REPRO, study.replace("-", "_")).items()
    ],
)
def test_scales_of_the_studies_of_variants_load(scale: VariantsStudyConfig, tmp_path: Path) -> None:
    plan = variants.plan_study(scale, configs=repro.REPRO.parent, output=tmp_path)
    assert len(plan.trainings) == len(scale.seeds) * len(scale.networks)
    for run in plan.trainings[: len(scale.networks)]:
        build_detector(run.config, num_classes=3)
    # an equal number of images
    assert (
        len({(run.config.loop.max_steps, run.config.loop.batch_size) for run in plan.trainings})
        == 1
    )


@pytest.mark.parametrize("name", list(REPRO.detector_additions))
def test_scales_of_the_study_of_additions_load(name: str, tmp_path: Path) -> None:
    scale = REPRO.detector_additions[name]
    plan = variants.plan_study(scale, configs=repro.REPRO.parent, output=tmp_path)
    assert len(scale.seeds) == 3
    by_row = {row.name: row for row in plan.rows}
    # an evaluation for each seed, or one of all seeds
    assert {row.name: len(row.scorings) for row in plan.rows} == {
        name: 1 if "ensemble" in name else 3 for name in scale.rows
    }
    assert by_row["plain"].scorings[0].overrides == tuple(
        f'{key}="data/{path}"' for key, path in scale.test.items()
    )
    # what is chosen on validation images is scored on others
    assert (name == "bccd") == (by_row["plain"].scorings[0].annotations.name == "test.json")


def test_list_shows_commands_in_full(site: Path, call: Call) -> None:
    outcome = call(repro, "list")
    assert outcome.code == 0, outcome.err
    assert "…" not in outcome.out
    for figure in REPRO.figures:
        assert figure.commands[0] in outcome.out


def test_row_without_commands_is_refused(tmp_path: Path) -> None:
    values = yaml.safe_load(repro.REPRO.read_text(encoding="utf-8"))
    values["figures"][3]["commands"] = []
    (tmp_path / "repro.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"figures\.3\.commands: .* at least 1"):
        load_repro(tmp_path / "repro.yaml")


def test_typo_in_the_file_is_one_line(tmp_path: Path) -> None:
    text = repro.REPRO.read_text(encoding="utf-8").replace("tolerance: 2.5 %", "tolerence: 2.5 %")
    file = tmp_path / "repro.yaml"
    file.write_text(text, encoding="utf-8")
    message = r"figures\.0\.tolerence: unknown key; nearest: figures\.0\.tolerance"
    with pytest.raises(UserError, match=message) as caught:
        load_repro(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("study", ["residual-backbone", "detector-additions"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "paper"], "error: --scale: expected quick or bccd, got paper"),
        (["--seeds", "-1"], "seed: expected greater than or equal to 0, got -1"),
        (["--scale", "bccd", "--data", "nowhere"], "nowhere/"),
    ],
)
def test_bad_arguments_of_the_detector_studies_are_one_line(
    site: Path, call: Call, study: str, arguments: list[str], message: str
) -> None:
    outcome = call(repro, "run", study, *arguments, "--device", "cpu")
    assert outcome.code == 2
    assert message in outcome.err.replace("\n", " ")
    assert len(outcome.err.splitlines()) == 1
    assert not list(site.glob("runs/**/config.yaml"))


def test_plan_of_a_detector_study_is_printed_before_training(site: Path, call: Call) -> None:
    arguments = ["--scale", "bccd", "--data", "nowhere", "--seeds", "4", "--device", "cpu"]
    outcome = call(repro, "run", "residual-backbone", *arguments)
    assert "0 runs done, 6 left" in outcome.out
    assert outcome.out.index("vgg16-pretraining-seed4") < outcome.out.index("vgg16-detector-seed4")
    outcome = call(repro, "run", "detector-additions", *arguments)
    assert "0 runs done, 2 left" in outcome.out
    assert "global_context-seed4" in outcome.out


def test_unknown_study_is_one_line(site: Path, call: Call) -> None:
    outcome = call(repro, "run", "imagenet")
    assert outcome.code == 2
    assert "residual-backbone" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "huge"], "error: --scale: expected quick or paper, got huge"),
        (["--seeds", "-1"], "seed: expected greater than or equal to 0, got -1"),
        (["--data", "nowhere"], "data.root nowhere: expected cifar-10-batches-py/"),
    ],
)
def test_bad_words_are_one_line(site: Path, call: Call, arguments: list[str], message: str) -> None:
    outcome = call(repro, "run", "cifar-degradation", *arguments, "--device", "cpu")
    assert outcome.code == 2
    assert message in outcome.err.replace("\n", " ")
    assert len(outcome.err.splitlines()) == 1
    assert not list(site.glob("runs/**/config.yaml"))


def test_plan_is_printed_before_training(site: Path, call: Call) -> None:
    outcome = call(repro, "run", "cifar-degradation", "--data", "nowhere", "--seeds", "4")
    assert "0 runs done, 4 left" in outcome.out
    assert "cifar_resnet56-seed4" in outcome.out


@pytest.mark.slow
def test_interrupted_study_is_resumed(tmp_path: Path, cifar_root: Path) -> None:
    tool = REPOSITORY / "tools" / "repro.py"
    command = [sys.executable, str(tool), "run", "cifar-degradation", "--device", "cpu"]
    command += ["--data", str(cifar_root)]
    for started in ("training images", "resumed at step"):
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert any(started in line for line in process.stdout)
        time.sleep(3)  # until the first steps
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130, err
        assert "cifar_plain20-seed0 was interrupted; run the same command again" in err
    run = tmp_path / "runs" / "repro" / "cifar-degradation-quick" / "cifar_plain20-seed0"
    assert len(list(run.glob("checkpoints/step_*.pt"))) == 2
