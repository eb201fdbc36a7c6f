"""Made-up pictures agree with their masks to the pixel."""

import numpy as np
import pytest

from mrcnn_cli.data.shapes import CLASSES, shapes

SIZES = [(128, 128), (64, 200), (200, 64), (16, 16)]


@pytest.mark.parametrize("size", SIZES)
def test_each_mask_is_the_region_of_one_colour(size):
    for number in range(20):
        image, labels, masks = shapes(0, "train", number, size, 6)
        assert image.shape == (*size, 3)
        assert image.dtype == np.uint8
        assert len(labels) == len(masks) > 0
        assert masks.shape[1:] == size
        assert (masks.sum(0) <= 1).all()
        colours = {tuple(image[0, 0])} if not masks[:, 0, 0].any() else set()
        for mask in masks:
            inside = np.unique(image[mask], axis=0)
            assert len(inside) == 1
            assert not (image[~mask] == inside[0]).all(1).any()
            colours.add(tuple(inside[0]))
        assert len(np.unique(image[~masks.any(0)], axis=0)) <= 1  # the background


def test_whole_shapes_have_the_area_of_their_geometry():
    """Recomputed from the box alone, which gives the extent of a shape that nothing hides or cuts."""
    seen = set()
    for number in range(60):
        _, labels, masks = shapes(3, "train", number, (400, 400), 1)
        (label,), (mask,) = labels, masks
        rows, columns = mask.nonzero()
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        if rows.min() == 0 or columns.min() == 0 or rows.max() == 399 or columns.max() == 399:
            continue
        kind = CLASSES[label]
        expected = {"square": width * height, "circle": np.pi / 4 * width * height, "triangle": width * height / 2}[
            kind
        ]
        assert mask.sum() == pytest.approx(expected, rel=0.02)
        ratio = 2 / np.sqrt(3) if kind == "triangle" else 1
        assert width == pytest.approx(height * ratio, abs=2)
        seen.add(kind)
    assert seen == set(CLASSES)


def test_a_picture_depends_on_its_name_alone():
    first, again = shapes(5, "train", 7, (90, 70), 4), shapes(5, "train", 7, (90, 70), 4)
    assert np.array_equal(first[0], again[0])
    assert first[1] == again[1]
    assert np.array_equal(first[2], again[2])
    for other in (
        shapes(6, "train", 7, (90, 70), 4),
        shapes(5, "val", 7, (90, 70), 4),
        shapes(5, "train", 8, (90, 70), 4),
    ):
        assert not np.array_equal(first[0], other[0])


def test_there_are_one_to_so_many_shapes():
    counts = {len(shapes(0, "train", number, (128, 128), 3)[1]) for number in range(60)}
    assert counts == {1, 2, 3}
