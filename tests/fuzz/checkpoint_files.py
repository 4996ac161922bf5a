"""Fuzzing of checkpoints and weights: damaged, edited and foreign files, and files with code.

A damaged file of our own writers must be refused or read without a change: no altered tensor may
be accepted.
"""

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.resnet import resnet18
from backbones.weights import load_backbone_weights
from detection.commands import evaluate as eval_tool
from detection.commands import train as train_det
from detection.commands.schemas import SCHEMAS
from detection.commands.tasks import build_task
from detection.config import DetectionConfig
from detection.predict import load_detector
from detection.weights import load_detector_weights
from engine.checkpoint import (
    load_checkpoint,
    read_safetensors,
    read_trained_weights,
    save_checkpoint,
    write_safetensors,
)
from engine.config import load_config
from engine.schema import LoaderConfig, LoopConfig, RunConfig
from engine.trainer import fit
from tests.cli.conftest import write_site as write_tiny_site
from tests.engine.toy import ToyTask
from tests.fuzz.commands import run_tool
from tests.fuzz.harness import Call, Case, FaultError
from tests.fuzz.hostile_weights import PICKLES, edit_zip, forged_header, saved, states
from tests.fuzz.mutations import HOSTILE, mutate_bytes, mutate_text, mutate_tree, replace_file

TINY = ("data.val.images=../../site/data", "data.val.annotations=../../site/data/val.json")
GROUPS = (
    *("own .pt", "own .safetensors", "edited checkpoint", "edited metadata", "pickle", "state"),
    *("own .pt", "own .safetensors", "edited checkpoint", "zip", "safetensors header", "detector"),
)


def toy_config(max_steps: int) -> RunConfig:
    """Return the config of a run of a few milliseconds."""
    loop = LoopConfig(
        max_steps=max_steps, batch_size=4, checkpoint_every=2, log_every=2, ema_decay=0.9
    )
    return RunConfig(loader=LoaderConfig(workers=0), loop=loop)


