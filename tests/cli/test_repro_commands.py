"""The commands of configs/repro.yaml: each is valid, and runs on miniatures of its data set.

Before a command, those of the config headers and of the rows run that make the files it reads.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from backbones.classification.config import ClassificationConfig
from detection.commands import data as prepare_data
from detection.commands import evaluate, predict, pretrain, train
from detection.commands.config_files import find_config
from detection.commands.schemas import SCHEMAS as DETECTION
from detection.config import DetectionConfig
from detection.localization.config import LocalizationConfig
from engine.config import load_config
from engine.schema import RunConfig
from tests.cli.conftest import Call
from tests.cli.miniatures import write_bccd, write_imagenet, write_miniatures
from tools.lab.study import command as repro
from tools.lab.study.config import load_repro

REPOSITORY = Path(__file__).resolve().parents[2]
REPRO = load_repro(repro.REPRO)
SCHEMAS: dict[str, type[RunConfig]] = {**DETECTION, "classification": ClassificationConfig}
TOOLS: dict[str, ModuleType] = {
    "tools/train_det.py": train,
    "tools/pretrain_backbone.py": pretrain,
    "tools/eval.py": evaluate,
    "tools/predict.py": predict,
    "tools/prepare_data.py": prepare_data,
}
CONFIG_FOLDERS = {
    "tools/train_det.py": ("detection", "localization"),
    "tools/pretrain_backbone.py": ("backbones",),
}
MADE = re.compile(r"runs/\w+|data/[\w./-]+\.json")
"""Paths that commands make: run folders, and COCO JSON files."""

COCO_FILES = re.compile(
    r"data/coco/annotations/(instances_(train|val)2014|image_info_test-dev2015)\.json"
)
"""Files that COCO publishes; all other JSON files are made."""

# Overrides that make a run short: steps, width, sizes of images and numbers of boxes.
SHORT = (
    *("loop.max_steps=2", "loop.eval_every=0", "loop.accumulate=1", "loop.precision=fp32"),
    *("loop.log_every=1", "loop.drawn_images=1", "loader.workers=0"),
)
# 16 channels at least: with 8, oneDNN's float32 kernels for AVX-512 crash (docs/LOG.md, 2026-11-29)
NARROW = ("model.backbone.width_multiplier=0.25",)
CLASSIFIER = (
    *(*SHORT, *NARROW, "loop.batch_size=4", "augment.crop=32", "augment.short_sides=[36,40]"),
    *("evaluation.resize=36", "evaluation.crop=32", "evaluation.scales=[32,40]"),
)
# two held-out training images are evaluated in place of the 10,000 test images
CIFAR = (
    *(*SHORT, "loop.batch_size=2", "loop.eval_batch_size=2"),
    *("data.holdout=2", "export.num_images=4"),
)
# The frozen statistics of 101 layers come from four images, so activations are large: at the
# paper's learning rate two steps end in numbers that are not finite.
DETECTOR = (
    *(*SHORT, *NARROW, "loop.batch_size=2", "optim.lr=1e-9"),
    *("data.augment.short_sides=[64]", "data.augment.max_side=96"),
    *("data.eval_short_side=64", "data.eval_max_side=96", "model.rpn.pre_nms_topk_train=50"),
    *("model.rpn.post_nms_topk_train=20", "model.rpn.pre_nms_topk_test=50"),
    *("model.rpn.post_nms_topk_test=10", "model.roi.num_samples=8"),
)
LOCALIZER = (
    *(*SHORT, *NARROW, "loop.batch_size=2", "augment.crop=64", "augment.short_sides=[64,72]"),
    *("evaluation.resize=64", "evaluation.crop=64", "evaluation.scales=[64]"),
)
REGIONS = (*LOCALIZER, "model.num_proposals=5", "model.side=32")
DEMO = ("data.demo.num_train=8", "data.demo.num_val=4")


@dataclass(frozen=True)
class Command:
    """A command line `python tools/TOOL.py ARGUMENT ...`."""

    text: str
    tool: str
    arguments: tuple[str, ...]

    @property
    def overrides(self) -> list[str]:
        return [each for each in self.arguments if "=" in each]

    @property
    def output(self) -> str | None:
        if "--output" not in self.arguments:
            return None
        return self.arguments[self.arguments.index("--output") + 1]

    @property
    def runs(self) -> list[str]:
        """The runs that tools/eval.py or tools/predict.py reads."""
        options = {self.output}
        return [each for each in self.arguments if each.startswith("runs/") and each not in options]

    def config_file(self) -> Path:
        (file,) = [argument for argument in self.arguments if argument.endswith(".yaml")]
        return Path(file)

    def config(self) -> RunConfig:
        """Return the config that a training command trains with."""
        return load_config(find_config(self.config_file()), self.overrides, schemas=SCHEMAS)

    def makes(self) -> list[str]:
        """Return the run folder or the files that the command writes."""
        if self.tool in CONFIG_FOLDERS:
            return [self.output or f"runs/{self.config_file().stem}"]
        if self.arguments[0] == "split":
            start = self.arguments.index("--names") + 1
            names = self.arguments[start : self.arguments.index("--output")]
            return [f"{self.output}/{name}.json" for name in names]
        return [self.output] if self.output else []

    def reads(self) -> list[str]:
        """Return what it reads of what other commands can make, each path once."""
        values = self.config().model_dump_json() if self.tool in CONFIG_FOLDERS else ""
        found = dict.fromkeys(MADE.findall(f"{self.text} {values}"))
        return [path for path in found if path not in self.makes()]


def parse(text: str) -> Command:
    python, tool, *arguments = shlex.split(text)
    assert python == "python"
    return Command(text, tool, tuple(arguments))


def header_commands(path: Path) -> Iterator[Command]:
    """Yield the commands for one process in a config's header, without downloads."""
    text = path.read_text(encoding="utf-8")
    for line in re.findall(r"^#.*?(python tools/\S+ .*)$", text, flags=re.MULTILINE):
        command = parse(line)
        if command.arguments[0] != "download":
            yield command


