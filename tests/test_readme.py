"""What the documents and config headers name exists: tools, flags, configs, keys, defaults."""

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
    name: (REPOSITORY / name).read_text(encoding="utf-8")
    for name in (
        *("README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md", "docs/CONFIGS.md"),
        *("docs/DATA.md", "docs/RUNS.md", "docs/WEIGHTS.md"),
    )
}
README = DOCUMENTS["README.md"]
ALL_TEXT = "\n".join(DOCUMENTS.values())
CONFIGS = sorted((REPOSITORY / "configs").glob("*/*.yaml"))
SCHEMAS = {"backbones": CLASSIFICATION, "detection": DETECTION, "localization": DETECTION}
KEY = r"`((?:data|model|optim|loop|loader)\.[a-z0-9_.]+)[=`]"


def shell_commands(text: str) -> list[str]:
    """Lines of ```sh blocks, continued lines joined, comments cut."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines]


def header_commands() -> list[str]:
    """Commands in the comments of the config files."""
    headers = "\n".join(path.read_text(encoding="utf-8") for path in CONFIGS)
    return re.findall(r"^#.*?((?:python|torchrun) .*tools/.*)$", headers, flags=re.MULTILINE)


def run_of(path: Path) -> str:
    """Run folder of a localization config in the documents: the demo's own name is taken."""
    return "runs/demo_localization" if path.stem == "demo" else f"runs/{path.stem}"


COMMANDS = shell_commands(ALL_TEXT)
TOOL_COMMANDS = [command for command in COMMANDS if "tools/" in command] + header_commands()
MAKE_COMMANDS = [command for command in COMMANDS if command.startswith("make ")]


def default_of(key: str, *, schema: type[RunConfig] = DetectionConfig) -> Any:
    """Value of a dotted key in a schema; KeyError when there is none."""
    value: Any = schema().model_dump(mode="json")
    for name in key.split("."):
        value = value[name]
    return value


@pytest.mark.parametrize("command", TOOL_COMMANDS)
def test_tool_command_names_what_exists(command: str) -> None:
    words = shlex.split(command)
    start = next(i for i, word in enumerate(words) if word.startswith("tools/"))
    tool, *arguments = words[start:]
    flags = [word for word in arguments if word.startswith("--")]
    overrides = [word for word in arguments if "=" in word and word not in flags]
    configs = [word for word in arguments if word.endswith(".yaml")]
    script = (REPOSITORY / tool).read_text(encoding="utf-8")
    found = re.search(r"^from (\S+) import main$", script, flags=re.MULTILINE)
    assert found, tool
    body = REPOSITORY / f"{found[1].replace('.', '/')}.py"
    source = body.read_text(encoding="utf-8")
    source += (REPOSITORY / "engine" / "cli.py").read_text(encoding="utf-8")
    assert [flag for flag in flags if f'"{flag}"' not in source] == []
    classifiers = {f"runs/{path.stem}" for path in CONFIGS if path.parent.name == "backbones"}
    localizers = {run_of(path) for path in CONFIGS if path.parent.name == "localization"}
    room = "localization" if localizers & set(arguments) else "detection"
    room = "backbones" if "pretrain" in tool or classifiers & set(arguments) else room
    default = {"backbones": "demo_objects"}.get(room, "demo")
    config = configs[0] if configs else f"configs/{room}/{default}.yaml"
    if "repro" not in tool:
        load_config(REPOSITORY / config, overrides, schemas=SCHEMAS[room])


@pytest.mark.parametrize("command", MAKE_COMMANDS)
def test_make_target_exists(command: str) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE)


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
        if key in ("data.download", "data.root"):
            default_of(key, schema=ClassificationConfig)
        elif key == "data.demo.root":  # of a part that is absent by default
            assert "root" in DemoConfig.model_fields
        elif key != "model.safetensors":
            default_of(key)


@pytest.mark.slow
def test_commands_run_in_their_order(tmp_path: Path) -> None:
    """Those on the demo, shortened; the others need public data or a user's images."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    on_demo = [
        command
        for command in shell_commands(README)
        if "tools/" in command
        and not any(word in command for word in ("coco", "voc", "cifar", "my/"))
    ]
    assert len(on_demo) >= 11
    for command in on_demo:
        words = [sys.executable, *shlex.split(command)[1:]]
        words[1] = str(REPOSITORY / words[1])
        if any(tool in words[1] for tool in ("train_det", "pretrain", "transfer")):
            words += ["loop.max_steps=3", "loop.eval_every=0", "loader.workers=0"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
