"""Prediction with improvements against one image, view, RoI and scale at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from detection.config import DetectionConfig
from detection.inference import multi_scale
from detection.inference.pipeline import InferencePipeline
from detection.models.faster_rcnn import FasterRCNN
from detection.models.selection import Selection
from detection.structures import ImageBatch
from tests.detection.inference.networks import (
    SCALES,
    SHAPES,
    make_batches,
    make_config,
    make_network,
    row_of,
)
from tests.reference import inference as reference


@dataclass(frozen=True)
class Case:
    """An ensemble of necks, the region head of all, and how it predicts.

    nms_thresh, vote_iou_thresh: what follows from the `evaluation` section. shapes: of images.
    """

    necks: tuple[str, ...]
    evaluation: dict[str, Any]
    roi: dict[str, Any] = field(default_factory=dict)
    nms_thresh: float = 0.3
    vote_iou_thresh: float | None = 0.5
    task: str = "detection"
    shapes: Sequence[tuple[int, int]] = SHAPES[1:]

    def networks(self) -> tuple[DetectionConfig, list[FasterRCNN]]:
        """Return the first network's config and the networks."""
        configs = [
            make_config(neck, roi=self.roi, evaluation=self.evaluation, task=self.task)
            for neck in self.necks
        ]
        pairs = enumerate(configs)
        return configs[0], [make_network(config, seed=seed) for seed, config in pairs]


REFINE = {"refine_boxes": True}
MAXOUT = {"scales": SCALES}
UNION = {"scales": SCALES[1:], "merge": "union"}
MIRROR = {"merge": "union", "mirror": True}
POOL = {"pool": "roi_pool"}
CONTEXT = {"global_context": True}
TWO = {"stages": 2}
CASCADE = {"stages": 3, "class_agnostic_boxes": True}
OFF: dict[str, Any] = {"nms_thresh": 0.5, "vote_iou_thresh": None}
CASES = {
    "refined on c4": Case(("c4",), REFINE),
    "refined on fpn, roi_pool, two stages": Case(("fpn",), REFINE, POOL | TWO),
    "voting alone": Case(("fpn",), {"vote_iou_thresh": 0.3}, nms_thresh=0.5, vote_iou_thresh=0.3),
    "context on c4": Case(("c4",), {"vote_iou_thresh": 1.0}, CONTEXT | TWO, 0.5, 1.0),
    "context on fpn": Case(("fpn",), {"vote_iou_thresh": 1.0}, CONTEXT, 0.5, 1.0),
    "cascade on c4": Case(("c4",), {"vote_iou_thresh": 1.0}, CASCADE, 0.5, 1.0),
    "cascade on fpn, refined": Case(("fpn",), REFINE, CASCADE),
    "maxout on c4": Case(("c4",), MAXOUT, **OFF),
    "maxout on c4, roi_pool, context": Case(("c4",), MAXOUT, POOL | CONTEXT, **OFF),
    "maxout on fpn, context, two stages": Case(("fpn",), MAXOUT, CONTEXT | TWO, **OFF),
    "maxout on fpn, roi_pool, refined": Case(("fpn",), MAXOUT | REFINE, POOL),
    "union on c4": Case(("c4",), UNION, CONTEXT),
    "union without the size of proposals": Case(("fpn",), UNION | {"scales": (48, 96)}),
    "mirrored on c4": Case(("c4",), MIRROR),
    "mirrored union on fpn, no voting": Case(
        ("fpn",), UNION | MIRROR | {"vote_iou_thresh": 1.0}, vote_iou_thresh=1.0
    ),
    "ensemble": Case(("c4", "fpn"), {}, **OFF),
    "ensemble, everything by maxout": Case(
        ("fpn", "c4"), MAXOUT | REFINE, CONTEXT | TWO, shapes=SHAPES[2:]
    ),
    "ensemble, everything by union": Case(
        ("c4", "fpn"),
        MIRROR | REFINE | {"scales": (48,), "union_nms_thresh": 0.4},
        CONTEXT,
        nms_thresh=0.4,
        shapes=SHAPES[2:],
    ),
}
EVERYTHING = [name for name in CASES if "everything" in name]
MASK_CASES = {
    "refined, c4": Case(("c4",), REFINE, task="segmentation"),
    "refined, fpn": Case(("fpn",), REFINE, TWO, task="segmentation"),
    "scales without that of proposals": Case(
        ("fpn",), UNION | {"scales": (48, 96)}, task="segmentation"
    ),
    "ensemble": Case(("c4", "fpn"), {}, task="segmentation", **OFF),
    "ensemble, reversed": Case(("fpn", "c4", "fpn"), REFINE, task="segmentation"),
}


