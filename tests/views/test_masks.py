"""Masks cut from run-length encodings are those that pycocotools encoded."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as run_lengths

from mrcnn_cli.views import masks


def encoded(pixels):
    return run_lengths.encode(np.asfortranarray(pixels.astype(np.uint8)))


def pasted(mask):
    """The whole mask again, from its window."""
    whole = np.zeros(mask["size"], bool)
    found = masks.crop(mask)
    if found is not None:
        left, top, window = found
        whole[top : top + window.shape[0], left : left + window.shape[1]] = window
        assert window.any(axis=0)[[0, -1]].all()  # the window is the smallest
        assert window.any(axis=1)[[0, -1]].all()
    return whole


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    st.integers(0, 10**6),
)
def test_a_window_pasted_back_is_the_mask(height, width, density, seed):
    pixels = np.random.default_rng(seed).random((height, width)) < density
    assert np.array_equal(pasted(encoded(pixels)), pixels)


def test_long_runs_and_their_differences_are_read_exactly():
    pixels = np.zeros((3000, 2000), bool)
    pixels[:, 5:9] = True
    pixels[7:2500, 1200:1900] = True
    pixels[0, 0] = pixels[-1, -1] = True
    assert np.array_equal(pasted(encoded(pixels)), pixels)


@pytest.mark.parametrize("form", ["bytes", "text", "plain"])
def test_all_forms_of_counts_are_read(form):
    pixels = np.zeros((6, 5), bool)
    pixels[2:4, 1:3] = True
    mask = encoded(pixels)
    if form == "text":
        mask["counts"] = mask["counts"].decode()
    if form == "plain":
        mask["counts"] = [8, 2, 4, 2, 14]
    left, top, window = masks.crop(mask)
    assert (left, top, window.tolist()) == (1, 2, [[True, True], [True, True]])


def test_runs_of_length_zero_inside_a_mask_are_no_gaps():
    left, top, window = masks.crop({"size": [4, 3], "counts": [5, 1, 0, 1, 5]})
    assert (left, top, window.shape, window.all()) == (1, 1, (2, 1), True)


@pytest.mark.parametrize("counts", [[12], [11, 0, 1], b"<"])
def test_a_mask_without_pixels_has_no_window(counts):
    assert masks.crop({"size": [4, 3], "counts": counts}) is None


@pytest.mark.parametrize("counts", [[], [5, 5], [5, -1, 8], [20], b"1"])
def test_runs_that_do_not_fit_the_picture_are_refused(counts):
    with pytest.raises(ValueError, match="4 x 3 = 12|whole numbers from 0"):
        masks.crop({"size": [4, 3], "counts": counts})
