"""Masks cut to boxes and pasted back, against torchvision and a pixel-by-pixel reference."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detection.ops.masks import (
    crop_masks,
    crop_masks_operator,
    pack_bits,
    paste_mask,
    unpack_bits,
)
from detection.ops.rle import decode, decode_columns, encode_window
from tests.reference.masks import paste_mask as paste_reference

SIZE = (45, 60)


def blobs(count: int, size: tuple[int, int] = SIZE, *, seed: int = 0) -> np.ndarray:
    """Return (count, H, W) bool: smooth shapes with holes and several parts."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((count, 1, 5, 6)))
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    masks: np.ndarray = (smooth[:, 0] > 0.5).numpy()
    return masks


def packed(masks: np.ndarray) -> Tensor:
    return torch.from_numpy(pack_bits(masks))


def random_boxes(count: int, size: tuple[int, int] = SIZE, *, seed: int = 0) -> Tensor:
    """Return (count, 4) boxes in an image, from less than a pixel to the whole of it."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    boxes = corners.flatten(1) * torch.tensor([size[1], size[0]]).repeat(2)
    boxes[0] = torch.tensor([0.0, 0.0, size[1], size[0]])
    boxes[1] = torch.tensor([3.25, 4.5, 3.75, 5.0])
    return boxes


@pytest.mark.parametrize("width", [1, 7, 8, 9, 60])
def test_bits_come_back(width: int) -> None:
    masks = blobs(3, (5, width))
    bits = unpack_bits(packed(masks), width=width)
    assert bits.shape == (3, 5, width)
    torch.testing.assert_close(bits.bool(), torch.from_numpy(masks))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("resolution", [1, 7, 28])
def test_cut_is_torchvisions_roi_align(aligned: bool, resolution: int) -> None:
    masks = blobs(6).reshape(2, 3, *SIZE)
    boxes = torch.stack([random_boxes(20, seed=1), random_boxes(20, seed=2)])
    idxs = torch.randint(0, 3, (2, 20), generator=torch.Generator().manual_seed(3))
    found = crop_masks(
        packed(masks), idxs, boxes, width=SIZE[1], resolution=resolution, aligned=aligned
    )
    rows = (idxs + torch.tensor([[0], [3]])).flatten()
    rois = torch.cat([rows[:, None].float(), boxes.flatten(0, 1)], dim=1)
    maps = torch.from_numpy(masks).reshape(6, 1, *SIZE).float()
    expected = torchvision.ops.roi_align(maps, rois, resolution, aligned=aligned)
    torch.testing.assert_close(found.flatten(0, 1), expected[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("chunk_bytes", [1, 3 * 4 * SIZE[0] * SIZE[1] * 2])
def test_cut_in_chunks_is_the_same(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = packed(blobs(9).reshape(3, 3, *SIZE))
    boxes = torch.stack([random_boxes(5, seed=seed) for seed in range(3)])
    idxs = torch.randint(0, 3, (3, 5), generator=torch.Generator().manual_seed(3))
    settings: dict[str, Any] = {"width": SIZE[1], "resolution": 7, "aligned": True}
    whole = crop_masks(masks, idxs, boxes, **settings)
    for name in ("_CHUNK_BYTES", "_CPU_CHUNK_BYTES"):
        monkeypatch.setattr(f"detection.ops.masks.{name}", chunk_bytes)
    torch.testing.assert_close(crop_masks(masks, idxs, boxes, **settings), whole)


def test_cut_is_one_operator_of_a_compiled_graph() -> None:
    masks, boxes = packed(blobs(4).reshape(2, 2, *SIZE)), torch.stack([random_boxes(3)] * 2)
    idxs = torch.tensor([[0, 1, 1], [1, 0, 0]])
    settings: dict[str, Any] = {"width": SIZE[1], "resolution": 4, "aligned": True}
    torch.library.opcheck(crop_masks_operator, (masks, idxs, boxes), settings)
    compiled = torch.compile(crop_masks, backend="eager", fullgraph=True)
    expected = crop_masks(masks, idxs, boxes, **settings)
    torch.testing.assert_close(compiled(masks, idxs, boxes, **settings), expected)


def test_cut_of_empty_boxes_and_of_none_is_finite() -> None:
    masks = packed(np.ones((1, 1, *SIZE), np.bool_))
    boxes = torch.tensor([[[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]]])
    idxs = torch.zeros(1, 2, dtype=torch.int64)
    found = crop_masks(masks, idxs, boxes, width=SIZE[1], resolution=4, aligned=True)
    assert found.isfinite().all()
    none = crop_masks(masks, idxs[:, :0], boxes[:, :0], width=SIZE[1], resolution=4, aligned=True)
    assert none.shape == (1, 0, 4, 4)


@pytest.mark.parametrize("resolution", [1, 2, 14, 28])
def test_paste_is_the_interpolation_at_each_pixel(resolution: int) -> None:
    rng = np.random.default_rng(0)
    for box in random_boxes(12, seed=4).tolist():
        cells = rng.random((resolution, resolution), dtype=np.float32)
        code = paste_mask(cells, np.array(box, np.float32), SIZE, aligned=True)
        expected = paste_reference(cells, tuple(box), SIZE)
        assert (decode(code, SIZE) != expected).sum() <= 1  # a value of 0.5 may round either way


def test_paste_without_alignment_is_torchvisions() -> None:
    rng = np.random.default_rng(1)
    boxes = random_boxes(60, seed=5)
    cells = rng.random((60, 28, 28), dtype=np.float32)
    expected = paste_masks_in_image(torch.from_numpy(cells)[:, None], boxes, SIZE)[:, 0] > 0.5
    for mask, box, want in zip(cells, boxes.numpy(), expected.numpy(), strict=True):
        found = decode(paste_mask(mask, box, SIZE, aligned=False), SIZE)
        assert (found != want).sum() <= 1


def test_paste_beyond_the_image_is_cut_off() -> None:
    ones = np.ones((28, 28), np.float32)
    for aligned in (True, False):
        box = np.array([-10, -20, 30, 500], np.float32)
        found = decode(paste_mask(ones, box, SIZE, aligned=aligned), SIZE)
        assert found[:, :29].all()
        assert not found[:, 31:].any()
        outside = paste_mask(ones, np.array([70, 80, 90, 95], np.float32), SIZE, aligned=aligned)
        assert not decode(outside, SIZE).any()


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of which a neighbour has another value."""
    padded = np.pad(mask, 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    changes = np.zeros_like(mask)
    for y, x in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        changes |= middle != padded[1 + y : 1 + y + mask.shape[0], 1 + x : 1 + x + mask.shape[1]]
    return changes


def disc(size: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
    inside: np.ndarray = np.hypot(y - centre[0], x - centre[1]) < radius
    return inside


def ring(size: tuple[int, int]) -> np.ndarray:
    hollow: np.ndarray = disc(size, (24, 22), 14) & ~disc(size, (24, 22), 6)
    return hollow


SHAPES = {
    "disc": disc(SIZE, (22, 30), 12.3),
    "over the border": disc(SIZE, (2, 55), 13),
    "hole": ring(SIZE),
    "parts": disc(SIZE, (12, 10), 7) | disc(SIZE, (30, 45), 9),
    "pixel": disc(SIZE, (20.5, 30.5), 0.6),
    "all": np.ones(SIZE, np.bool_),
}


@pytest.mark.parametrize("name", SHAPES)
def test_to_target_and_back_within_half_a_pixel(name: str) -> None:
    """Cut to the mask's own box, 64 cells wide, and pasted back: only its outline may move."""
    mask = SHAPES[name]
    y, x = np.nonzero(mask)
    box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.float32)
    cells = crop_masks(
        packed(mask[None, None]),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.from_numpy(box)[None, None],
        width=SIZE[1],
        resolution=64,
        aligned=True,
    )
    back = decode(paste_mask(cells[0, 0].numpy(), box, SIZE, aligned=True), SIZE)
    wrong = back != mask
    assert not (wrong & ~outline(mask)).any()
    assert wrong.sum() <= 0.02 * mask.sum()


def test_two_hundred_in_a_large_image_take_little_memory() -> None:
    size = (800, 1333)
    one = pack_bits(disc(size, (400, 600), 300))
    masks = torch.from_numpy(one).expand(1, 200, *one.shape)
    assert masks.numel() < 30e6
    boxes = torch.tensor([300.0, 100.0, 900.0, 700.0]).expand(1, 200, 4)
    found = crop_masks(
        masks, torch.arange(200)[None], boxes, width=size[1], resolution=28, aligned=True
    )
    share = found.mean(dim=(2, 3))
    torch.testing.assert_close(share, torch.full_like(share, math.pi / 4), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("window", [(0, 0, 45, 60), (3, 5, 20, 30), (0, 59, 45, 1), (7, 8, 0, 3)])
def test_codes_are_cocos(window: tuple[int, int, int, int]) -> None:

    top, left, height, width = window
    whole = np.zeros(SIZE, np.bool_)
    for part in (blobs(1)[0], np.ones(SIZE, np.bool_), np.zeros(SIZE, np.bool_)):
        inside = part[top : top + height, left : left + width]
        whole[:] = False
        whole[top : top + height, left : left + width] = inside
        code = encode_window(inside, top=top, left=left, size=SIZE)
        assert code == coco_mask.encode(np.asfortranarray(whole, np.uint8))["counts"]
        assert np.array_equal(decode(code, SIZE), whole)


@pytest.mark.parametrize(
    ("code", "size"),
    [
        (b"92203", (3, 5)),
        (b"92203", (8, 8)),
        (b"zz\x01", (4, 5)),
        (b"9220P", (4, 5)),
        (b"", (1, 1)),
    ],
    ids=str,
)
def test_wrong_codes_are_refused(code: bytes, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected run"):
        decode(code, size)


CUTS = {"all": (0, 12), "middle": (4, 8), "one": (6, 7), "none": (5, 5), "right": (9, 12)}


@pytest.mark.parametrize(("first", "end"), CUTS.values(), ids=CUTS)
def test_columns_are_those_of_the_whole_mask(first: int, end: int) -> None:
    size = (7, 12)
    one, edges = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    one[6, 6] = True
    edges[:, 3] = edges[0, 4] = edges[6, 11] = True  # a run over the end of a column
    for mask in (*blobs(20, size), one, edges, np.zeros(size, np.bool_), np.ones(size, np.bool_)):
        code = encode_window(mask, top=0, left=0, size=size)
        columns, left = decode_columns(code, size, first=first, end=end)
        assert first <= left <= left + columns.shape[1] <= max(first, end) or not columns.size
        found = np.zeros(size, np.bool_)
        found[:, left : left + columns.shape[1]] = columns
        expected = mask.copy()
        expected[:, :first] = expected[:, end:] = False
        np.testing.assert_array_equal(found, expected)
        whole, _ = decode_columns(code, size, first=0, end=12)
        assert not whole.size or (whole[:, 0].any() and whole[:, -1].any())
