"""Properties of COCO's run-length code, on masks that hypothesis draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from detection.ops.rle import code_of, decode, encode_window, pad
from tests.fuzz.strategies import QUICK

sizes = st.tuples(st.integers(1, 40), st.integers(1, 12))


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Draw a mask (H, W) of a few runs of zeros and ones, read column by column."""
    height, width = draw(sizes)
    runs = draw(st.lists(st.integers(0, 60), min_size=1, max_size=20))
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    values = np.resize(np.append(values, False), height * width)
    return values.reshape(width, height).T


@QUICK
@given(masks())
def test_encoding_is_pycocotools_and_comes_back(mask: np.ndarray) -> None:
    size = (mask.shape[0], mask.shape[1])
    code = encode_window(mask, top=0, left=0, size=size)
    theirs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert code == theirs["counts"]
    np.testing.assert_array_equal(decode(code, size), mask)
    assert code_of({"size": list(size), "counts": code.decode()}, size) == code


@QUICK
@given(masks(), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_a_window_is_encoded_as_the_image_that_holds_it(
    window: np.ndarray, top: int, left: int, below: int, right: int
) -> None:
    whole = np.pad(window, ((top, below), (left, right)))
    size = (whole.shape[0], whole.shape[1])
    code = encode_window(window, top=top, left=left, size=size)
    np.testing.assert_array_equal(decode(code, size), whole)
    part_size = (window.shape[0], window.shape[1])
    part = encode_window(window, top=0, left=0, size=part_size)
    assert pad(part, part_size, top=top, left=left, new_size=size) == code
    assert code == coco_mask.encode(np.asfortranarray(whole.astype(np.uint8)))["counts"]


@QUICK
@given(masks())
def test_uncompressed_runs_have_the_same_code(mask: np.ndarray) -> None:
    flat = mask.T.ravel()
    bounds = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *bounds.tolist(), len(flat)]).tolist()
    counts = [0, *counts] if flat[0] else counts
    size = (mask.shape[0], mask.shape[1])
    code = code_of({"size": list(size), "counts": counts}, size)
    np.testing.assert_array_equal(decode(code, size), mask)
    counts[-1] += 1
    with pytest.raises(ValueError, match="expected runs of"):
        code_of({"size": list(size), "counts": counts}, size)
