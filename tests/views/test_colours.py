"""Colours: distinct between neighbours, readable, the same every time."""

import numpy as np
import pytest

from mrcnn_cli.views import canvas, colours


def apart(one, other):
    lab = colours.oklab(colours.palette())
    return float(np.linalg.norm(lab[one] - lab[other]))


def test_oklab_has_the_published_values():
    # Ottosson, "A perceptual color space for image processing" (2020): white, and sRGB red of its reference code
    assert colours.oklab(np.array([255, 255, 255])) == pytest.approx([1, 0, 0], abs=1e-3)
    assert colours.oklab(np.array([255, 0, 0])) == pytest.approx([0.628, 0.225, 0.126], abs=1e-3)


def test_the_contrast_of_black_and_white_is_21():
    assert colours.contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert colours.contrast((9, 9, 9), (9, 9, 9)) == 1


def test_every_colour_carries_readable_text_and_shows_on_black():
    for colour in colours.palette():
        assert max(colours.contrast(colour, ink) for ink in (canvas.INK, canvas.PAPER)) >= 4.5
        assert colours.contrast(colour, (0, 0, 0)) >= 4.5


def test_all_colours_of_the_palette_differ():
    assert len({tuple(colour) for colour in colours.palette().tolist()}) == colours.SIZE
    assert min(apart(i, i + 1) for i in range(colours.SIZE - 1)) > colours.DISTINCT


def test_objects_in_a_grid_that_touch_get_colours_told_apart_at_a_glance():
    side = 12
    cells = [(column, row) for row in range(side) for column in range(side)]
    boxes = np.array([[10 * x, 10 * y, 10 * x + 10, 10 * y + 10] for x, y in cells], dtype=float)
    chosen = colours.choose(boxes)
    for index, (x, y) in enumerate(cells):
        for dx, dy in ((1, 0), (0, 1), (1, 1), (-1, 1)):
            if 0 <= x + dx < side and y + dy < side:
                assert apart(chosen[index], chosen[(y + dy) * side + x + dx]) > 0.1


def test_a_pair_that_touches_is_distinct_wherever_its_turn_comes():
    far = np.array([[100 * k, 0, 100 * k + 10, 10] for k in range(2, 40)], dtype=float)
    for before in range(len(far)):
        pair = np.array([[0, 500, 50, 550], [50, 500, 100, 550]], dtype=float)
        chosen = colours.choose(np.concatenate([far[:before], pair]))
        assert apart(*chosen[-2:]) >= colours.DISTINCT


def test_a_thousand_objects_in_one_place_still_get_colours():
    chosen = colours.choose(np.tile([[0.0, 0, 10, 10]], (1000, 1)))
    assert set(chosen.tolist()) == set(range(colours.SIZE))


def test_given_colours_are_kept_and_their_neighbours_avoid_them():
    boxes = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]], dtype=float)
    for given in range(colours.SIZE):
        chosen = colours.choose(boxes, np.array([-1, given, -1]))
        assert chosen[1] == given
        assert min(apart(chosen[0], given), apart(chosen[2], given)) >= colours.DISTINCT


def test_the_choice_is_the_same_every_time():
    boxes = np.random.default_rng(0).random((300, 4)) * 100
    boxes[:, 2:] += boxes[:, :2]
    assert np.array_equal(colours.choose(boxes), colours.choose(boxes.copy()))


def test_no_objects_need_no_colours():
    assert colours.choose(np.zeros((0, 4))).shape == (0,)
