"""Detections on their pictures: what is covered, what is left alone, and what can be read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as run_lengths

from mrcnn_cli.structures import Detections
from mrcnn_cli.views import canvas, colours, overlay

CLASSES = ["nucleus", "bead"]


def disc(size, x, y, radius):
    down, across = np.mgrid[: size[0], : size[1]]
    return (down + 0.5 - y) ** 2 + (across + 0.5 - x) ** 2 <= radius**2


def detected(masks, size, labels=None, scores=None, boxes=None, with_masks=True):
    """Detections of boolean masks, best first."""
    if boxes is None:
        boxes = []
        for mask in masks:
            down, across = mask.nonzero()
            boxes.append([across.min(), down.min(), across.max() + 1, down.max() + 1])
    count = len(boxes)
    return Detections(
        boxes=torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)),
        scores=torch.linspace(0.99, 0.5, count) if scores is None else torch.tensor(scores),
        labels=torch.zeros(count, dtype=torch.int64) if labels is None else torch.tensor(labels),
        size=size,
        masks=[run_lengths.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks] if with_masks else None,
    )


def grey(size, value=40):
    return np.full((*size, 3), value, np.uint8)


def colourfulness(pixels):
    return int(np.ptp(pixels.astype(int), axis=-1).max(initial=0))


def plates(picture, paint):
    """The rectangle (top, bottom, left, right) around the rows that hold much of the plate's colour."""
    hits = (np.asarray(picture) == np.asarray(paint)).all(axis=2)
    rows = np.flatnonzero(hits.sum(axis=1) > 30)
    columns = np.flatnonzero(hits[rows].any(axis=0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def many(count, size=(512, 512), radius=4, seed=0, labels=None):
    """Small discs at random places, encoded without ever holding all of their masks."""
    random = np.random.default_rng(seed)
    boxes, masks = [], []
    for x, y in random.integers(radius, np.array(size)[::-1] - radius, (count, 2)):
        mask = np.zeros(size, np.uint8, order="F")
        window = disc((2 * radius, 2 * radius), radius, radius, radius)
        mask[y - radius : y + radius, x - radius : x + radius] = window
        masks.append(run_lengths.encode(mask))
        boxes.append([x - radius, y - radius, x + radius, y + radius])
    return Detections(
        torch.tensor(np.array(boxes, np.float32)),
        torch.linspace(0.99, 0.3, count),
        torch.zeros(count, dtype=torch.int64) if labels is None else torch.as_tensor(labels),
        size,
        masks,
    )


@pytest.mark.parametrize(
    ("size", "enlarged"),
    [
        ((256, 256), (768, 768)),
        ((200, 100), (800, 400)),
        ((700, 1000), (700, 1000)),
        ((740, 500), (740, 500)),
        ((1, 1), (692, 692)),
        ((2, 900), (2, 900)),
    ],
)
def test_small_pictures_are_enlarged_by_a_whole_number(size, enlarged):
    picture = overlay.draw(grey(size), detected([], size), CLASSES)
    assert (picture.height, picture.width) == enlarged


def test_the_scale_can_be_given():
    assert overlay.draw(grey((30, 40)), detected([], (30, 40)), CLASSES, scale=2).size == (80, 60)


def test_no_detections_leave_the_picture_as_it_is():
    image = np.random.default_rng(0).integers(0, 255, (800, 900, 3), dtype=np.uint8)
    for masks in (True, False):
        picture = overlay.draw(image, detected([], (800, 900), with_masks=masks), CLASSES)
        assert np.array_equal(np.asarray(picture), image)


@pytest.mark.parametrize("value", [0, 25, 128, 255])
def test_pixels_inside_a_mask_change_and_those_far_outside_do_not(value):
    size = (800, 800)
    image = grey(size, value)
    before = image.copy()
    mask = disc(size, 400, 400, 100)
    changed = (np.asarray(overlay.draw(image, detected([mask], size), CLASSES)) != value).any(axis=2)
    assert np.array_equal(image, before)
    assert changed[mask].all()
    assert not changed[:250].any()
    assert not changed[520:].any()
    assert not changed[:, :280].any()
    assert not changed[:, 520:].any()


def test_the_fill_lets_the_picture_shine_through():
    size = (800, 800)
    image = grey(size, 60)
    image[:, 400:] = 140
    picture = np.asarray(overlay.draw(image, detected([disc(size, 400, 400, 150)], size), CLASSES)).astype(int)
    assert np.abs(picture[400, 480] - picture[400, 320]).min() > 0.5 * 80


@pytest.mark.parametrize("value", [5, 128, 250])
def test_the_contour_stands_out_from_dark_and_bright_pictures(value):
    size = (800, 800)
    mask = disc(size, 400, 400, 150)
    picture = np.asarray(overlay.draw(grey(size, value), detected([mask], size), CLASSES))
    column = picture[400, 230:270]  # across the left edge, which is at 250
    outside = (value, value, value)
    assert max(colours.contrast(pixel, outside) for pixel in column[15:25]) >= 2
    assert max(colourfulness(pixel) for pixel in column) > 80


def test_touching_instances_have_different_colours():
    size = (256, 256)
    left, right = np.zeros(size, bool), np.zeros(size, bool)
    left[100:140, 60:120] = right[100:140, 120:180] = True
    picture = np.asarray(overlay.draw(grey(size), detected([left, right], size), CLASSES))
    one, other = picture[120 * 3, 90 * 3], picture[120 * 3, 150 * 3]
    assert np.linalg.norm(colours.oklab(one) - colours.oklab(other)) > 0.06
    edge = picture[120 * 3, 120 * 3 - 12 : 120 * 3 + 12]
    assert np.linalg.norm(colours.oklab(edge[8]) - colours.oklab(edge[15]), axis=0) > 0.12  # contour beside contour


@pytest.mark.parametrize("scale", [1, 2, 3, 5])
def test_a_mask_of_one_pixel_is_seen(scale):
    size = (160, 160)
    mask = np.zeros(size, bool)
    mask[80, 80] = True
    found = replace(many(20, size), masks=None)
    dots = detected([mask], size)
    crowd = Detections(
        torch.cat([dots.boxes, found.boxes[1:]]),
        found.scores,
        found.labels,
        size,
        [dots.masks[0]] + [run_lengths.encode(np.zeros(size, np.uint8, order="F"))] * 19,
    )
    picture = np.asarray(overlay.draw(grey(size, 0), crowd, CLASSES, scale=scale))
    shown = picture[80 * scale : 81 * scale, 80 * scale : 81 * scale]
    assert shown.max() > 150
    assert shown.max(axis=2).mean() > 60


def test_an_empty_mask_is_passed_over():
    size = (700, 700)
    empty = run_lengths.encode(np.zeros(size, np.uint8, order="F"))
    found = replace(detected([disc(size, 300, 300, 50)], size), masks=[empty])
    picture = np.asarray(overlay.draw(grey(size), found, CLASSES))
    assert (picture[300, 300] == 40).all()
    assert colourfulness(picture) > 50  # its box and label are there


def test_masks_at_the_edges_of_the_picture_are_drawn_within_it():
    size = (700, 700)
    masks = [disc(size, x, y, 80) for x in (0, 700) for y in (0, 700)] + [np.ones(size, bool)]
    picture = np.asarray(overlay.draw(grey(size), detected(masks, size), CLASSES))
    assert picture.shape == (700, 700, 3)
    assert all(colourfulness(picture[y, x]) > 30 for x in (2, 697) for y in (2, 697))


def test_boxes_alone_are_drawn_for_a_model_without_masks():
    size = (700, 700)
    found = detected([], size, boxes=[[100, 200, 300, 400]], with_masks=False)
    picture = np.asarray(overlay.draw(grey(size), found, CLASSES))
    paint = colours.palette()[0]
    assert (picture[250:350, 100] == paint).all()  # the left side
    assert (picture[399, 150:250] == paint).all()  # the lower side
    assert (picture[210:390, 110:290] == 40).all()  # the inside is untouched
    assert (picture[420:] == 40).all()


def test_boxes_beyond_the_picture_or_without_an_area_or_a_number_do_no_harm():
    size = (400, 400)
    boxes = [
        [-50, -50, 60, 60],
        [390, 390, 900, 900],
        [100, 100, 100, 100],
        [200, 200, 150, 150],
        [-90, -90, -20, -20],
        [float("nan"), 0, 10, 10],
        [0, 0, float("inf"), 10],
    ]
    mask = run_lengths.encode(np.asfortranarray(disc(size, 200, 200, 20).astype(np.uint8)))
    for masks in (None, [mask] * len(boxes)):
        found = replace(detected([], size, boxes=boxes, with_masks=False), masks=masks)
        picture = overlay.draw(grey(size), found, CLASSES)
        assert picture.size == (800, 800)
        assert colourfulness(np.asarray(picture)) > 50


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_label_is_readable_on_its_plate(value):
    size = (800, 800)
    picture = overlay.draw(grey(size, value), detected([disc(size, 400, 400, 100)], size, scores=[0.87]), CLASSES)
    paint = colours.palette()[0]
    top, bottom, left, right = plates(picture.crop((0, 0, 800, 299)), paint)  # the box begins at 300
    plate = np.asarray(picture)[top + 2 : bottom - 2, left + 4 : right - 4].reshape(-1, 3)
    darkest = plate[colours.luminance(plate).argmin()]
    assert colours.contrast(darkest, paint) >= 7


def test_a_label_spells_class_and_score(monkeypatch):
    written = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda pen, at, words, **kw: (written.append(words), text(pen, at, words, **kw))
    )
    size = (800, 800)
    masks = [disc(size, 200, 400, 90), disc(size, 600, 400, 90), disc(size, 400, 700, 50)]
    overlay.draw(grey(size), detected(masks, size, labels=[1, 0, 7], scores=[0.912, 0.5, 0.25]), CLASSES)
    assert written == ["bead 0.91", "nucleus 0.50", "class 7 0.25"]
    written.clear()
    overlay.draw(grey(size), many(62, size), CLASSES)
    assert written == ["nucleus x 62"]
    written.clear()
    overlay.draw(grey(size), many(63, size, labels=[0] * 40 + [1] * 23), CLASSES)
    assert written == ["nucleus x 40, bead x 23"]
    written.clear()
    overlay.compare(grey(size), many(40, size), many(30, size, seed=1), CLASSES)
    assert written == ["truth: nucleus x 40", "prediction: nucleus x 30"]
    written.clear()
    overlay.compare(grey(size), detected(masks[:1], size), detected([], size), CLASSES)
    assert written == ["nucleus", "truth: nucleus x 1", "prediction: nothing"]


def test_many_small_objects_are_not_covered_by_labels():
    size = (512, 512)
    found = many(60, size, radius=6)
    image = grey(size, 20)
    picture = np.asarray(overlay.draw(image, found, CLASSES, scale=2)).astype(int)
    changed = (np.abs(picture - 20) > 2).any(axis=2)
    boxes = found.boxes.numpy() * 2
    near = np.zeros(changed.shape, bool)
    for x1, y1, x2, y2 in boxes.astype(int):
        near[max(y1 - 6, 0) : y2 + 6, max(x1 - 6, 0) : x2 + 6] = True
    assert 0 < (changed & ~near).sum() < 0.01 * changed.size  # nothing but the count in a corner
    assert changed[:60, :200].any() or changed[-60:].any() or changed[:60].any()


def test_labels_do_not_hide_each_other():
    size = (900, 900)
    boxes = [[300 + 4 * k, 300 + 3 * k, 600 + 4 * k, 600 + 3 * k] for k in range(8)]
    found = detected([], size, boxes=boxes, labels=[0, 1] * 4, with_masks=False)
    extents = np.array([[120.0, 24.0]] * 8)
    placed = np.zeros((0, 4))
    corners = found.boxes.double().numpy()
    for box, extent in zip(corners, extents, strict=True):
        plate = overlay._place(box, extent, placed, corners, (900, 900))
        if plate is not None:
            assert canvas.shared(plate, placed).max(initial=0) <= overlay.OVERLAP * extent.prod()
            placed = np.concatenate([placed, plate[None]])
    assert len(placed) >= 6


def test_a_label_wider_than_the_picture_is_cut():
    size = (90, 20)
    found = detected([disc(size, 10, 40, 6)], size)
    picture = overlay.draw(grey(size), found, ["a class with a name that never ends" * 3], scale=3)
    assert picture.size == (60, 270)


def test_names_that_the_font_cannot_spell_are_drawn():
    size = (700, 700)
    picture = overlay.draw(grey(size), detected([disc(size, 300, 300, 60)], size), ["Zellkörper 細胞"])
    assert colourfulness(np.asarray(picture)) > 50


def test_two_thousand_objects_are_drawn():
    size = (512, 512)
    found = many(2000, size)
    picture = np.asarray(overlay.draw(grey(size, 0), found, CLASSES, scale=1))
    centres = found.boxes.reshape(-1, 2, 2).mean(dim=1).long()
    shown = (picture[centres[:, 1], centres[:, 0]].max(axis=1) > 40).mean()
    assert shown > 0.99  # all but those below the count


def test_the_same_detections_give_the_same_picture():
    size = (300, 300)
    found = many(50, size, labels=[0, 1] * 25)
    image = np.random.default_rng(1).integers(0, 255, (*size, 3), dtype=np.uint8)
    assert overlay.draw(image, found, CLASSES).tobytes() == overlay.draw(image.copy(), found, CLASSES).tobytes()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
    ],
)
def test_an_image_of_another_kind_is_refused(image):
    with pytest.raises(ValueError, match=r"expected \[H, W, 3\] uint8"):
        overlay.draw(image, detected([], (10, 10)), CLASSES)


