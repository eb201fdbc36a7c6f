import numpy as np
import pytest
import torch

from mrcnn_cli.structures import Segments
from mrcnn_cli.views import canvas
from mrcnn_cli.views.segments import FILL, draw_segments

CLASSES = ("dog", "cat", "sky", "grass")
GREY = np.full((60, 80, 3), 128, np.uint8)


def segments(ids, labels):
    return Segments(torch.as_tensor(ids, dtype=torch.int32), torch.tensor(labels), torch.full((len(labels),), 0.9))


def halves(left, right):
    ids = np.ones((60, 80))
    ids[:, 40:] = 2
    return segments(ids, [left, right])


def paint(picture, y, x):
    """The colour laid over the grey picture at a pixel of it."""
    array = np.asarray(picture).astype(float)
    scale = array.shape[0] // 60
    return (array[y * scale + scale // 2, x * scale + scale // 2] - (1 - FILL) * 128) / FILL


def test_a_class_of_stuff_has_one_colour_wherever_it_is():
    one, other = draw_segments(GREY, halves(2, 3), CLASSES, 2), draw_segments(GREY, halves(3, 2), CLASSES, 2)
    assert np.abs(paint(one, 5, 5) - paint(other, 5, 75)).max() <= 2
    assert np.abs(paint(one, 5, 75) - paint(other, 5, 5)).max() <= 2
    assert np.abs(paint(one, 5, 5) - paint(one, 5, 75)).max() > 30


def test_things_of_one_class_that_touch_differ():
    picture = draw_segments(GREY, halves(0, 0), CLASSES, 2)
    assert np.abs(paint(picture, 5, 5) - paint(picture, 5, 75)).max() > 30


def test_void_is_dark_and_segments_have_an_outline():
    ids = np.zeros((60, 80))
    ids[20:40, 20:60] = 1
    picture = draw_segments(GREY, segments(ids, [0]), CLASSES, 2)
    assert np.abs(paint(picture, 5, 5) - canvas.INK).max() <= 2
    array = np.asarray(picture)
    scale = array.shape[0] // 60
    assert (array[20 * scale, 30 * scale : 50 * scale] == canvas.PAPER).all()


def test_a_name_stands_within_its_segment_however_it_is_bent():
    ids = np.zeros((60, 80))
    ids[4:56, 4:16] = ids[40:56, 4:76] = 1  # an L, whose middle is outside of it
    plain = np.asarray(draw_segments(GREY, segments(ids, [2]), ("", "", "", ""), 2))
    named = np.asarray(draw_segments(GREY, segments(ids, [2]), CLASSES, 2))
    y, x = np.nonzero((plain != named).any(2))
    assert len(y)
    scale = named.shape[0] // 60
    assert ids[int(y.mean()) // scale, int(x.mean()) // scale] == 1


def test_many_small_segments_go_without_names():
    ids = np.arange(60 * 80).reshape(60, 80) // 16 % 5 * 60 + np.arange(60)[:, None] + 1
    labels = [0] * int(ids.max())
    one = np.asarray(draw_segments(GREY, segments(ids, labels), CLASSES, 2))
    other = np.asarray(draw_segments(GREY, segments(ids, labels), ("horse", "cat", "sky", "grass"), 2))
    assert np.array_equal(one, other)


def test_a_picture_without_segments_is_all_void():
    picture = draw_segments(GREY, segments(np.zeros((60, 80)), []), CLASSES, 2)
    assert np.abs(paint(picture, 30, 40) - canvas.INK).max() <= 2


def test_segments_of_another_picture_are_refused():
    with pytest.raises(ValueError, match=r"are for a picture of \(60, 80\), the image is \(10, 12\)"):
        draw_segments(np.zeros((10, 12, 3), np.uint8), halves(0, 1), CLASSES, 2)
