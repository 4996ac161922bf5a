"""Tools, flags, configs, keys and defaults in the documents and config headers exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from backbones.classification.config import SCHEMAS as CLASSIFICATION
from backbones.classification.config import ClassificationConfig
from backbones.config import DemoConfig
from detection.commands.schemas import SCHEMAS as DETECTION
from detection.config import DetectionConfig
from engine.config import load_config
from engine.schema import RunConfig

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        *(REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"),
        *sorted((REPOSITORY / "docs").glob("*.md")),
    )
    if path.name != "LOG.md"  # its commands are those of their day
}
README = DOCUMENTS["README.md"]
ALL_TEXT = "\n".join(DOCUMENTS.values())
CONFIGS = sorted((REPOSITORY / "configs").glob("*/*.yaml"))
SCHEMAS = {"backbones": CLASSIFICATION, "detection": DETECTION, "localization": DETECTION}
KEY = r"`((?:data|model|optim|loop|loader)\.[a-z0-9_.]+)[=`]"


def shell_commands(text: str) -> list[str]:
    """Return the lines of ```sh blocks, with continued lines joined and comments removed."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines]


def header_commands() -> list[str]:
    """Return the commands in the comments of the config files."""
    headers = "\n".join(path.read_text(encoding="utf-8") for path in CONFIGS)
    return re.findall(r"^#.*?((?:python|torchrun) .*tools/.*)$", headers, flags=re.MULTILINE)


def run_of(path: Path) -> str:
    """Return the run folder of a localization config; runs/demo is the detection demo's."""
    return "runs/demo_localization" if path.stem == "demo" else f"runs/{path.stem}"


COMMANDS = shell_commands(ALL_TEXT)
TOOL_COMMANDS = [command for command in COMMANDS if "tools/" in command] + header_commands()
MAKE_COMMANDS = [command for command in COMMANDS if command.startswith("make ")]


def default_of(key: str, *, schema: type[RunConfig] = DetectionConfig) -> Any:
    """Return the default of a dotted key in a schema; KeyError if there is no such key."""
    value: Any = schema().model_dump(mode="json")
    for name in key.split("."):
        value = value[name]
    return value


@pytest.mark.parametrize("command", TOOL_COMMANDS)
def test_tool_command_is_valid(command: str) -> None:
    parts = shlex.split(command)
    start = next(i for i, part in enumerate(parts) if part.startswith("tools/"))
    tool, *arguments = parts[start:]
    flags = [argument for argument in arguments if argument.startswith("--")]
    overrides = [argument for argument in arguments if "=" in argument and argument not in flags]
    configs = [argument for argument in arguments if argument.endswith(".yaml")]
    script = (REPOSITORY / tool).read_text(encoding="utf-8")
    found = re.search(r"^from (\S+) import main$", script, flags=re.MULTILINE)
    assert found, tool
    module = REPOSITORY / f"{found[1].replace('.', '/')}.py"
    # the module, its subcommands (data_NAME.py beside data.py), and the shared parser
    modules = [*module.parent.glob(f"{module.stem}*.py"), REPOSITORY / "engine" / "cli.py"]
    source = "".join(path.read_text(encoding="utf-8") for path in modules)
    assert [flag for flag in flags if f'"{flag}"' not in source] == []
    classifiers = {f"runs/{path.stem}" for path in CONFIGS if path.parent.name == "backbones"}
    localizers = {run_of(path) for path in CONFIGS if path.parent.name == "localization"}
    folder = "localization" if localizers & set(arguments) else "detection"
    folder = "backbones" if "pretrain" in tool or classifiers & set(arguments) else folder
    default = {"backbones": "demo_objects"}.get(folder, "demo")
    config = configs[0] if configs else f"configs/{folder}/{default}.yaml"
    if "repro" not in tool:
        load_config(REPOSITORY / config, overrides, schemas=SCHEMAS[folder])


@pytest.mark.parametrize("command", MAKE_COMMANDS)
def test_make_target_exists(command: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE)


def test_files_of_own_data_are_written_before_they_are_read() -> None:
    known = {"my/yolo"}  # the user's own folder
    for command in shell_commands(README):
        written = re.findall(r"--(?:output|fix) (\S+)", command)
        read = set(re.findall(r"\bmy/\S+", command)) - set(written)
        assert read <= known, command
        parts = " ".join(re.findall(r"--names ([\w ]+)", command)).split()
        known.update(written, (f"{written[0]}/{part}.json" for part in parts))
    assert len(known) > 5


def test_table_of_configs_is_complete() -> None:
    table = DOCUMENTS["docs/CONFIGS.md"].split("## Keys")[0]
    assert sorted(re.findall(r"`(\w+\.yaml)`", table)) == sorted(path.name for path in CONFIGS)


def test_table_of_keys_gives_their_defaults() -> None:
    table = DOCUMENTS["docs/CONFIGS.md"].split("## Keys used most")[1]
    rows = re.findall(r"^\| (`.*?`) \| (.*?) ?\|", table, flags=re.MULTILINE)
    assert rows
    for keys, default in rows:
        expected = yaml.safe_load(default.strip("`")) if default else ""
        for key in re.findall(r"`(.*?)`", keys):
            assert default_of(key) == expected, key


def test_keys_in_the_text_exist() -> None:
    for key in re.findall(KEY, ALL_TEXT):
        if key in ("data.decode", "data.download", "data.root"):
            default_of(key, schema=ClassificationConfig)
        elif key == "data.demo.root":  # data.demo is null by default
            assert "root" in DemoConfig.model_fields
        elif key != "model.safetensors":
            default_of(key)


@pytest.mark.slow
def test_demo_commands_run_in_order(tmp_path: Path) -> None:
    """Shortened runs of the commands on the demo; the others need public data or user images."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    on_demo = [
        command
        for command in shell_commands(README)
        if "tools/" in command
        and not any(data in command for data in ("coco", "voc", "cifar", "bccd", "my/"))
    ]
    assert len(on_demo) >= 11
    # `make demo`, in the README's first section, makes two runs that the next sections use
    train = "python tools/train_det.py configs/detection/demo.yaml --output runs/demo"
    made = [train, f"{train}_random"]
    on_demo = [*made, *(command for command in on_demo if command not in made)]
    for command in on_demo:
        line = [sys.executable, *shlex.split(command)[1:]]
        line[1] = str(REPOSITORY / line[1])
        if any(tool in line[1] for tool in ("train_det", "pretrain", "transfer")):
            line += ["loop.max_steps=3", "loop.eval_every=0", "loader.workers=0"]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