ROWS = {
    figure.what.split(":")[0]: [parse(text) for text in figure.commands] for figure in REPRO.figures
}
IN_ROWS = [command for row in ROWS.values() for command in row if command.tool in TOOLS]
CONFIGS = {command.config_file() for command in IN_ROWS if command.tool in CONFIG_FOLDERS}
HEADERS = [each for path in sorted(CONFIGS) for each in header_commands(REPOSITORY / path)]


def makers(commands: Sequence[Command]) -> dict[str, Command]:
    """Return the command that makes each run or file, the first if several do."""
    found: dict[str, Command] = {}
    for command in commands:
        for path in command.makes():
            found.setdefault(path, command)
    return found


MAKERS = makers([*IN_ROWS, *HEADERS])


@dataclass
class Site:
    """A folder with the miniatures, and the commands that ran in it."""

    folder: Path
    done: set[str] = field(default_factory=set)

    def run(self, command: Command, call: Call, *more: str) -> None:
        """Run a command, shortened, after those that make what it reads; `more` are overrides."""
        if command.text in self.done:
            return
        for path in command.reads():
            if path in MAKERS:
                self.run(MAKERS[path], call)
        outcome = call(TOOLS[command.tool], *command.arguments, *shortening(command), *more)
        assert outcome.code == 0, f"{command.text}\n{outcome.err}"
        for path in command.makes():
            assert (self.folder / path).exists(), f"{command.text}: {path}"
        if command.tool in CONFIG_FOLDERS:
            names = {path.name for path in (self.folder / command.makes()[0]).iterdir()}
            assert names >= {"model.safetensors", "metrics.json"}
        self.done.add(command.text)


