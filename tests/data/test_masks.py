"""Parts of masks, their boxes and their encodings, against masks drawn in full."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mrcnn_cli.data.masks import clip_polygon, cut_runs, encode, visible_box
from mrcnn_cli.ops.run_lengths import run_lengths


def dense_box(mask: np.ndarray, window: tuple[int, int, int, int]) -> tuple[float, ...] | None:
    x1, y1, x2, y2 = window
    rows, columns = mask[y1:y2, x1:x2].nonzero()
    if not len(rows):
        return None
    return (columns.min() + x1, rows.min() + y1, columns.max() + x1 + 1, rows.max() + y1 + 1)


def random_window(generator: np.random.Generator, height: int, width: int) -> tuple[int, int, int, int]:
    (x1, x2), (y1, y2) = (np.sort(generator.choice(n + 1, 2, replace=False)) for n in (width, height))
    return int(x1), int(y1), int(x2), int(y2)


@pytest.mark.parametrize("density", [0.0, 0.005, 0.1, 0.7, 1.0])
def test_the_visible_box_of_runs_is_that_of_the_full_mask(density):
    generator = np.random.default_rng(int(density * 1000))
    for _ in range(60):
        height, width = generator.integers(1, 30, 2)
        mask = np.asfortranarray(generator.random((height, width)) < density, np.uint8)
        encoding = coco_mask.encode(mask)
        window = random_window(generator, height, width)
        assert visible_box(encoding, window) == dense_box(mask, window)


def test_runs_over_many_columns_are_cut_column_by_column():
    mask = np.zeros((6, 9), np.uint8, order="F")
    mask[2:, 2] = mask[:, 3:6] = mask[:3, 6] = 1
    assert len(run_lengths(coco_mask.encode(mask))) == 3  # one run of foreground
    for window in [(0, 0, 9, 6), (2, 0, 3, 6), (0, 0, 3, 4), (6, 1, 9, 6), (0, 0, 3, 2), (7, 0, 9, 6), (3, 5, 5, 6)]:
        assert visible_box(coco_mask.encode(mask), window) == dense_box(mask, window)
    assert visible_box(coco_mask.encode(mask), (-9, -9, 99, 99)) == dense_box(mask, (0, 0, 9, 6))


def scanned_box(polygon: np.ndarray, window: tuple[int, ...], spacing: float) -> tuple[float, ...] | None:
    """By the even-odd rule along close lines in both directions."""
    points: list[tuple[float, float]] = []
    for axis in (0, 1):  # lines of equal y, then of equal x
        start = polygon[:, ::-1] if axis else polygon
        end = np.roll(start, -1, axis=0)
        low, first, high, last = (window[1], window[0], window[3], window[2]) if axis else window
        for line in np.arange(first + spacing / 2, last, spacing):
            crossed = (start[:, 1] > line) != (end[:, 1] > line)
            (ax, ay), (bx, by) = start[crossed].T, end[crossed].T
            for enter, leave in np.sort(ax + (bx - ax) * (line - ay) / (by - ay)).reshape(-1, 2):
                if max(enter, low) < min(leave, high):
                    ends = [(max(enter, low), line), (min(leave, high), line)]
                    points += [(y, x) for x, y in ends] if axis else ends
    return None if not points else (*np.min(points, axis=0), *np.max(points, axis=0))


def test_the_visible_box_of_a_polygon_is_that_of_its_points():
    """Concave stars with tips everywhere around the window, so that the degenerate edges which clipping algorithms
    leave on the window's border would show."""
    generator = np.random.default_rng(5)
    spacing = 0.1
    seen = 0
    for _ in range(80):
        corners = generator.integers(4, 12)
        angles = np.sort(generator.random(corners)) * 2 * np.pi
        radii = generator.uniform(4, 18, corners)
        polygon = np.stack([20 + radii * np.cos(angles), 20 + radii * np.sin(angles)], 1)
        window = random_window(generator, 40, 40)
        box, expected = visible_box([polygon.reshape(-1).tolist()], window), scanned_box(polygon, window, spacing)
        assert (box is None) == (expected is None)
        if box is not None:
            assert np.allclose(box, expected, atol=spacing)
            seen += 1
    assert 20 < seen < 80


def test_an_l_shape_seen_through_its_notch_is_not_there():
    shape = [0, 0, 10, 0, 10, 4, 4, 4, 4, 10, 0, 10]
    assert visible_box([shape], (5, 5, 20, 20)) is None
    assert visible_box([shape], (2, 2, 20, 20)) == (2, 2, 10, 10)
    assert visible_box([shape], (3, 5, 20, 20)) == (3, 5, 4, 10)
    # The corner that the polygon passes outside of the window does not count.
    assert visible_box([shape], (0, 0, 2, 2)) == (0, 0, 2, 2)


