"""Console script `resdet`: its subcommands, unknown subcommands, lookup of configs."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from detection.commands import config, config_files, main
from detection.commands.config_files import (
    ALL_FOLDERS,
    CONFIGS,
    PRETRAIN_FOLDERS,
    TRAIN_FOLDERS,
    config_names,
    find_config,
)
from detection.commands.schemas import ALL_SCHEMAS
from engine.cli import command_line
from engine.config import load_config
from engine.errors import UserError
from tests.cli.conftest import Call, Outcome

DEMO = Path("configs/detection/demo.yaml")


def resdet(*arguments: str, folder: Path) -> Outcome:
    """Run the console script in a subprocess."""
    program = "from detection.commands.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(CONFIGS.parent), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_help_lists_every_command(tmp_path: Path) -> None:
    found = resdet("--help", folder=tmp_path)
    assert found.code == 0
    assert [name for name in main.COMMANDS if f"  {name} " not in found.out] == []


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help(name: str, tmp_path: Path) -> None:
    found = resdet(name, "--help", folder=tmp_path)
    assert found.code == 0
    assert found.out.startswith(f"usage: resdet {name} ")


def test_unknown_command_is_one_line(tmp_path: Path) -> None:
    found = resdet("tran", folder=tmp_path)
    assert found.code == 2
    assert found.err.startswith("error: resdet: expected one of train, eval, ")
    assert found.err.count("\n") == 1


def test_configs_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(DEMO) == CONFIGS / "detection/demo.yaml"
    assert find_config(Path("configs/absent.yaml")) == Path("configs/absent.yaml")
    DEMO.parent.mkdir(parents=True)
    DEMO.write_text("task: detection")
    assert find_config(DEMO) == DEMO


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("demo", "detection/demo.yaml"),
        ("detection/demo", "detection/demo.yaml"),
        ("segmentation/demo", "segmentation/demo.yaml"),
        ("resnet101_ilsvrc", "localization/resnet101_ilsvrc.yaml"),
        ("resnet18_imagenette", "backbones/resnet18_imagenette.yaml"),
    ],
)
def test_a_config_is_found_by_its_name(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder of the user does not hide a config
    assert find_config(Path(name)) == CONFIGS / file
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    if not own.is_dir():
        own.touch()
        assert find_config(Path(name)) == Path(name)


def test_every_config_has_a_name_that_a_command_takes() -> None:
    for name in config_names(ALL_FOLDERS):
        folders = PRETRAIN_FOLDERS if name.startswith("backbones/") else TRAIN_FOLDERS
        assert find_config(Path(name), folders) == CONFIGS / f"{name}.yaml"
        short = name.partition("/")[2]
        expected = "detection/demo" if short == "demo" else name
        assert find_config(Path(short), folders) == CONFIGS / f"{expected}.yaml"


def test_a_name_of_several_configs_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("detection/one", "segmentation/two", "localization/two"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").touch()
    monkeypatch.setattr(config_files, "CONFIGS", tmp_path)
    monkeypatch.chdir(tmp_path)
    got = "two: expected one config, got segmentation/two and localization/two"
    with pytest.raises(UserError, match=f"^{got}$"):
        find_config(Path("two"))
    Path("one.yaml").touch()  # a copy that the user has changed: which one is meant?
    with pytest.raises(UserError, match=r"^one: expected one config, got one.yaml and detection/o"):
        find_config(Path("one"))
    Path("mine.yaml").touch()
    with pytest.raises(UserError, match=r"got neither; nearest: mine.yaml$"):
        find_config(Path("mine"))


@pytest.mark.parametrize(
    ("command", "name", "hint"),
    [
        ("train", "faster_rcnn_r50_fpn_coc", "; nearest: faster_rcnn_r50_fpn_coco"),
        (
            *("train", "resnet18_imagenette"),
            "; backbones/resnet18_imagenette is for another command",
        ),
        ("pretrain", "detection/demo", "; detection/demo is for another command"),
        ("data", "detection/demos", "; nearest: detection/demo"),
    ],
)
def test_an_unknown_name_is_one_line(
    command: str, name: str, hint: str, call: Call, site: Path
) -> None:
    arguments = ["check", "data/train.json", "--config", name] if command == "data" else [name]
    found = call(import_module(main.COMMANDS[command][0]), *arguments)
    assert found.code == 2
    expected = f"{name}: expected a YAML file or a config of `resdet config --list`, got neither"
    assert found.err == f"error: {expected}{hint}\n"


def test_all_configs_are_listed(call: Call, site: Path) -> None:
    found = call(config, "--list")
    assert found.code == 0
    assert [name for name in config_names(ALL_FOLDERS) if f" {name} " not in found.out] == []
    assert "Template for your own data: a few hundred images with a COCO JSON" in found.out


@pytest.mark.parametrize(
    ("command", "name"),
    [("train", "detection/demo.yaml"), ("pretrain", "backbones/demo_objects.yaml")],
)
def test_a_training_uses_an_installed_config(command: str, name: str, tmp_path: Path) -> None:
    # frozen random weights stop the command after its first line, before it draws the demo
    found = resdet(command, f"configs/{name}", "model.backbone.norm=frozen", folder=tmp_path)
    assert found.code == 2
    assert found.out.startswith("config: ")
    assert name in found.out
    assert "no such file" not in found.err


def test_suggested_commands_use_the_form_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tools/train_det.py"])
    assert command_line("eval", "eval") == "python tools/eval.py"
    monkeypatch.setattr(sys, "argv", ["resdet train"])
    assert command_line("eval", "eval") == "resdet eval"


@pytest.mark.parametrize("task", ALL_SCHEMAS)
def test_every_key_is_described(task: str) -> None:
    rows = list(config.rows_of(ALL_SCHEMAS[task]))
    assert "loop.max_steps" in [row[0] for row in rows]
    assert [row for row in rows if not row[3]] == []
    assert [row for row in rows if "pydantic" in row[1] or "Annotated" in row[1]] == []


def test_keys_and_values_are_printed(call: Call, site: Path) -> None:
    keys = call(config, "classification")
    assert keys.code == 0
    assert "loop.batch_size" in keys.out
    values = call(config, "tiny.yaml", "optim.lr=0.5")
    assert values.code == 0
    assert "lr: 0.5" in values.out
    assert call(config, "tiny.yaml", "detection").code == 2


def test_values_are_printed_with_what_sets_them_and_train(call: Call, site: Path) -> None:
    (site / "mine.yaml").write_text("base: tiny.yaml\noptim: {momentum: 0.5}\n")
    found = call(config, "mine.yaml", "optim.lr=0.5")
    assert "  lr: 0.5  # command line\n" in found.out
    assert "  momentum: 0.5  # mine.yaml\n" in found.out
    assert "  clip_grad_norm: 1.0  # tiny.yaml\n" in found.out
    assert "  weight_decay: 0.0001  # default\n" in found.out
    (site / "again.yaml").write_text(found.out)
    loaded = load_config(site / "again.yaml", schemas=ALL_SCHEMAS)
    assert loaded == load_config(site / "mine.yaml", ["optim.lr=0.5"], schemas=ALL_SCHEMAS)
    task = call(config, "classification", "optim.lr=0.5")
    assert "task: classification  # command line\n" in task.out


@pytest.mark.parametrize(
    ("name", "nearest"), [("detectoin", "; nearest: detection"), ("zebra", "")], ids=str
)
def test_neither_a_config_nor_a_task(call: Call, site: Path, name: str, nearest: str) -> None:
    found = call(config, name)
    assert found.code == 2
    tasks = ", ".join(ALL_SCHEMAS)
    assert found.err == (
        f"error: {name}: expected a YAML file, {tasks} or a config of `resdet config --list`, "
        f"got neither{nearest}\n"
    )


def test_search_matches_names_and_meanings() -> None:
    found = config.found_rows("Anchor SIZES", list(ALL_SCHEMAS))
    assert found == {
        row: [task for task in ALL_SCHEMAS if row in config.rows_of(ALL_SCHEMAS[task])]
        for row in found
    }
    names = [row[0] for row in found]
    assert {"model.rpn.anchor_sizes", "model.anchor_sizes"} <= set(names)
    rates = [row[0] for row in config.found_rows("learning rate", ["detection"])]
    assert rates[0] == "optim.lr"  # only its meaning has these words
    assert config.found_rows("lr", ["detection"])  # names come first
    assert "lr" in next(iter(config.found_rows("lr", ["detection"])))[0]
    assert config.found_rows(" ", list(ALL_SCHEMAS)) == {}


def test_search_prints_a_table_or_one_line(call: Call, site: Path) -> None:
    everywhere = call(config, "--search", "patience")
    assert everywhere.code == 0
    assert "loop.patience" in everywhere.out
    assert "all" in everywhere.out
    assert "model.rpn.anchor_sizes" in call(config, "detection", "--search", "anchor").out
    for arguments, message in (
        (("--search", "zzz"), "no key has 'zzz' in its name or meaning\n"),
        (("classification", "--search", "zzz"), "no key of classification has 'zzz'"),
        (("--search", "epochs"), "here: loop.max_steps (steps = epochs x images"),
        (("tiny.yaml", "--search", "lr"), "--search: expected one of detection, "),
        (("--search", "lr", "optim.lr=1"), "none to search all, got optim.lr=1"),
    ):
        refused = call(config, *arguments)
        assert refused.code == 2
        assert message in refused.err