def shortening(command: Command) -> list[str]:
    """Return further arguments that make a command short."""
    if command.tool == "tools/prepare_data.py":
        return []
    scales = ["evaluation.scales=[32,64]"] if "evaluation.scales=" in command.text else []
    overrides: Sequence[str] = scales
    if command.tool in CONFIG_FOLDERS:
        config = command.config()
        if isinstance(config, DetectionConfig):
            overrides = DETECTOR
        elif isinstance(config, ClassificationConfig):
            overrides = CIFAR if config.data.kind == "cifar10" else CLASSIFIER
        else:
            overrides = LOCALIZER if isinstance(config, LocalizationConfig) else REGIONS
    return ["--device", "cpu", *overrides]


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A folder with data/, shared by the tests of this module; runs are made as they are needed."""
    folder = tmp_path_factory.mktemp("paper")
    write_miniatures(folder / "data")
    return Site(folder)


def check_reads(command: Command, made: set[str]) -> None:
    """Check that what a command reads is published, or made by a header or an earlier command."""
    for path in command.reads():
        if path.startswith("runs/"):
            assert path in made, f"{command.text}: {path} is not made by an earlier command"
        else:
            known = path in MAKERS or COCO_FILES.fullmatch(path)
            assert known, f"{command.text}: {path} is made by no header of a config"


def test_commands_are_valid() -> None:
    trained: dict[str, Command] = {}
    for command in chain.from_iterable(ROWS.values()):
        tool, arguments, overrides = command.tool, command.arguments, command.overrides
        if tool == "-m":
            module, path = arguments
            assert module == "pytest"
            assert (REPOSITORY / path).is_file()
            continue
        assert (REPOSITORY / tool).is_file()
        if tool == "tools/repro.py":
            parsed = repro.make_parser().parse_args(arguments)
            assert parsed.scale in getattr(REPRO, parsed.study.replace("-", "_"))
            continue
        check_reads(command, set(trained))
        if tool in CONFIG_FOLDERS:
            assert command.config_file().parent.name in CONFIG_FOLDERS[tool]
            assert (REPOSITORY / command.config_file()).is_file()
            assert isinstance(command.config(), RunConfig)
            trained[command.makes()[0]] = command
        else:
            assert tool in ("tools/eval.py", "tools/predict.py")
            assert command.runs
            for run in command.runs:
                maker = trained[run]
                file = REPOSITORY / maker.config_file()
                load_config(file, [*maker.overrides, *overrides], schemas=SCHEMAS)


def test_data_of_headers_are_made_by_their_commands() -> None:
    for command in HEADERS:
        if command.tool == "tools/prepare_data.py":
            for path in command.reads():
                assert path in MAKERS or COCO_FILES.fullmatch(path), command.text


def uses_cifar(command: Command) -> bool:
    return "cifar" in command.text


# Table 10's detector needs a classifier, COCO and VOC: the quick tests run it alone
ON_MINIATURES = [
    pytest.param(name, id=name, marks=() if name == "Table 10" else pytest.mark.extended)
    for name, row in ROWS.items()
    if row[0].tool in TOOLS and not any(map(uses_cifar, row))
]


@pytest.mark.parametrize("row", ON_MINIATURES)
def test_commands_run_on_miniatures(
    row: str, miniatures: Site, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(miniatures.folder)
    for command in ROWS[row]:
        miniatures.run(command, call)


@pytest.mark.extended
def test_commands_for_servers_run_on_miniatures(
    miniatures: Site, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(miniatures.folder)
    commands = [command for command in HEADERS if command.tool == "tools/predict.py"]
    assert len(commands) >= 2
    for command in commands:
        miniatures.run(command, call)
        (output,) = command.makes()
        assert (miniatures.folder / output / "detections.json").is_file()


@pytest.mark.slow
def test_commands_run_on_cifar(
    miniatures: Site, call: Call, cifar_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(miniatures.folder)
    for command in IN_ROWS:
        if uses_cifar(command):
            miniatures.run(command, call, f"data.root={cifar_root}")


def shorten_studies(site: Path) -> None:
    """Write a copy of configs/ below a folder, in which each training of a study is short."""
    values = yaml.safe_load(repro.REPRO.read_text(encoding="utf-8"))
    parts: list[tuple[dict[str, Any], Sequence[str]]] = []
    parts += [(scale, CIFAR) for scale in values["cifar_degradation"].values()]
    for scale in values["residual_backbone"].values():
        parts += [(scale["pretraining"], CLASSIFIER), (scale["detection"], DETECTOR)]
    for study in repro.VARIANTS:
        scales = values[study.replace("-", "_")].values()
        parts += [(scale["training"], DETECTOR) for scale in scales]
    for part, overrides in parts:
        demo = DEMO if "data.demo.root" in part.get("data", {}) else ()
        # a new list: the file has aliases
        part["overrides"] = [*part.get("overrides", []), *overrides, *demo]
    (site / "configs").mkdir()
    for folder in ("backbones", "detection", "segmentation"):
        (site / "configs" / folder).symlink_to(REPOSITORY / "configs" / folder)
    (site / "configs" / "repro.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def run_studies(
    site: Path, call: Call, commands: Sequence[Command], *more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run `repro.py` commands with two steps for each network; `more` are arguments."""
    shorten_studies(site)
    monkeypatch.setattr(repro, "REPRO", site / "configs" / "repro.yaml")
    for command in commands:
        outcome = call(repro, *command.arguments, "--device", "cpu", *more)
        assert outcome.code == 0, outcome.err
        assert "report and figures: runs/repro/" in outcome.out


STUDIES = {
    command.text: command
    for command in chain.from_iterable(ROWS.values())
    if command.tool == "tools/repro.py"
}
CIFAR_STUDIES = [each for each in STUDIES.values() if uses_cifar(each)]
DETECTOR_STUDIES = [each for each in STUDIES.values() if not uses_cifar(each)]


@pytest.mark.slow
def test_studies_run_on_cifar(
    site: Path, call: Call, cifar_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(CIFAR_STUDIES) == 2
    run_studies(site, call, CIFAR_STUDIES, "--data", str(cifar_root), monkeypatch=monkeypatch)


@pytest.mark.extended
def test_studies_of_detectors_run_on_miniatures(
    site: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo is drawn by the command; the other data sets are miniatures."""
    assert len(DETECTOR_STUDIES) == 5
    write_imagenet(site / "data" / "imagenette128")
    write_bccd(site / "data" / "bccd")
    run_studies(site, call, DETECTOR_STUDIES, "--seeds", "0", "1", monkeypatch=monkeypatch)
