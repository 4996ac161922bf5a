"""Fuzzing of COCO results files, scored against valid annotations."""

import json
import random
from pathlib import Path
from typing import Any

from detection.commands import evaluate as eval_tool
from tests.fuzz.commands import coco_document, import_scoring, results_of, run_tool, write_site
from tests.fuzz.harness import Call, Case
from tests.fuzz.mutations import (
    all_changes,
    dump_json,
    mutate_bytes,
    mutate_text,
    mutate_tree,
    put,
    replace_file,
)

SEGMENTATIONS: tuple[Any, ...] = (
    *(
        [],
        None,
        {},
        "",
        [[]],
        [[1, 1, 9, 1, 9, 9]],
        [[1, 1, 9, 1]],
        [1, 1, 9, 1, 9, 9],
        [[1e9] * 6],
    ),
    *({"size": [64, 64], "counts": None}, {"size": [64, 64]}, {"size": None, "counts": "o0"}),
    *({"size": [10**9, 10**9], "counts": [10**18]}, {"size": [64, 64], "counts": [4096.0]}),
)
"""Values that replace a valid segmentation, with and without a box."""


class CocoResults:
    """A third of the cases are single changes, the rest are random."""

    name = "results"
    full, quick = 500, 40

    def prepare(self, site: Path, count: int) -> None:
        """Write annotations and images."""
        write_site(site)
        import_scoring(site, with_curves=count > self.quick)
        without = coco_document()
        for each in without["annotations"]:
            del each["segmentation"]
        (site / "boxes_only.json").write_text(json.dumps(without))
        self._site = site
        self._changes = [
            change
            for masks in (False, True)
            for change in all_changes(results_of(coco_document(), masks=masks), seed=2)
        ]

    def make(self, rng: random.Random, index: int, case: Path) -> Case:
        """Write results.json."""
        masks = rng.random() < 0.6
        results = results_of(coco_document(), masks=masks)
        path = case / "results.json"
        group = "one change" if index % 3 == 0 else rng.choice(["tree"] * 5 + ["shape"] * 2)
        if index % 3 == 1:
            group = rng.choice(("tree", "tree", "shape", "bytes", "text", "path"))
        data = dump_json(results, rng)
        if group == "one change":
            results = results_of(coco_document(), masks=True)
            label = put(results, *self._changes[index // 3 % len(self._changes)])
            data = dump_json(results, rng)
        elif group == "tree":
            label = "; ".join(mutate_tree(results, rng) for _ in range(rng.choice((1, 1, 2, 4))))
            data = dump_json(results, rng)
        elif group == "shape":
            label = _change_shapes(results, rng)
            data = dump_json(results, rng)
        elif group == "path":
            label = replace_file(path, rng)
            return Case(group, label, self._calls(rng, index))
        else:
            data, label = (
                mutate_bytes(data, rng) if group == "bytes" else mutate_text(data.decode(), rng)
            )
        path.write_bytes(data)
        return Case(group, label, self._calls(rng, index))

    def _calls(self, rng: random.Random, index: int) -> list[tuple[str, Call]]:
        arguments = ["--results", "results.json"]
        if rng.random() < 0.3:
            arguments.append("evaluation.protocols=[voc07, ilsvrc]")
        if index >= self.quick and rng.random() < 0.05:
            arguments += ["--output", "scores"]
        return [
            (
                f"score by {name}",
                _scoring([*arguments, f"data.val.annotations={self._site / name}"]),
            )
            for name in ("val.json", "boxes_only.json")
        ]


def _scoring(arguments: list[str]) -> Call:
    return lambda: run_tool(eval_tool, *arguments)


def _change_shapes(results: list[dict[str, Any]], rng: random.Random) -> str:
    """Give some results an unusual segmentation or box, as other projects write them."""
    value, box = rng.choice(SEGMENTATIONS), rng.choice(([], None, [0, 0, 0, 0], [1, 2, 3, 4, 5]))
    which = rng.choice(("all", "first", "last"))
    chosen = {"all": results, "first": results[:1], "last": results[-1:]}[which]
    odd_box = rng.random() < 0.4
    for each in chosen:
        each["segmentation"] = value
        if odd_box:
            each["bbox"] = box
        elif rng.random() < 0.3:
            each.pop("bbox")
    return f"segmentation {value!r:.60}{f', bbox {box}' if odd_box else ''} in {which}"
