"""Properties of boxes, the box coder, suppression and matching, on boxes that hypothesis draws."""

import random
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detection.ops.box_coder import decode_boxes, encode_boxes
from detection.ops.boxes import (
    box_iou,
    clip_boxes,
    flip_boxes,
    generalized_iou,
    xywh_to_xyxy,
    xyxy_to_xywh,
)
from detection.ops.matching import match_boxes
from detection.ops.nms import nms_keep
from tests.fuzz.strategies import QUICK, Box, any_boxes, boxes, coordinates, full_boxes
from tests.reference import boxes as reference
from tests.reference import matching as reference_matching
from tests.reference import nms as reference_nms


def tensor(rows: list[Box]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


@QUICK
@given(st.lists(any_boxes, max_size=5), st.lists(any_boxes, max_size=5))
def test_iou_is_the_reference_and_symmetric(a: list[Box], b: list[Box]) -> None:
    found = box_iou(tensor(a), tensor(b))
    expected = [[reference.iou(x, y) for y in b] for x in a]
    torch.testing.assert_close(found, torch.tensor(expected).view(len(a), len(b)))
    torch.testing.assert_close(found, box_iou(tensor(b), tensor(a)).T)
    assert ((found >= 0) & (found <= 1)).all()


@QUICK
@given(full_boxes, full_boxes)
def test_generalized_iou_is_iou_less_what_neither_fills(a: Box, b: Box) -> None:
    around = (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    union = reference.area(a) + reference.area(b) - reference.intersection(a, b)
    expected = reference.iou(a, b) - 1 + union / reference.area(around)
    found = generalized_iou(tensor([a]), tensor([b]))
    torch.testing.assert_close(found, torch.tensor([expected]), rtol=1e-5, atol=1e-6)


@QUICK
@given(st.lists(any_boxes, max_size=5), coordinates, coordinates)
def test_clipped_boxes_lie_inside_and_stay(rows: list[Box], height: float, width: float) -> None:
    sizes = torch.tensor([[height, width]])
    clipped = clip_boxes(tensor(rows)[None] - 3, sizes)
    expected = [
        [min(max(value - 3, 0.0), (width, height)[axis % 2]) for axis, value in enumerate(row)]
        for row in rows
    ]
    torch.testing.assert_close(clipped, torch.tensor(expected).view(1, -1, 4))
    torch.testing.assert_close(clip_boxes(clipped, sizes), clipped, rtol=0, atol=0)


@QUICK
@given(st.lists(boxes, min_size=1, max_size=5), st.integers(12, 40))
def test_mirror_and_xywh_there_and_back(rows: list[Box], width: int) -> None:
    found = tensor(rows)
    mirrored = flip_boxes(found, width)
    torch.testing.assert_close(flip_boxes(mirrored, width), found, rtol=0, atol=0)
    torch.testing.assert_close(box_iou(mirrored, mirrored), box_iou(found, found))
    assert (mirrored[:, 0] + found[:, 2] == width).all()
    xywh = xyxy_to_xywh(found)
    assert xywh.tolist() == [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in rows]
    torch.testing.assert_close(xywh_to_xyxy(xywh), found, rtol=0, atol=0)


weights = st.tuples(*[st.sampled_from([1.0, 2.0, 5.0, 10.0])] * 4)


@QUICK
@given(full_boxes, full_boxes, weights, st.integers(-20, 20), st.sampled_from([0.5, 2.0, 4.0]))
def test_decode_undoes_encode(gt: Box, anchor: Box, by: Box, shift: int, scale: float) -> None:
    deltas = encode_boxes(tensor([gt]), tensor([anchor]), weights=by)
    expected = torch.tensor([reference.encode(gt, anchor, by)])
    torch.testing.assert_close(deltas, expected, rtol=1e-4, atol=1e-5)
    decoded = decode_boxes(deltas, tensor([anchor]), weights=by)
    torch.testing.assert_close(decoded, tensor([gt]), rtol=1e-4, atol=1e-4)
    # the same of both boxes moved and scaled together
    again = encode_boxes(tensor([gt]) * scale + shift, tensor([anchor]) * scale + shift, weights=by)
    torch.testing.assert_close(again, deltas, rtol=1e-4, atol=1e-4)


scored = st.lists(st.tuples(boxes, st.integers(0, 6), st.integers(0, 2)), max_size=10)
thresholds = st.sampled_from([0.0, 0.25, 0.5, 0.75])


@QUICK
@given(scored, thresholds, st.one_of(st.none(), st.integers(0, 5)))
def test_suppression_is_the_reference(
    rows: list[tuple[Box, int, int]], iou_thresh: float, max_kept: int | None
) -> None:
    places, scores, groups = (
        [row[0] for row in rows],
        [row[1] for row in rows],
        [row[2] for row in rows],
    )
    keep = nms_keep(
        tensor(places)[None],
        torch.tensor([scores], dtype=torch.float32),
        torch.tensor([groups], dtype=torch.int64),
        torch.ones(1, len(rows), dtype=torch.bool),
        iou_thresh=iou_thresh,
        max_kept=max_kept,
    )
    expected = reference_nms.nms(places, scores, groups, iou_thresh)
    if max_kept is not None:
        ranked = sorted((-scores[i], i) for i in range(len(rows)) if expected[i])[:max_kept]
        best = {i for _, i in ranked}
        expected = [i in best for i in range(len(rows))]
    assert keep[0].tolist() == expected


rules = st.fixed_dictionaries(
    {
        "fg_thresh": st.sampled_from([0.5, 0.75]),
        "bg_thresh": st.sampled_from([0.25, 0.5]),
        "allow_low_quality": st.booleans(),
        "crowd_ioa_thresh": st.sampled_from([0.25, 0.5]),
    }
)
kinds = st.sampled_from(["object", "object", "crowd", "padding"])


@QUICK
@given(
    st.lists(st.tuples(full_boxes, kinds), min_size=1, max_size=6),
    st.lists(boxes, max_size=8),
    rules,
    st.randoms(use_true_random=False),
)
def test_matching_is_the_reference_in_any_order(
    gt: list[tuple[Box, str]],
    candidates: list[Box],
    settings: dict[str, Any],
    chance: random.Random,
) -> None:
    def match(rows: list[Box]) -> tuple[list[int], list[int]]:
        idxs, labels = match_boxes(
            tensor([box for box, _ in gt])[None],
            torch.tensor([[kind != "padding" for _, kind in gt]]),
            torch.tensor([[kind == "crowd" for _, kind in gt]]),
            tensor(rows),
            **settings,
        )
        return idxs[0].tolist(), labels[0].tolist()

    objects = [number for number, (_, kind) in enumerate(gt) if kind == "object"]
    idxs, labels = match(candidates)
    expected_idxs, expected = reference_matching.match(
        [gt[number][0] for number in objects],
        [box for box, kind in gt if kind == "crowd"],
        candidates,
        **settings,
    )
    assert labels == expected
    for candidate, found, wanted in zip(candidates, idxs, expected_idxs, strict=True):
        if any(reference.iou(gt[number][0], candidate) > 0 for number in objects):
            assert found == objects[wanted]
    order = list(range(len(candidates)))
    chance.shuffle(order)
    again_idxs, again = match([candidates[number] for number in order])
    assert again == [labels[number] for number in order]
    assert again_idxs == [idxs[number] for number in order]