def test_detections_of_another_picture_are_refused():
    with pytest.raises(ValueError, match="20"):
        overlay.draw(grey((10, 10)), detected([], (10, 20)), CLASSES)


def test_pictures_that_are_views_of_other_arrays_are_drawn():
    image = np.zeros((3, 40, 80), np.uint8).transpose(1, 2, 0)[:, ::-1]
    assert overlay.draw(image, detected([disc((40, 80), 20, 20, 8)], (40, 80)), CLASSES).size == (720, 360)


def test_a_comparison_has_the_truth_left_and_the_prediction_right():
    size = (400, 400)
    masks = [disc(size, 100, 100, 40), disc(size, 300, 300, 40)]
    truth, found = detected(masks, size), detected(masks[1:], size)
    picture = overlay.compare(grey(size), truth, found, CLASSES)
    width = (picture.width - overlay.SPACE) // 2
    strip = picture.height - 800
    left, right = np.asarray(picture)[strip:, :width], np.asarray(picture)[strip:, -width:]
    assert colourfulness(left[200, 200]) > 20
    assert colourfulness(right[200, 200]) == 0  # missed
    assert np.array_equal(left[600, 600], right[600, 600])  # found: one colour on both sides
    assert colourfulness(left[600, 600]) > 20
    caption = np.asarray(picture)[:strip]
    assert colours.contrast(caption.reshape(-1, 3).max(axis=0), canvas.INK) > 10


