"""tools/repro.py: the list of the paper's tables and figures, their commands, bad arguments."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backbones.classification.config import ClassificationConfig
from detection.commands.schemas import SCHEMAS as DETECTION
from engine.config import load_config
from engine.errors import UserError
from engine.schema import RunConfig
from tests.cli.conftest import Call
from tools.lab.study import command as repro
from tools.lab.study.cifar_runs import plan_runs
from tools.lab.study.config import load_repro

REPOSITORY = Path(__file__).resolve().parents[2]
REPRO = load_repro(repro.REPRO)
BUILT = [figure for figure in REPRO.figures if figure.commands]
SCHEMAS: dict[str, type[RunConfig]] = {**DETECTION, "classification": ClassificationConfig}
CONFIG_FOLDERS = {
    "tools/train_det.py": ("detection", "localization"),
    "tools/pretrain_backbone.py": ("backbones",),
}


def config_file(arguments: list[str]) -> Path:
    (file,) = [argument for argument in arguments if argument.endswith(".yaml")]
    return REPOSITORY / file


def output_of(arguments: list[str]) -> str:
    """Return the run folder of a training command."""
    if "--output" in arguments:
        return arguments[arguments.index("--output") + 1]
    return f"runs/{config_file(arguments).stem}"


def test_commands_exist() -> None:
    trained: dict[str, tuple[Path, list[str]]] = {}
    for command in (command for figure in BUILT for command in figure.commands):
        python, tool, *arguments = shlex.split(command)
        assert python == "python"
        overrides = [argument for argument in arguments if "=" in argument]
        if tool == "-m":
            module, path = arguments
            assert module == "pytest"
            assert (REPOSITORY / path).is_file()
        elif tool == "tools/repro.py":
            parsed = repro.make_parser().parse_args(arguments)
            assert parsed.scale in REPRO.cifar_degradation
        elif tool == "tools/eval.py":  # on runs of earlier commands
            for run in (path for path in arguments if "=" not in path):
                file, before = trained[run]
                load_config(file, [*before, *overrides], schemas=SCHEMAS)
        else:
            file = config_file(arguments)
            assert file.parent.name in CONFIG_FOLDERS[tool]
            load_config(file, overrides, schemas=SCHEMAS)
            trained[output_of(arguments)] = (file, overrides)


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


def test_list_shows_commands_in_full(site: Path, call: Call) -> None:
    outcome = call(repro, "list")
    assert outcome.code == 0, outcome.err
    assert "…" not in outcome.out
    assert outcome.out.count("not built yet") >= sum(not each.commands for each in REPRO.figures)
    for figure in BUILT:
        assert figure.commands[0] in outcome.out


def test_typo_in_the_file_is_one_line(tmp_path: Path) -> None:
    text = repro.REPRO.read_text(encoding="utf-8").replace("tolerance: 2.5 %", "tolerence: 2.5 %")
    file = tmp_path / "repro.yaml"
    file.write_text(text, encoding="utf-8")
    message = r"figures\.0\.tolerence: unknown key; nearest: figures\.0\.tolerance"
    with pytest.raises(UserError, match=message) as caught:
        load_repro(file)
    assert "\n" not in str(caught.value)


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