@pytest.fixture(autouse=True)
def _small_canonical_area(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the small RoIs of these images choose different scales."""
    for module in (multi_scale, reference):
        monkeypatch.setattr(module, "CANONICAL_AREA", 30.0**2)


def assert_rows(found: Selection, row: int, expected: Sequence[reference.Candidate]) -> None:
    count = len(expected)
    assert int((found.scores[row] >= 0).sum()) == count
    assert found.labels[row, :count].tolist() == [each.label for each in expected]
    scores = torch.tensor([each.score for each in expected])
    torch.testing.assert_close(found.scores[row, :count], scores, rtol=1e-3, atol=1e-5)
    boxes = torch.tensor([each.box for each in expected]).view(count, 4)
    torch.testing.assert_close(found.boxes[row, :count], boxes, rtol=1e-3, atol=1e-2)


@torch.no_grad()
def check(
    case: Case, networks: Sequence[FasterRCNN], config: DetectionConfig, *, at_least: int = 4
) -> None:
    """Compare a batch of all images with the reference of each; one has `at_least` detections."""
    batches = make_batches(config, case.shapes)
    pipeline = InferencePipeline(networks, config)
    found, _ = pipeline.select(batches)
    numbers = pipeline._sizes.scale_idxs
    counts = []
    for row in range(len(batches[0].sizes)):
        images = [row_of(batch, row) for batch in batches]
        scales = [images[number] for number in numbers]
        candidates = reference.predict_views(networks, images[0], scales, config.evaluation)
        expected = reference.select(
            candidates,
            config.model.roi,
            nms_thresh=case.nms_thresh,
            vote_iou_thresh=case.vote_iou_thresh,
        )
        assert_rows(found, row, expected)
        counts.append(len(expected))
    assert max(counts) >= at_least


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.extended] * (name in EVERYTHING))
        for name, case in CASES.items()
    ],
)
def test_is_the_reference(case: Case) -> None:
    config, networks = case.networks()
    check(case, networks, config)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("name", ["maxout on c4", "maxout on fpn, context, two stages"])
def test_is_the_reference_with_each_kind_of_kernels(name: str) -> None:
    config, networks = CASES[name].networks()
    check(CASES[name], networks, config)


def change_proposals(networks: Sequence[FasterRCNN], **changes: Any) -> None:
    for network in networks:
        rpn = network.config.rpn.model_copy(update=changes)
        network.config = network.config.model_copy(update={"rpn": rpn})


def test_one_proposal() -> None:
    case = CASES["maxout on c4, roi_pool, context"]
    config, networks = case.networks()
    change_proposals(networks, post_nms_topk_test=1)
    check(case, networks, config, at_least=1)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("ensemble")])
def test_no_proposal(name: str) -> None:
    config, networks = CASES[name].networks()
    change_proposals(networks, min_size=1e6)
    batches = make_batches(config)
    assert [len(each) for each in InferencePipeline(networks, config).predict(batches)] == [0] * 3


@pytest.mark.parametrize("case", MASK_CASES.values(), ids=MASK_CASES)
@torch.no_grad()
def test_masks_are_of_the_final_boxes_and_of_all_networks(case: Case) -> None:
    config, networks = case.networks()
    batches = make_batches(config)
    pipeline = InferencePipeline(networks, config)
    found, masks = pipeline.select(batches, all_masks=True)
    assert masks is not None
    side = masks.shape[-1]
    # conv5 halves the map of 4 cells, and the mask head doubles it
    assert side == (4 if case.necks == ("c4",) else 28)
    image = row_of(batches[0], 1)
    for index in (0, 1):
        box, label = found.boxes[1, index].tolist(), int(found.labels[1, index])
        expected = reference.mask_of(networks, image, box, label, side=side)
        torch.testing.assert_close(masks[1, index], expected, rtol=1e-3, atol=1e-4)
        assert expected.std() > 0.01
    few = pipeline.select(batches)[1]
    assert few is not None
    torch.testing.assert_close(few, masks[:, : few.shape[1]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_batch_is_its_images(name: str) -> None:
    config, networks = CASES[name].networks()
    batches = make_batches(config)
    pipeline = InferencePipeline(networks, config)
    together = pipeline.predict(batches)
    for row, expected in enumerate(together):
        (alone,) = pipeline.predict([row_of(batch, row) for batch in batches])
        assert len(alone) > 3
        assert alone.labels.tolist() == expected.labels.tolist()
        torch.testing.assert_close(alone.scores, expected.scores, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(alone.boxes, expected.boxes, rtol=1e-3, atol=1e-2)


def test_detections_are_in_pixels_of_the_file() -> None:
    config, networks = CASES["mirrored union on fpn, no voting"].networks()
    batches = make_batches(config)
    pipeline = InferencePipeline(networks, config)
    found = pipeline.select(batches)[0]
    sizes = batches[0]
    for row, each in enumerate(pipeline.predict(batches)):
        factors = (sizes.original_sizes[row] / sizes.sizes[row]).flip(0).repeat(2)
        expected = found.boxes[row, : len(each)] * factors
        torch.testing.assert_close(each.boxes, expected, rtol=1e-5, atol=1e-4)


def test_images_at_too_few_sizes_are_refused() -> None:
    config, networks = CASES["maxout on c4"].networks()
    batches: list[ImageBatch] = make_batches(config)
    with pytest.raises(AssertionError, match="expected 3 sizes of images, got 1"):
        InferencePipeline(networks, config).predict(batches[:1])
