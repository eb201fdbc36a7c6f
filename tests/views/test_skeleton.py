"""Keypoints on their pictures: where ink lies, in which colours, and what is left alone."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from mrcnn_cli.structures import Detections
from mrcnn_cli.views import canvas, colours, overlay
from mrcnn_cli.views.skeleton import LEGEND, Skeleton, draw_keypoints, draw_legend, keypoint_colours

SIZE = (400, 600)
CLASSES = ["mouse"]


def detected(keypoints, box=(100, 100, 300, 260)):
    keypoints = torch.tensor(keypoints, dtype=torch.float32)
    return Detections(
        torch.tensor([box] * len(keypoints), dtype=torch.float32),
        torch.linspace(0.9, 0.8, len(keypoints)),
        torch.zeros(len(keypoints), dtype=torch.int64),
        SIZE,
        None,
        keypoints,
    )


def grey(value=90):
    return np.full((*SIZE, 3), value, np.uint8)


def drawn(detections, **skeleton):
    return np.asarray(overlay.draw(grey(), detections, CLASSES, scale=1, skeleton=Skeleton(**skeleton)))


def without(detections):
    return np.asarray(overlay.draw(grey(), replace(detections, keypoints=None), CLASSES, scale=1))


def changed(detections, **skeleton):
    return (drawn(detections, **skeleton) != without(detections)).any(axis=2)


def test_each_dot_lies_on_its_keypoint_in_its_own_colour():
    places = [(150, 150), (200.4, 180.6), (250, 220)]
    picture = drawn(detected([[[x, y, 0.9] for x, y in places]]))
    for (x, y), hue in zip(places, keypoint_colours(3), strict=True):
        assert picture[int(y), int(x)].tolist() == hue.tolist()
    hits = changed(detected([[[x, y, 0.9] for x, y in places]]))
    down, across = hits.nonzero()
    distance = np.min([np.hypot(across + 0.5 - x, down + 0.5 - y) for x, y in places], axis=0)
    assert distance.max() < 12


def test_a_dot_is_centred_on_its_keypoint():
    down, across = changed(detected([[[200.5, 180.5, 0.9]]])).nonzero()
    assert abs((across + 0.5).mean() - 200.5) < 0.05
    assert abs((down + 0.5).mean() - 180.5) < 0.05


def test_lines_join_the_keypoints_of_the_skeleton_in_the_colour_of_their_object():
    detections = detected([[[150, 150, 0.9], [250, 150, 0.9], [250, 230, 0.9]]])
    paint = colours.palette()[colours.choose(detections.boxes.double().numpy())][0]
    picture, plain = drawn(detections, lines=[(0, 1)]), drawn(detections)
    assert picture[150, 200].tolist() == paint.tolist()
    assert (picture[190, 250] == plain[190, 250]).all()  # no line between the second and the third
    assert (picture[140, 200] == plain[140, 200]).all()


def test_keypoints_below_the_threshold_and_lines_to_them_are_left_out():
    detections = detected([[[150, 150, 0.9], [250, 150, 0.02]]])
    hits = changed(detections, lines=[(0, 1)])
    assert hits[150, 150]
    assert not hits[:, 170:].any()
    assert changed(detections, lines=[(0, 1)], threshold=0.01)[150, 250]


def test_keypoints_that_are_not_finite_or_outside_are_no_harm():
    detections = detected([[[float("nan"), 150, 0.9], [250, float("inf"), 0.9], [-500, 150, 0.9], [599.9, 399.9, 0.9]]])
    picture = drawn(detections, lines=[(2, 3), (0, 3)])
    assert picture.shape == (*SIZE, 3)
    assert (picture[398, 598] == keypoint_colours(4)[3]).all()


def test_dots_grow_with_the_picture_and_their_object_but_stay_small():
    def dot(size, box):
        picture = Image.new("RGB", size, (90, 90, 90))
        at = np.array([[[size[0] / 2, size[1] / 2, 1.0]]])
        draw_keypoints(picture, at, np.array([box], float), np.array([[255, 255, 255]]), Skeleton())
        return int((np.asarray(picture) != 90).any(axis=2).sum())

    small, large = dot((600, 400), (0, 0, 30, 30)), dot((600, 400), (0, 0, 500, 390))
    assert 0 < small < large < 0.005 * 600 * 400
    assert dot((1200, 800), (0, 0, 1000, 780)) > large


def test_small_pictures_are_enlarged_with_their_keypoints():
    image = np.full((100, 150, 3), 90, np.uint8)
    detections = replace(detected([[[50, 40, 0.9]]], box=(20, 20, 90, 80)), size=(100, 150))
    picture = np.asarray(overlay.draw(image, detections, CLASSES))
    scale = picture.shape[0] // 100
    assert scale > 1
    assert (picture[40 * scale, 50 * scale] == keypoint_colours(1)[0]).all()


def legend(names, boxes):
    picture = Image.new("RGB", (600, 400), (90, 90, 90))
    draw_legend(picture, Skeleton(names=names), np.array(boxes, np.float64).reshape(-1, 4), canvas.font(14))
    return (np.asarray(picture) != 90).any(axis=2)


def test_a_legend_of_few_keypoints_stands_where_it_hides_no_object():
    assert legend(["snout", "tail"], [])[:60, :60].any()
    aside = legend(["snout", "tail"], [[0, 0, 300, 400]])
    assert aside.any()
    assert not aside[:, :300].any()


def test_there_is_no_legend_of_one_of_many_or_of_long_names():
    assert not legend(["middle"], []).any()
    assert not legend([f"part {number}" for number in range(LEGEND + 1)], []).any()
    assert not legend(["x" * 200, "y"], []).any()
    assert legend(["Schnäuzchen", "尾"], []).any()


def test_nothing_detected_leaves_the_picture_alone():
    detections = detected(np.zeros((0, 3, 3)).tolist())
    empty = replace(detections, keypoints=torch.zeros(0, 3, 3), boxes=torch.zeros(0, 4))
    assert (drawn(empty, names=["a", "b", "c"], lines=[(0, 1)]) == grey()).all()


def test_truth_and_prediction_are_compared_with_their_keypoints():
    truth = detected([[[150, 150, 1], [250, 150, 0]]])
    picture = np.asarray(
        overlay.compare(grey(), truth, detected([[[150, 150, 0.9], [250, 150, 0.9]]]), CLASSES, scale=1)
    )
    strip = picture.shape[0] - SIZE[0]
    first, second = keypoint_colours(2)
    right = SIZE[1] + overlay.SPACE
    assert (picture[strip + 150, 150] == first).all()
    assert (picture[strip + 150, 250] != second).any()
    assert (picture[strip + 150, right + 250] == second).all()
