"""Fuzzing of config files and overrides, loaded as the training commands load them."""

import json
import os
import random
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml

from backbones.classification.config import ClassificationConfig
from backbones.classification.task import build_classifier
from detection.commands import evaluate as eval_tool
from detection.commands.schemas import ALL_SCHEMAS
from detection.config import DetectionConfig
from detection.localization.build import build_localizer, build_region_classifier
from detection.localization.config import LocalizationConfig, LocalizationRegionsConfig
from detection.models.build import build_faster_rcnn
from engine.cli import parse_training
from engine.config import dump_config, load_config
from engine.schema import Config
from tests.fuzz.commands import run_tool
from tests.fuzz.harness import REPOSITORY, Call, Case, FaultError
from tests.fuzz.hostile_yaml import DOCUMENTS, VALUES
from tests.fuzz.mutations import (
    NAMES,
    mutate_bytes,
    mutate_text,
    mutate_tree,
    paths_of,
    replace_file,
    value_at,
)
from tools.lab.study.config import ReproConfig
from tools.lab.transfer.trials import TransferConfig

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
SCHEMAS: dict[str, type[Config]] = {
    **ALL_SCHEMAS,
    "repro": ReproConfig,
    "transfer": TransferConfig,
}
PLAUSIBLE = (
    *(
        "0",
        "1",
        "2",
        "3",
        "16",
        "1000",
        "0.5",
        "1e-3",
        "-1",
        "true",
        "false",
        "null",
        "[1]",
        "[8, 16]",
    ),
    *(
        "[0.5, 1, 2]",
        "[]",
        "x",
        "a/b.json",
        "fpn",
        "cosine",
        "frozen",
        "999999999",
        "1e9",
        "[640, 640]",
    ),
)
"""Values that are valid for some keys."""
GROUPS = ("tree", "tree", "value", "value", "document", "text", "bytes", "override", "base", "path")


class YamlConfigs:
    """Files of configs/ with a few changes, hostile documents and hostile overrides."""

    name = "configs"
    full, quick = 500, 30

    def prepare(self, site: Path, count: int) -> None:
        """Do nothing: the cases share no files."""

    def make(self, rng: random.Random, index: int, case: Path) -> Case:
        """Write config.yaml, and the bases that it names."""
        source = rng.choice(CONFIGS)
        path = case / "config.yaml"
        text = source.read_text()
        if bases := yaml.safe_load(text).get("base"):  # relative to the original file
            names = bases if isinstance(bases, list) else [bases]
            found = [str((source.parent / name).resolve()) for name in names]
            text = re.sub(r"^base: .*$", f"base: {json.dumps(found)}", text, flags=re.MULTILINE)
        path.write_text(text)
        values = yaml.safe_load(text)
        schemas = SCHEMAS
        if source.parent.name == "configs":
            schemas = {source.stem: SCHEMAS[source.stem]}
        group = GROUPS[index % len(GROUPS)]
        overrides: list[str] = []
        if group == "override":
            overrides = [_override(values, rng) for _ in range(rng.choice((1, 1, 2)))]
            label = " ".join(overrides)
        else:
            label = _change(group, path, values, index, rng)
        calls: list[tuple[str, Call]] = [("train", lambda: _load(overrides, schemas))]
        if overrides:
            calls.append(("eval", lambda: run_tool(eval_tool, "--results", "x.json", *overrides)))
        return Case(group, f"{source.relative_to(REPOSITORY)}: {label}", calls)