def test_several_polygons_share_one_box():
    parts = [[0, 0, 2, 0, 2, 2, 0, 2], [8, 8, 9, 8, 9, 9, 8, 9], [30, 30, 40, 30, 40, 40]]
    assert visible_box(parts, (0, 0, 20, 20)) == (0, 0, 9, 9)
    assert visible_box(parts, (3, 3, 7, 7)) is None


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_a_window_of_runs_is_that_of_the_full_mask_and_encodes_as_pycocotools_does(density):
    generator = np.random.default_rng(int(density * 100))
    for _ in range(60):
        height, width = generator.integers(1, 20, 2).tolist()
        mask = np.asfortranarray(generator.random((height, width)) < density, np.uint8)
        x1, y1, x2, y2 = random_window(generator, height, width)
        window = cut_runs(coco_mask.encode(mask), slice(y1, y2), slice(x1, x2))
        assert window.dtype == bool
        assert np.array_equal(window, mask[y1:y2, x1:x2])
        alone = np.zeros_like(mask)
        alone[y1:y2, x1:x2] = window
        expected = coco_mask.encode(alone)
        assert encode(window, y1, x1, (height, width)) == {"size": [height, width], "counts": expected["counts"]}


def test_a_window_of_no_pixels_is_an_empty_mask():
    expected = coco_mask.encode(np.zeros((4, 5), np.uint8, order="F"))["counts"]
    for shape in ((0, 0), (3, 0), (0, 2)):
        assert encode(np.zeros(shape, bool), 0, 0, (4, 5))["counts"] == expected


def parity(points: np.ndarray, polygon) -> np.ndarray:
    """How often a ray to the right of each point [P, 2] crosses a polygon, modulo 2."""
    start = np.reshape(polygon, (-1, 2))
    end = np.roll(start, -1, axis=0)
    crossings = np.zeros(len(points), int)
    for (x1, y1), (x2, y2) in zip(start, end, strict=True):
        if y1 != y2:
            level = (y1 > points[:, 1]) != (y2 > points[:, 1])
            crossings += level & (points[:, 0] < x1 + (x2 - x1) * (points[:, 1] - y1) / (y2 - y1))
    return crossings % 2


def star(generator: np.random.Generator, corners: int) -> np.ndarray:
    """A polygon that does not cross itself, with deep notches."""
    angles = np.sort(generator.uniform(0, 2 * np.pi, corners))
    radii = generator.uniform(2, 20, corners)
    return np.stack([20 + radii * np.cos(angles), 20 + radii * np.sin(angles)], axis=1)


@pytest.mark.parametrize("whole", [False, True])  # whole numbers: corners and edges on the window's edges
@pytest.mark.parametrize("kind", ["star", "crossing"])
def test_a_clipped_polygon_is_the_part_of_it_in_the_window(kind, whole):
    generator = np.random.default_rng(2 * whole + (kind == "star"))
    several = 0
    for _ in range(300):
        corners = int(generator.integers(3, 25))
        points = star(generator, corners) if kind == "star" else generator.uniform(0, 40, (corners, 2))
        points = points.round(0) if whole else points
        (x1, x2), (y1, y2) = np.sort(generator.uniform(0, 40, (2, 2)).round(0 if whole else 6), axis=1)
        if x1 == x2 or y1 == y2:
            continue
        parts = clip_polygon(points.reshape(-1).tolist(), (x1, y1, x2, y2))
        asked = generator.uniform(0, 40, (400, 2))
        asked[:200] = generator.uniform((x1, y1), (x2, y2), (200, 2))
        within = ((asked > (x1, y1)) & (asked < (x2, y2))).all(1)
        found = sum((parity(asked, part) for part in parts), np.zeros(400, int))
        assert found.max() <= 1  # they do not overlap
        assert np.array_equal(found, parity(asked, points) * within)
        for part in parts:
            at = np.reshape(part, (-1, 2))
            assert (at >= (x1, y1)).all()
            assert (at <= (x2, y2)).all()
        several += len(parts) > 1
    assert several > 10


def test_a_polygon_within_its_window_is_left_as_it_is_and_one_outside_is_gone():
    polygon = [1.0, 2.0, 9.0, 2.5, 5.0, 8.0]
    assert clip_polygon(polygon, (0, 0, 10, 10)) == [polygon]
    assert clip_polygon(polygon, (20, 0, 30, 10)) == []
    assert clip_polygon([0.0, 0, 10, 0, 10, 5, 0, 5], (0, 5, 10, 10)) == []  # it touches the window


def test_a_bridge_to_a_hole_still_encloses_nothing():
    """A square with a hole, cut through hole and bridge."""
    polygon = [0, 0, 20, 0, 20, 20, 0, 20, 0, 10, 6, 10, 6, 14, 14, 14, 14, 6, 6, 6, 6, 10, 0, 10]
    generator = np.random.default_rng(0)
    for window in ((3, 0, 20, 20), (0, 10, 20, 20), (6, 6, 14, 14), (0, 0, 10, 10), (2, 9, 18, 11), (0, 10, 10, 20)):
        parts = clip_polygon(polygon, window)
        asked = generator.uniform(window[:2], window[2:], (500, 2))
        found = sum((parity(asked, part) for part in parts), np.zeros(500, int))
        assert np.array_equal(found, parity(asked, polygon))
