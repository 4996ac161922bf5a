"""Commands of the documents, in both forms: the command's own parser and config lookup accept them.

Where a command expects files of the user it finds none, so that each ends at once.
"""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from detection.commands.main import COMMANDS
from tests.cli.conftest import Call
from tests.test_readme import DOCUMENTS, header_commands, shell_commands

TOOLS = {
    f"tools/{script}.py": name
    for script, name in (
        *(("train_det", "train"), ("pretrain_backbone", "pretrain"), ("eval", "eval")),
        *(("predict", "predict"), ("prepare_data", "data"), ("report", "report")),
        *(("compare", "compare"), ("export", "export")),
    )
}
STARTS = "|".join(["resdet", *map(re.escape, TOOLS)])


def documented() -> list[str]:
    """Return the commands as subcommands: `train demo --output runs/demo`."""
    found = []
    for line in [*shell_commands("\n".join(DOCUMENTS.values())), *header_commands()]:
        match = re.match(rf"(?:torchrun .*?|python |docker run .*?)?\b({STARTS}) (\S.*)", line)
        if match:
            start, rest = match.groups()
            found.append(rest if start == "resdet" else f"{TOOLS[start]} {rest}")
    return sorted(set(found))


def test_commands_are_found() -> None:
    names = {command.split()[0] for command in documented()}
    assert names == set(COMMANDS)
    assert "train faster_rcnn_r50_fpn_coco --output runs/r50" in documented()  # of torchrun


@pytest.mark.parametrize("command", documented())
def test_the_parser_accepts_the_command(
    command: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data", "my", "runs"):  # folders of the documents
        (tmp_path / name).touch()
    name, *arguments = shlex.split(command)
    if name == "data":  # it has subcommands
        (subcommand, *arguments) = arguments
        from detection.commands.data import COMMANDS as DATA_COMMANDS

        module = import_module(DATA_COMMANDS[subcommand][0])
    else:
        module = import_module(COMMANDS[name][0])
    done = call(module, *arguments)
    if name == "config":
        assert done.code == 0, done.err
        return
    assert done.code == 2, done.out
    assert re.match(r"error: (?!command line|--)\S", done.err), done.err
    assert "unknown key" not in done.err
    assert "expected a YAML file" not in done.err
