"""Outlines of masks: filled again they give the mask, to the pixel."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from mrcnn_cli.views.outlines import moved, outlines, svg_path, traced


def winding(loops, shape):
    """How often loops of level and upright edges go round the centre of each pixel: [H, W]."""
    turns = np.zeros(shape, int)
    for loop in loops:
        for (x1, y1), (x2, y2) in zip(loop, np.roll(loop, -1, axis=0), strict=True):
            assert x1 == x2 or y1 == y2
            if x1 == x2:  # seen by all pixels to its left, as a ray to the right crosses it
                low, high = sorted((y1, y2))
                turns[low:high, :x1] += 1 if y2 > y1 else -1
    return turns


masks = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(masks)
@settings(deadline=None, max_examples=300)
def test_a_traced_mask_is_gone_round_once_and_its_holes_never(mask):
    assert (winding(traced(mask), mask.shape) == mask).all()


@given(masks)
@settings(deadline=None, max_examples=50)
def test_the_loops_of_an_encoding_lie_where_the_mask_lies(mask):
    encoding = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (winding(outlines(encoding), mask.shape) == mask).all()


def test_a_square_has_four_corners():
    [loop] = traced(np.ones((3, 5), bool))
    assert loop.tolist() == [[0, 0], [5, 0], [5, 3], [0, 3]]


def points_of(path):
    """The corners of a path that `svg_path` wrote."""
    loops, x, y = [], 0.0, 0.0
    for letter, numbers in re.findall(r"([Mhvlz])([^Mhvlz]*)", path):
        values = [float(number) for number in numbers.split()]
        if letter == "M":
            x, y = values
            loops.append([])
        elif letter == "z":
            continue
        else:
            dx, dy = {"h": (*values, 0), "v": (0, *values)}.get(letter, tuple(values))
            x, y = x + dx, y + dy
        loops[-1].append([x, y])
    return loops


def test_a_path_leads_through_the_corners_without_drifting():
    random = np.random.default_rng(0)
    loops = [random.uniform(-50, 2000, (300, 2)) for _ in range(3)]
    for loop, found in zip(loops, points_of(svg_path(loops)), strict=True):
        assert np.abs(loop - np.array(found)).max() <= 0.05 + 1e-9


def test_a_path_of_whole_pixels_is_short():
    assert svg_path(traced(np.ones((3, 5), bool))) == "M0 0h5v3h-5z"
    assert svg_path([np.array([[0.25, -0.5], [1.0, 2.0]])], digits=2) == "M0.25 -0.5l0.75 2.5z"


@pytest.mark.parametrize("turn", [1, -1])
def test_parts_that_overlap_are_turned_the_same_way(turn):
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]])
    parts = [square.reshape(-1).tolist(), (square + 2)[::turn].reshape(-1).tolist()]
    turns = winding([loop.astype(int) for loop in outlines(parts)], (6, 6))
    assert set(turns.reshape(-1).tolist()) == {0, 1, 2}


def test_a_mirrored_outline_is_still_filled():
    mask = np.ones((4, 4), bool)
    mask[1:3, 1:3] = False
    mirror = np.array([[-1.0, 0, 4], [0, 1, 0]])
    loops = [loop.astype(int) for loop in moved(traced(mask), mirror)]
    assert (winding(loops, (4, 4)) == mask).all()