def same(a: Any, b: Any) -> bool:
    """Return whether the contents of two checkpoints are bitwise equal."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, dict) and isinstance(b, dict):
        return all(key in b and same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


class CheckpointFiles:
    """Files of a run of the toy task; in the slow test also of a tiny detector's run."""

    name = "checkpoints"
    full, quick = 200, 24

    def prepare(self, site: Path, count: int) -> None:
        """Train the runs, and build the models into which weights are loaded."""
        torch.set_num_threads(1)
        self._toy = site / "toy"
        with contextlib.redirect_stdout(None):
            fit(ToyTask(), toy_config(4), output=self._toy, device="cpu")
        self._step = self._toy / "checkpoints" / "step_00000004.pt"
        self._payload = load_checkpoint(self._step)
        self._weights = self._toy / "model.safetensors"
        self._site = site
        write_tiny_site(site)
        self._states = states()
        self._backbone = resnet18(num_classes=3)
        self._run = site / "run"
        if count > self.quick:
            with contextlib.chdir(site), contextlib.redirect_stdout(None):
                run_tool(train_det, "tiny.yaml", "--output", "run", "--device", "cpu")

    def make(self, rng: random.Random, index: int, case: Path) -> Case:
        """Write one file."""
        group = GROUPS[index % len(GROUPS)]
        made: dict[str, Callable[[random.Random, int, Path], Case]] = {
            "own .pt": self._own_checkpoint,
            "own .safetensors": self._own_weights,
            "edited checkpoint": self._edited_checkpoint,
            "edited metadata": self._edited_metadata,
            "pickle": self._pickle,
            "state": self._state,
            "zip": self._zip,
            "safetensors header": self._header,
            "detector": self._own_detector,
        }
        return made[group](rng, index, case)

    def _own_checkpoint(self, rng: random.Random, index: int, case: Path) -> Case:
        run = self._copy_of_toy(case)
        path = run / "checkpoints" / self._step.name
        label = _damage(path, rng)
        calls = [
            ("load_checkpoint", lambda: _same_or_fault(load_checkpoint(path), self._payload)),
            (
                "read_trained_weights",
                lambda: _same_or_fault(read_trained_weights(path)[1:], self._trained()),
            ),
            ("resume", lambda: self._resume(run)),
        ]
        return Case("own .pt", label, calls)

    def _trained(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        return read_trained_weights(self._step)[1:]

    def _own_weights(self, rng: random.Random, index: int, case: Path) -> Case:
        path = case / "model.safetensors"
        shutil.copy(self._weights, path)
        label = _damage(path, rng)
        expected = read_safetensors(self._weights)
        calls = [
            ("read_safetensors", lambda: _same_or_fault(read_safetensors(path), expected)),
            (
                "read_trained_weights",
                lambda: _same_or_fault(read_trained_weights(case)[1:], expected),
            ),
            *self._loads(path),
        ]
        return Case("own .safetensors", label, calls)

    def _edited_checkpoint(self, rng: random.Random, index: int, case: Path) -> Case:
        """Change a value of a checkpoint and save it with our writer: its checksums are right."""
        run = self._copy_of_toy(case)
        path = run / "checkpoints" / self._step.name
        payload = load_checkpoint(self._step)
        label = "; ".join(_edit_payload(payload, rng) for _ in range(rng.choice((1, 1, 2))))
        save_checkpoint(path, payload)
        calls: list[tuple[str, Call]] = [
            ("read_trained_weights", lambda: read_trained_weights(path)),
            ("resume", lambda: self._resume(run)),
            *self._loads(path),
        ]
        return Case("edited checkpoint", label, calls)

    def _edited_metadata(self, rng: random.Random, index: int, case: Path) -> Case:
        """Change the metadata of a detector's weights; the checksums of the file are right."""
        if index < self.quick:
            return self._header(rng, index, case)
        tensors, metadata = read_safetensors(self._run / "model.safetensors")
        key = rng.choice(("config", "config", "config", "class_names", "category_ids", "task"))
        text, label = _edit_json(metadata.get(key, "{}"), rng)
        if rng.random() < 0.25:
            key, (text, label) = "config", _planted(metadata["config"])
        path = case / "model.safetensors"
        write_safetensors(path, tensors, metadata | {key: text})
        arguments = [*TINY, "--output", "scores", "--device", "cpu"]
        calls: list[tuple[str, Call]] = [
            ("load_detector", lambda: load_detector(path, device="cpu")),
            ("eval", lambda: self._evaluate(case, [path.name, *arguments])),
            ("train model.weights", lambda: self._train("model.weights", path)),
            ("train backbone.weights", lambda: self._train("model.backbone.weights", path)),
        ]
        return Case("edited metadata", f"{key}: {label}", calls)

    def _pickle(self, rng: random.Random, index: int, case: Path) -> Case:
        names = sorted(PICKLES)
        name = names[index // 6 * 7 % len(names)]
        path = case / rng.choice(("a.pkl", "a.pkl", "a.pth", "a.pt"))
        data, label = PICKLES[name], ""
        if rng.random() < 0.2:
            data, label = mutate_bytes(data, rng)
        path.write_bytes(data)
        (case / "other.pt").write_bytes(PICKLES["mkdir"])
        return Case("pickle", f"{path.suffix} {name} {label}", self._loads(path))

    def _state(self, rng: random.Random, index: int, case: Path) -> Case:
        names = sorted(self._states)
        name = names[index // 12 * 5 % len(names)] if index % 24 < 12 else rng.choice(names)
        path = case / "a.pth"
        path.write_bytes(saved(self._states[name]()))
        return Case("state", name, self._loads(path))

    def _zip(self, rng: random.Random, index: int, case: Path) -> Case:
        data, label = edit_zip(self._step.read_bytes(), rng)
        path = case / "step_00000004.pt"
        path.write_bytes(data)
        return Case("zip", label, self._loads(path))

    def _header(self, rng: random.Random, index: int, case: Path) -> Case:
        data, label = forged_header(rng)
        path = case / "a.safetensors"
        path.write_bytes(data)
        return Case("safetensors header", label, self._loads(path))

    def _own_detector(self, rng: random.Random, index: int, case: Path) -> Case:
        """Damage a detector's checkpoint or weights, or change a value in its checkpoint."""
        if index < self.quick:
            return self._own_checkpoint(rng, index, case)
        run = case / "run"
        shutil.copytree(self._run, run, ignore=shutil.ignore_patterns("best.pt", "events*"))
        checkpoint = run / "checkpoints" / "step_00000002.pt"
        shutil.copy(self._site / "tiny.yaml", case)
        arguments = ["--resume", "--output", "run", "--device", "cpu", "loop.max_steps=3"]
        arguments += [key.replace("val", split) for key in TINY for split in ("train", "val")]
        resume = ("train --resume", lambda: run_tool(train_det, *arguments))
        if rng.random() < 0.4:
            payload = load_checkpoint(checkpoint)
            label = _edit_payload(payload, rng)
            save_checkpoint(checkpoint, payload)
            calls: list[tuple[str, Call]] = [
                resume,
                ("load_detector", lambda: load_detector(checkpoint, device="cpu")),
            ]
            return Case("edited checkpoint", f"detector: {label}", calls)
        path = rng.choice((checkpoint, run / "model.safetensors"))
        expected = read_trained_weights(path)[1:]
        label = _damage(path, rng)
        calls = [
            (
                "read_trained_weights",
                lambda: _same_or_fault(read_trained_weights(path)[1:], expected),
            ),
            ("load_detector", lambda: load_detector(path, device="cpu")),
            *([resume] if path == checkpoint else []),
        ]
        return Case(f"own {path.suffix}", f"detector: {label}", calls)

    def _loads(self, path: Path) -> list[tuple[str, Call]]:
        """Return all calls that read a file of weights."""
        classes = {"class_names": ("ant", "cow"), "category_ids": (1, 2)}
        model = torch.nn.Module()
        model.register_parameter("w", torch.nn.Parameter(torch.zeros(3)))
        network = self._backbone
        pixels = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}

        def load_backbone() -> None:
            load_backbone_weights(network, path, new_classes=True, **pixels)  # type: ignore[arg-type]

        def load_whole() -> None:
            load_detector_weights(model, path, config=DetectionConfig(), **classes)  # type: ignore[arg-type]

        loads: list[tuple[str, Call]] = [
            ("read_trained_weights", lambda: read_trained_weights(path)),
            ("backbone.weights", load_backbone),
            ("model.weights", load_whole),
            ("load_detector", lambda: load_detector(path, device="cpu")),
        ]
        return [(name, _no_code(call)) for name, call in loads]

    def _copy_of_toy(self, case: Path) -> Path:
        run = case / "run"
        shutil.copytree(self._toy, run)
        return run

    def _resume(self, run: Path) -> None:
        fit(ToyTask(), toy_config(6), output=run, resume=True, device="cpu")

    def _train(self, key: str, path: Path) -> None:
        """Build the task, as training does before its first step."""
        with contextlib.chdir(self._site):
            build_task(load_config("tiny.yaml", [f"{key}={path}"], schemas=SCHEMAS))

    def _evaluate(self, case: Path, arguments: Sequence[str]) -> None:
        """Evaluate a detector; a fault if anything but its output is written."""
        before = {str(path) for path in self._site.rglob("*")}
        try:
            run_tool(eval_tool, *arguments)
        finally:
            planted = {str(path) for path in self._site.rglob("*")} - before
            planted |= {path.name for path in case.iterdir()} - {"scores", "model.safetensors"}
            if planted:
                raise FaultError(f"written to a path in the file: {sorted(planted)[:3]}")


def _no_code(call: Call) -> Call:
    def guarded() -> None:
        try:
            call()
        finally:
            if Path("ran").exists():
                Path("ran").rmdir()
                raise FaultError("code in the file was executed")

    return guarded


def _same_or_fault(got: Any, expected: Any) -> str:
    if not same(expected, got):
        raise FaultError("altered content accepted")
    return "damage outside the content: accepted, unaltered"


def _damage(path: Path, rng: random.Random) -> str:
    """Damage a file in one way; in half of the cases flip a bit."""
    if rng.random() < 0.06:
        return replace_file(path, rng)
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        return f"bit {bit} of byte {at} flipped"
    changed, label = mutate_bytes(bytes(data), rng)
    path.write_bytes(changed)
    return label


def _edit_payload(payload: dict[str, Any], rng: random.Random) -> str:
    """Change one value in a checkpoint: a number, a string, a tensor or a dict."""
    node: Any = payload
    steps: list[Any] = []
    while isinstance(node, dict) and node:
        parent, key = node, rng.choice(list(node))
        steps.append(key)
        node = node[key]
        if rng.random() < 0.15:
            break
    where = ".".join(map(str, steps))
    if rng.random() < 0.2:
        del parent[key]
        return f"{where} removed"
    values: list[Any] = [
        *rng.sample(HOSTILE, 6),
        *(torch.zeros(2), torch.tensor(1), torch.zeros(0), torch.zeros(3, 1).to_sparse()),
        *(torch.full((1, 3), torch.nan), torch.zeros(1, 3, dtype=torch.complex64), {1: 2}),
    ]
    if isinstance(node, Tensor):
        values += [node.double(), node.to(torch.int32), node[..., :1], node.unsqueeze(0)] * 2
    value = rng.choice(values)
    parent[key] = value
    return f"{where} = {value!r:.80}"


def _edit_json(text: str, rng: random.Random) -> tuple[str, str]:
    """Change a JSON string of the metadata."""
    try:
        tree = json.loads(text)
    except ValueError:
        tree = text
    action = rng.choice(("tree", "tree", "tree", "text", "value"))
    if action == "tree" and tree and isinstance(tree, dict | list):
        label = mutate_tree(tree, rng)
        return json.dumps(tree), label
    if action == "text":
        data, label = mutate_text(text, rng)
        return data.decode("utf-8", "replace"), label
    value = rng.choice(HOSTILE)
    return json.dumps(value), f"{value!r:.80}"


def _planted(config: str) -> tuple[str, str]:
    """Return a config that asks for a demo to be drawn in another folder."""
    values = json.loads(config)
    values["data"]["demo"] = {"root": "planted", "num_train": 1, "num_val": 1}
    values["data"]["val"] = {"images": "planted/val", "annotations": "planted/annotations/val.json"}
    values["data"]["train"] = values["data"]["val"]
    return json.dumps(values), "a demo in a folder given in the file"