def test_a_false_alarm_beside_a_found_object_has_a_colour_of_its_own():
    truth = np.array([[0, 0, 50, 50], [200, 0, 250, 50]], float)
    found = np.array([[201, 0, 251, 50], [252, 0, 300, 50], [0, 2, 50, 50]], float)
    pairs = overlay._pairs(truth, found)
    assert pairs.tolist() == [1, -1, 0]
    assert overlay._pairs(truth, np.zeros((0, 4))).tolist() == []
    assert overlay._pairs(np.zeros((0, 4)), found).tolist() == [-1, -1, -1]
    assert overlay._pairs(truth, np.array([[0, 0, 50, 50], [0, 0, 50, 50]], float)).tolist() == [0, -1]


@pytest.mark.parametrize("counts", [(0, 0), (0, 5), (5, 0), (30, 3)])
def test_comparisons_of_any_number_of_objects_are_drawn(counts):
    size = (120, 120)
    truth, found = (many(count, size) if count else detected([], size) for count in counts)
    picture = overlay.compare(grey(size), truth, found, CLASSES)
    assert picture.width == 2 * 720 + overlay.SPACE


def test_a_sheet_holds_every_picture_once_in_order():
    paints = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    shapes = [(300, 200), (200, 300), (250, 250), (400, 100), (90, 180)]
    images = [Image.new("RGB", shape, paint) for shape, paint in zip(shapes, paints, strict=True)]
    sheet = overlay.contact_sheet(images, columns=3, width=900)
    pixels = np.asarray(sheet)
    assert sheet.width == 900
    extents = []
    for shape, paint in zip(shapes, paints, strict=True):
        down, across = (pixels == paint).all(axis=2).nonzero()
        height, width = np.ptp(down) + 1, np.ptp(across) + 1
        assert len(down) == height * width  # a whole rectangle
        assert width / height == pytest.approx(shape[0] / shape[1], rel=0.05)
        extents.append((down.min(), across.min(), height))
    assert extents == sorted(extents, key=lambda extent: extent[:2])
    assert len({height for _, _, height in extents[:3]}) == 1
    assert extents[3][2] <= extents[0][2]


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, None, 1), (4, None, 2), (9, None, 3), (3, 1, 3), (2, 7, 1)])
def test_a_sheet_has_as_many_columns_as_it_is_told(count, columns, rows):
    sheet = overlay.contact_sheet([Image.new("RGB", (100, 100), (250, 250, 250))] * count, columns, width=620)
    column = (np.asarray(sheet)[:, 40] == 250).all(axis=1)
    assert np.diff(column.astype(int)).clip(0).sum() == rows


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        overlay.contact_sheet([])


def test_a_sheet_takes_pictures_of_any_mode():
    images = [Image.new(mode, (40, 30)) for mode in ("L", "RGBA", "P", "1")]
    assert overlay.contact_sheet(images, width=300).mode == "RGB"
