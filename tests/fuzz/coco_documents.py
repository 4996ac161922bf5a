"""Fuzzing of COCO annotation files: read for training and validation, and used for scoring."""

import contextlib
import random
from itertools import islice
from pathlib import Path

import numpy as np

from detection.commands import evaluate as eval_tool
from detection.config import AugmentConfig, DataConfig, SplitConfig
from detection.data.dataset import CocoDetection
from engine.errors import SkippedSampleError
from engine.log import RunLog
from tests.fuzz.commands import coco_document, import_scoring, run_tool, write_site
from tests.fuzz.harness import Call, Case, FaultError
from tests.fuzz.mutations import (
    all_changes,
    dump_json,
    mutate_bytes,
    mutate_text,
    mutate_tree,
    put,
    replace_file,
)


class CocoDocuments:
    """Half of the cases are single changes, spread over all possible ones; the rest are random."""

    name = "annotations"
    full, quick = 1000, 24

    def prepare(self, site: Path, count: int) -> None:
        """Write images and results."""
        write_site(site)
        self._site = site
        import_scoring(site, with_curves=count > self.quick)
        (site / "train.json").write_text((site / "val.json").read_text())
        with contextlib.redirect_stdout(None), contextlib.chdir(site):  # imports before the fork
            self._read(_config(random.Random(0)), training=True, with_masks=True)()
        self._changes = all_changes(coco_document(), seed=1)

    def make(self, rng: random.Random, index: int, case: Path) -> Case:
        """Write train.json."""
        path = case / "train.json"
        group, label, data = self._content(rng, index)
        path.write_bytes(data)
        if group == "path":
            label = replace_file(path, rng)
        config = _config(rng)
        calls = [
            (f"{kind} {what}", self._read(config, training=training, with_masks=with_masks))
            for kind, training in (("train", True), ("val", False))
            for what, with_masks in (("boxes", False), ("masks", True))
        ]
        calls += [(f"score {what}", self._score(what, rng, index)) for what in ("boxes", "masks")]
        return Case(group, label, calls)

    def _content(self, rng: random.Random, index: int) -> tuple[str, str, bytes]:
        document = coco_document()
        if index % 2 == 0:
            label = put(document, *self._changes[index // 2 % len(self._changes)])
            return "one change", label, dump_json(document, rng)
        group = rng.choice(["tree"] * 6 + ["bytes", "text", "path"])
        if group == "path":
            return group, "", b"{}"
        if group == "tree":
            label = "; ".join(mutate_tree(document, rng) for _ in range(rng.choice((1, 1, 2, 4))))
            return group, label, dump_json(document, rng)
        text = dump_json(document, rng)
        data, label = (
            mutate_bytes(text, rng) if group == "bytes" else mutate_text(text.decode(), rng)
        )
        return group, label, data

    def _read(self, config: DataConfig, *, training: bool, with_masks: bool) -> Call:
        def call() -> str:
            split = SplitConfig(images=str(self._site), annotations="train.json")
            data = CocoDetection(
                split, config=config, training=training, with_masks=with_masks, batch_size=2
            )
            log = RunLog(None, is_main=True)
            for what, count in data.report.rows():
                log.note(f"{count} {what}")
            log.note(", ".join(data.classes.names))
            data.check_images()
            samples = []
            sample_keys = [(index, 7 + index) for index in range(min(len(data), 8))]
            batch_shape = data.batch_shape(sample_keys) if training else None
            for index, seed in sample_keys:
                try:
                    samples.append(data.load(index, seed, batch_shape))
                except SkippedSampleError as reason:
                    log.note(f"{reason}")
            if not samples:
                return "no sample"
            # at evaluation a batch holds images of one padded shape
            together = [s for s in samples if training or s.pixels.shape == samples[0].pixels.shape]
            boxes = data.collate(list(islice(together, 4)), batch_shape).targets.boxes.numpy()
            if not np.isfinite(boxes).all():
                raise FaultError("a batch with boxes that are not finite")
            return f"{len(samples)} samples"

        return call

    def _score(self, what: str, rng: random.Random, index: int) -> Call:
        arguments = ["--results", str(self._site / f"{what}.json")]
        arguments.append("data.val.annotations=train.json")
        if what == "boxes" and rng.random() < 0.5:
            arguments.append("evaluation.protocols=[voc07, voc12, ilsvrc]")
        if index >= self.quick and rng.random() < 0.06:  # drawing curves takes 0.3 s
            arguments += ["--output", "scores"]
        return lambda: run_tool(eval_tool, *arguments)


def _config(rng: random.Random) -> DataConfig:
    return DataConfig(
        augment=AugmentConfig(short_sides=(64,), max_side=96, flip_prob=0.5, color_jitter=0.1),
        eval_short_side=64,
        eval_max_side=96,
        keep_empty=rng.random() < 0.5,
        on_bad_box=rng.choice(("error", "skip")),
        on_bad_image=rng.choice(("error", "skip")),
    )
