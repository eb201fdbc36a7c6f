"""Bitmaps as rings: filled again they give the same pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from mrcnn_cli.data.outlines import as_polygon, as_ring, ellipse, joined, outlines, signed_area

bitmaps = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(bitmaps)
def test_one_ring_over_bridges_fills_the_same_pixels(mask):
    outer, holes = outlines(mask)
    assert bool(outer) == bool(mask.any())
    if outer:
        polygon = as_polygon(joined(outer + holes))
        filled = coco_mask.decode(coco_mask.frPyObjects([polygon], *mask.shape))[..., 0]
        assert np.array_equal(filled, mask)


@given(bitmaps)
def test_outer_rings_go_clockwise_and_holes_the_other_way(mask):
    outer, holes = outlines(mask)
    assert all(signed_area(ring) > 0 for ring in outer)
    assert all(signed_area(ring) < 0 for ring in holes)
    assert sum(map(signed_area, outer + holes)) == mask.sum()


def test_a_ring_of_pixels_has_an_outline_and_a_hole():
    mask = np.ones((5, 6), bool)
    mask[2, 2:4] = False
    (outer,), (hole,) = outlines(mask)
    assert outer.tolist() == [[0, 0], [6, 0], [6, 5], [0, 5]]
    assert sorted(hole.tolist()) == [[2, 2], [2, 3], [4, 2], [4, 3]]


def test_the_bridge_starts_at_the_nearest_corner():
    near, far = as_ring([10, 0, 20, 0, 20, 10, 10, 10]), as_ring([22, 3, 30, 3, 30, 8])
    whole = joined([near, far]).tolist()
    steps = np.diff(np.array(whole), axis=0)
    bridges = [step for step in steps.tolist() if step in ([2, 3], [-2, -3])]
    assert bridges == [[2, 3], [-2, -3]]


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_an_ellipse_has_the_area_of_one(angle):
    ring = as_ring(ellipse(50, 40, 30, 12, angle))
    assert signed_area(ring) == pytest.approx(np.pi * 30 * 12, rel=1e-9)
    assert ring.mean(axis=0) == pytest.approx([50, 40])
    along = np.array([np.cos(angle), np.sin(angle)])
    assert ((ring - [50, 40]) @ along).max() == pytest.approx(30, rel=1e-3)