def _change(group: str, path: Path, values: Any, index: int, rng: random.Random) -> str:
    text = path.read_text()
    if group == "tree":
        label = "; ".join(mutate_tree(values, rng) for _ in range(rng.choice((1, 1, 2))))
        # written as JSON, which is YAML too, because YAML's dumper refuses some values
        path.write_text(json.dumps(values, default=str))
    elif group == "value":
        where = rng.choice(list(paths_of(values)))
        *above, last = where
        value_at(values, tuple(above))[last] = "PLACE"
        value = VALUES[index // len(GROUPS) * 2 % len(VALUES)]
        if rng.random() < 0.5:
            value = rng.choice(VALUES)
        dumped = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
        path.write_bytes(dumped.replace("PLACE", value).encode("utf-8", "surrogatepass"))
        label = f"{'.'.join(map(str, where))}: {value[:80]}"
    elif group == "document":
        label = DOCUMENTS[index // len(GROUPS) % len(DOCUMENTS)]
        path.write_text(label)
        os.mkfifo(path.with_name("fifo.yaml"))
    elif group == "base":
        label = _change_base(path, rng)
    elif group == "path":
        label = replace_file(path, rng)
    else:
        data, label = (
            mutate_bytes(text.encode(), rng) if group == "bytes" else mutate_text(text, rng)
        )
        path.write_bytes(data)
    return label


def _change_base(path: Path, rng: random.Random) -> str:
    """Write a chain of bases that ends in a valid file, an invalid one or a loop."""
    length = rng.choice((1, 1, 2, 3, 50))
    last = rng.choice(("loop", "fifo", "folder", "list", "absent", "hostile", "sound", "zeros"))
    names = [path.name, *(f"base{i}.yaml" for i in range(length))]
    for name, base in pairwise(names):
        path.with_name(name).write_text(f"base: {base}\nseed: 1\n")
    end = path.with_name(names[-1])
    if last == "loop":
        end.write_text(f"base: {rng.choice(names)}\n")
    elif last == "fifo":
        os.mkfifo(end)
    elif last == "folder":
        end.mkdir()
    elif last == "zeros":
        end.symlink_to("/dev/zero")
    elif last != "absent":
        end.write_text({"list": "[1]\n", "sound": "seed: 3\n"}.get(last, rng.choice(DOCUMENTS)))
    return f"a chain of {length} bases with {last} at its end"


def _override(values: Any, rng: random.Random) -> str:
    """Return one override, without characters that no command line argument can have."""
    steps = rng.choice(list(paths_of(values)))
    path = ".".join(map(str, steps))
    if type(value_at(values, steps)) in (int, float) and rng.random() < 0.7:
        return f"{path}={rng.choice(PLAUSIBLE)}"
    value = rng.choice(PLAUSIBLE if rng.random() < 0.5 else VALUES + NAMES)
    made = rng.choice(
        [
            *[f"{path}={value}"] * 6,
            *(f"={value}", f"{path}.={value}", f".{path}={value}", f"{path}..x={value}"),
            *(
                f"{value}={value}",
                f"{path.upper()}={value}",
                f" {path} = {value}",
                f"{path}=={value}",
            ),
            *(f"{path}.x.y={value}", f"{path}.0={value}", f"{path.split('.')[0]}={value}"),
            *(f"base={value}", f"task={value}", f"seed={value}", f"data.train.images={value}"),
        ]
    )
    made = (
        made.replace("\0", "").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    )
    return made.lstrip("-") or "x"


def _load(overrides: list[str], schemas: dict[str, type[Config]]) -> str:
    """Load config.yaml; a valid config must be equal after dump and load, and must build."""
    sys.argv = ["train_det.py", "config.yaml", *overrides]
    arguments = parse_training("", default=Path("config.yaml"))
    config = load_config(arguments.config, arguments.overrides, schemas=schemas)
    if Path("ran").exists():
        raise FaultError("code in the file was executed")
    Path("dumped.yaml").write_text(dump_config(config), encoding="utf-8")
    if load_config("dumped.yaml", schemas=schemas) != config:
        raise FaultError("config differs after dump and load")
    with torch.device("meta"):  # shapes without memory
        _build(config)
    return "loaded"


def _build(config: Config) -> None:
    if isinstance(config, DetectionConfig):
        build_faster_rcnn(
            config.model,
            num_classes=80,
            size_divisor=config.data.size_divisor,
            with_masks=config.task == "segmentation",
        )
    elif isinstance(config, LocalizationConfig):
        build_localizer(config.model, num_classes=10)
    elif isinstance(config, LocalizationRegionsConfig):
        build_region_classifier(config.model, num_classes=10)
    elif isinstance(config, ClassificationConfig):
        build_classifier(config, num_classes=10)
