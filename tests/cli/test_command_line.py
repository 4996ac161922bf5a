"""Command line of every tool: invalid paths are one-line errors, --help imports little."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

from detection.commands import compare, predict
from detection.commands import data as prepare_data
from detection.commands import evaluate as eval_tool
from detection.commands import pretrain as pretrain_backbone
from detection.commands import train as train_det
from engine.cli import CommandParser, run_command, split_arguments
from tests.cli.conftest import Call
from tests.cli.test_bad_inputs import assert_one_line
from tools.lab.benchmarks import command as benchmark
from tools.lab.study import command as repro
from tools.lab.transfer import command as transfer

TOOLS = Path(__file__).resolve().parents[2] / "tools"
LONG = "x" * 300
SIDES = f"data.augment.short_sides=[{','.join(map(str, range(64, 200)))},x]"


def test_a_full_gpu_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    error = "error: CUDA out of memory. Tried to allocate 2 GiB.; choose a smaller loop.batch_size"
    assert capsys.readouterr().err.startswith(error)


def test_overrides_may_be_longer_than_file_names(tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    words = ["c.yaml", SIDES, "seed=1", str(folder), f"{LONG}/a=b", "loop.lr=1", "=x"]
    files, overrides = split_arguments(words)
    assert files == [Path("c.yaml"), folder, Path(f"{LONG}/a=b")]
    assert overrides == [SIDES, "seed=1", "loop.lr=1", "=x"]


def test_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    parser = CommandParser()
    parser.add_argument("--output", type=Path)
    assert parser.parse_args(["--output=~/run"]).output == tmp_path / "home" / "run"
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "run").mkdir()
    assert parser.parse_args(["--output=~/run"]).output == Path("~/run")


BAD_PATHS: list[tuple[ModuleType, Sequence[str]]] = [
    *((train_det, [path]) for path in (LONG, "data", "tiny.yaml/x", SIDES, "absent\nname")),
    (train_det, ["tiny.yaml", "--output", LONG]),
    (train_det, ["tiny.yaml", "--output", "tiny.yaml"]),
    (train_det, ["tiny.yaml", "--resume", "--output", LONG]),
    (train_det, ["tiny.yaml", "--resume", "--output", "tiny.yaml"]),
    (train_det, ["tiny.yaml", "data.train.images=$ABSENT/x"]),
    (train_det, ["tiny.yaml", f"data.train.images={LONG}"]),
    (train_det, ["tiny.yaml", f"data.train.annotations={LONG}"]),
    (train_det, ["tiny.yaml", f"model.weights={LONG}"]),
    (train_det, ["tiny.yaml", f"model.backbone.weights={LONG}"]),
    (train_det, ["tiny.yaml", "data.train.images=\udcff"]),
    (train_det, ["tiny.yaml", f"{'a.' * 500}b=1"]),
    (train_det, ["tiny.yaml", "seed=" + "[" * 30_000]),
    (train_det, ["tiny.yaml", "model.backbone.norm=frozen"]),
    (
        train_det,
        [
            *("tiny.yaml", "model.backbone.norm=batch", "loop.batch_size=1"),
            *("data.augment.short_sides=[32]", "data.augment.max_side=32"),
        ],
    ),
    *((pretrain_backbone, [path]) for path in (LONG, "data", "tiny.yaml/x")),
    (pretrain_backbone, [f"data.root={LONG}", "data.demo=null", "--output", "out"]),
    *((eval_tool, [path]) for path in (LONG, "tiny.yaml/x")),
    (eval_tool, ["--results", LONG, "data.val.annotations=data/val.json"]),
    (eval_tool, ["--results", "data/val.json", f"data.val.annotations={LONG}"]),
    *((predict, [path, "data"]) for path in (LONG, "tiny.yaml/x")),
    *((compare, [path]) for path in (LONG, "data", "tiny.yaml")),
    *((transfer, [path]) for path in (LONG, "data", "absent\x1b[2J")),
    (transfer, ["tiny.yaml", "--config", LONG]),
    (transfer, ["tiny.yaml", "--config", "data"]),
    (repro, ["run", "cifar-degradation", "--data", LONG, "--output", LONG]),
    (repro, ["run", "cifar-degradation", "--scale", "\x1b[2J\n"]),
    (benchmark, ["nms", "--small", "--output", LONG]),
    (benchmark, ["nms", "--rounds", "0"]),
    (benchmark, ["a\nb"]),
    *((prepare_data, ["voc-to-coco", path, "--xml", ".", "--output", "o"]) for path in (LONG, "x")),
    (prepare_data, ["voc-to-coco", ".", "--xml", LONG, "--output", "o"]),
    (prepare_data, ["voc-to-coco", ".", "--xml", "data", "--output", LONG]),
    (prepare_data, ["voc-to-coco", ".", "--xml", "data", "--output", "o", "--names", LONG]),
]


def name_of(value: object) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    assert isinstance(value, list)
    return ascii(" ".join(argument[:40] for argument in value))


@pytest.mark.parametrize(("tool", "arguments"), BAD_PATHS, ids=name_of)
@pytest.mark.usefixtures("site")
def test_invalid_paths_are_one_line(call: Call, tool: ModuleType, arguments: list[str]) -> None:
    outcome = call(tool, *arguments)
    assert_one_line(outcome)
    assert outcome.err[:-1].isprintable()
    assert len(outcome.err) < 1500


@pytest.mark.parametrize("tool", sorted(path.name for path in TOOLS.glob("[a-z]*.py")))
def test_help_imports_no_large_package(tool: str) -> None:
    program = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: print({'torch', 'cv2', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, str(TOOLS / tool)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].startswith("usage: ")
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.extended
def test_a_notebooks_backend_for_plots_is_not_used(site: Path) -> None:
    command = [sys.executable, str(TOOLS / "prepare_data.py"), "stats", "data/train.json"]
    command += ["--output", "stats"]
    environment = {**os.environ, "MPLBACKEND": "module://absent"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (site / "stats" / "stats.png").is_file()
