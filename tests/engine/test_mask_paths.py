"""Masks as paths: filled again they give the mask, to the pixel, wherever they are moved."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from mrcnn_cli.engine.mask_paths import mask_path, mask_rings


def winding(rings, shape):
    """How often rings of level and upright edges go round the centre of each pixel: [H, W]."""
    turns = np.zeros(shape, int)
    for ring in rings:
        for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert x1 == x2 or y1 == y2
            if x1 == x2:  # seen by all pixels to its left, as a ray to the right crosses it
                low, high = sorted((y1, y2))
                turns[low:high, :x1] += 1 if y2 > y1 else -1
    return turns


masks = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def encoded(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


@given(masks)
@settings(deadline=None, max_examples=200)
def test_the_rings_of_an_encoding_go_round_its_pixels_once_and_round_its_holes_never(mask):
    rings = [ring.astype(int) for ring in mask_rings(encoded(mask))]
    assert (winding(rings, mask.shape) == mask).all()


@pytest.mark.parametrize("turn", [1, -1])
def test_parts_that_overlap_go_the_same_way_round(turn):
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]])
    parts = [square.reshape(-1).tolist(), (square + 2)[::turn].reshape(-1).tolist()]
    turns = winding([ring.astype(int) for ring in mask_rings(parts)], (6, 6))
    assert set(turns.reshape(-1).tolist()) == {0, 1, 2}


def test_a_path_is_moved_by_its_matrix():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:5] = True
    assert mask_path(encoded(mask)) == "M2 1h3v2h-3z"
    assert mask_path(encoded(mask), np.array([[-2.0, 0, 16], [0, 2, 1]])) == "M12 3h-6v4h6z"


def test_a_mask_without_pixels_has_no_path():
    assert mask_path(encoded(np.zeros((4, 4), bool))) == ""
