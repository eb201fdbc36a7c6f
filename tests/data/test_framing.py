"""SSD's samples beside a plain statement of the paper: what a cut must hold, what zooming out keeps, which colours."""

from itertools import permutations

import numpy as np
import pytest
import torch

from mrcnn_cli.data.annotations import ImageAnnotations
from mrcnn_cli.data.photometric import YIQ
from mrcnn_cli.data.transforms import Augment, Resize, training
from mrcnn_cli.structures import IGNORED
from tests.data.test_transforms import EVERYTHING, HEIGHT, WIDTH, annotated, blobs, painted, shown, warped

LEAST = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
AS_IT_IS = Resize(scale=1.0)
GREY = (40.0, 50.0, 60.0)
SSD = {"zoom_out": 0.5, "zoom_out_colour": GREY, "iou_crop": LEAST}


def boxed(boxes, crowds=None) -> ImageAnnotations:
    """Objects without masks; each one's label is its place."""
    count = len(boxes)
    crowds = np.zeros(count, bool) if crowds is None else np.array(crowds)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return ImageAnnotations(7, boxes, np.arange(count), crowds, np.arange(count) + 100)


def scene(seed: int) -> tuple[np.ndarray, ImageAnnotations]:
    """Noise with one to six boxes of all sizes, of which one fills every third picture."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(50, 160, 2)
    boxes = [] if seed % 3 else [[0, 0, width, height]]
    while len(boxes) < generator.integers(1, 7):
        (x1, x2), (y1, y2) = np.sort(generator.uniform(0, width, 2)), np.sort(generator.uniform(0, height, 2))
        if x2 - x1 > 4 and y2 - y1 > 4:
            boxes.append([x1, y1, x2, y2])
    return generator.integers(0, 256, (height, width, 3), np.uint8), boxed(boxes)


def window_of(image: np.ndarray, pixels: torch.Tensor) -> tuple[int, int, int, int]:
    """Where an unchanged part of a picture of noise comes from: x1, y1, x2, y2."""
    height, width = pixels.shape[1:]
    found = pixels.permute(1, 2, 0).numpy()
    for top, left in np.argwhere((image == found[0, 0]).all(-1)):
        if np.array_equal(image[top : top + height, left : left + width], found):
            return left, top, left + width, top + height
    raise AssertionError("not a part of the picture")


def overlap(one, other) -> float:
    x1, y1, x2, y2 = max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
    both = max(x2 - x1, 0) * max(y2 - y1, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def holds_centre(part, box) -> bool:
    return part[0] < (box[0] + box[2]) / 2 < part[2] and part[1] < (box[1] + box[3]) / 2 < part[3]


def papers_cut(width: int, height: int, boxes, generator) -> tuple[tuple[int, int, int, int], float]:
    """Section 2.2, one draw after the other, and the overlap that was asked for."""
    while True:
        least = LEAST[generator.integers(len(LEAST))]
        if least == 1:
            return (0, 0, width, height), least
        for _ in range(50):
            w, h = int(width * generator.uniform(0.3, 1)), int(height * generator.uniform(0.3, 1))
            x, y = generator.integers(0, width - w + 1), generator.integers(0, height - h + 1)
            part = (x, y, x + w, y + h)
            inside = [box for box in boxes if holds_centre(part, box)]
            if 0.5 <= w / h <= 2 and inside and max(overlap(part, box) for box in inside) >= least:
                return part, least


@pytest.mark.parametrize("least", LEAST)
def test_a_cut_overlaps_an_object_whose_centre_it_holds_and_others_are_dropped(least):
    whole = 0
    for seed in range(60):
        image, annotations = scene(seed)
        augment = Augment(flip=0, iou_crop=(least,), min_visible=0, min_side=0)
        pixels, targets = training(image, annotations, AS_IT_IS, augment, np.random.default_rng(seed))
        part = window_of(image, pixels)
        boxes = annotations.boxes.tolist()
        inside = [label for label, box in enumerate(boxes) if holds_centre(part, box)]
        assert targets.labels.tolist() == inside
        left = [np.clip(boxes[label], part[:2] * 2, part[2:] * 2) - part[:2] * 2 for label in inside]
        assert np.allclose(targets.boxes.numpy(), left, atol=1e-4)
        if pixels.shape[1:] == image.shape[:2]:
            whole += 1
            continue
        assert least < 1
        assert max(overlap(part, boxes[label]) for label in inside) >= least
        height, width = pixels.shape[1:]
        assert 0.5 <= width / height <= 2
        assert height >= int(0.3 * image.shape[0])
        assert width >= int(0.3 * image.shape[1])
    assert whole == 60 if least == 1 else whole < 60


def test_cuts_are_as_large_and_as_many_objects_are_left_as_the_paper_says():
    image, annotations = scene(4)
    height, width = image.shape[:2]
    boxes = annotations.boxes.tolist()
    generator = np.random.default_rng(0)
    ours, theirs = [], []
    for _ in range(1500):
        pixels, targets = training(image, annotations, AS_IT_IS, Augment(flip=0, iou_crop=LEAST), generator)
        ours.append((pixels.shape[1] / height, pixels.shape[2] / width, len(targets) / len(boxes)))
        part, _ = papers_cut(width, height, boxes, generator)
        left = sum(holds_centre(part, box) for box in boxes)
        theirs.append(((part[3] - part[1]) / height, (part[2] - part[0]) / width, left / len(boxes)))
    ours, theirs = np.array(ours), np.array(theirs)
    noise = np.sqrt((ours.var(0) + theirs.var(0)) / len(ours))
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * noise).all()
    assert ours.std(0).min() > 0.1


def test_cuts_come_from_everywhere():
    image, annotations = np.zeros((100, 120, 3), np.uint8), boxed([[55, 45, 65, 55]])
    image[..., 0], image[..., 1] = np.arange(120), np.arange(100)[:, None]
    generator = np.random.default_rng(0)
    corners = [
        training(image, annotations, AS_IT_IS, Augment(flip=0, iou_crop=(0.0,)), generator)[0][:2, 0, 0].tolist()
        for _ in range(400)
    ]
    assert np.min(corners, axis=0).max() <= 2
    assert np.max(corners, axis=0).tolist() == pytest.approx([58, 48], abs=4)  # the centre is at (60, 50)


def test_a_picture_without_objects_or_with_crowds_alone_is_left_whole():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for annotations in (boxed([]), boxed([[10, 10, 30, 30]], crowds=[True])):
        augment = Augment(flip=0, iou_crop=(0.0, 0.5))
        pixels, targets = training(image, annotations, AS_IT_IS, augment, np.random.default_rng(1))
        assert np.array_equal(pixels.permute(1, 2, 0), image)
        assert len(targets.crowds) == len(annotations)


def test_of_a_crowd_what_a_cut_shows_is_left_wherever_its_centre_is():
    image, annotations = np.zeros((100, 100, 3), np.uint8), boxed([[60, 60, 80, 80], [0, 0, 90, 30]], [False, True])
    for seed in range(40):
        augment = Augment(flip=0, iou_crop=(0.3,), min_visible=0)
        pixels, targets = training(image, annotations, AS_IT_IS, augment, np.random.default_rng(seed))
        assert targets.labels.tolist() == [0]
        shift = targets.boxes[0, :2].round() - 60 if pixels.shape[1] < 100 else torch.zeros(2)
        if len(targets.crowds):
            assert targets.crowds[0, 3] == 30 + shift[1]
        else:
            assert shift[1] <= -30


@pytest.mark.parametrize("method", ["antialias", "pillow", "torchvision"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_zooming_out_keeps_all_objects_on_a_canvas_of_the_colour(method, kind):
    resize = Resize(fixed=(120, 100), method=method)
    generator = np.random.default_rng(0)
    factors, places = [], []
    for seed in range(80):
        image, annotations = scene(seed % 8)
        height, width = image.shape[:2]
        augment = Augment(flip=0, zoom_out=1, zoom_out_colour=GREY)
        pixels, targets = training(image.astype(kind), annotations, resize, augment, generator)
        assert pixels.shape == (3, 120, 100)
        assert pixels.dtype == (torch.uint8 if kind == np.uint8 and method != "torchvision" else torch.float32)
        assert len(targets) == len(annotations)
        # From the boxes alone: one scale and one shift of all.
        x, y = annotations.boxes[:, ::2].astype(float), annotations.boxes[:, 1::2].astype(float)
        moved_x, moved_y = targets.boxes[:, ::2].double().numpy(), targets.boxes[:, 1::2].double().numpy()
        x_scale, left = np.polyfit(x.ravel(), moved_x.ravel(), 1)
        y_scale, top = np.polyfit(y.ravel(), moved_y.ravel(), 1)
        assert np.abs(x_scale * x + left - moved_x).max() < 1e-3
        assert np.abs(y_scale * y + top - moved_y).max() < 1e-3
        left, top, right, bottom = (round(v, 3) for v in (left, top, left + x_scale * width, top + y_scale * height))
        assert all(side == int(side) for side in (left, top, right, bottom))  # whole pixels
        outside = np.ones((120, 100), bool)
        outside[int(top) : int(bottom), int(left) : int(right)] = False
        assert (pixels[:, torch.from_numpy(outside)] == torch.tensor(GREY)[:, None]).all()
        factors.append(100 / (right - left))
        places.append((left / max(100 - right + left, 1), top / max(120 - bottom + top, 1)))
    assert 1 <= min(factors) < 1.2
    assert 3.7 < max(factors) < 4.2
    assert np.mean(factors) == pytest.approx(2.5, abs=0.4)
    assert np.min(places, axis=0).max() < 0.1
    assert np.max(places, axis=0).min() > 0.9


def test_as_many_pictures_are_zoomed_out_as_the_recipe_says():
    image, annotations = scene(0)
    generator = np.random.default_rng(0)
    augment = Augment(flip=0, zoom_out=0.3)
    sizes = [training(image, annotations, AS_IT_IS, augment, generator)[0].shape[1:] for _ in range(400)]
    assert 80 < sum(size != image.shape[:2] for size in sizes) < 160


def test_without_a_colour_the_canvas_has_the_pictures_own_mean():
    image = np.full((20, 20, 3), (10, 20, 30), np.uint8)
    image[:10] = (30, 60, 91)
    augment = Augment(flip=0, zoom_out=1, zoom_out_sides=(3, 3))
    pixels, _ = training(image, boxed([]), AS_IT_IS, augment, np.random.default_rng(0))
    assert pixels.shape == (3, 60, 60)
    assert pixels.flatten(1).mode(1).values.tolist() == [20, 40, 61]
    with pytest.raises(ValueError, match="zoom_out_colour has 2 values, the picture 3 channels"):
        training(image, boxed([]), AS_IT_IS, Augment(zoom_out=1, zoom_out_colour=(1, 2)), np.random.default_rng(0))


COMBINED = [
    (Resize(fixed=(110, 130)), Augment(**EVERYTHING, zoom_out=1, zoom_out_sides=(1, 2))),
    (Resize(fixed=(150, 150)), Augment(**EVERYTHING, iou_crop=LEAST)),
    (Resize(scale=1.3), Augment(**EVERYTHING, **SSD, crop=80)),
    (Resize(short_side=120, long_side=150), Augment(**EVERYTHING, **SSD | {"zoom_out": 1.0}, crop=64)),
]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["runs", "polygons"])
@pytest.mark.parametrize(("resize", "augment"), COMBINED)
def test_boxes_are_those_of_the_warped_masks(resize, augment, kind, seed):
    masks, polygons = blobs(seed, whole=kind == "polygons")
    annotations = annotated(masks, polygons if kind == "polygons" else None)
    pixels, targets = training(painted(masks), annotations, resize, augment, np.random.default_rng(seed))
    height, width = pixels.shape[1:]
    boxes = dict(zip(targets.labels.tolist(), targets.boxes.numpy(), strict=True))
    matrix = targets.masks.matrix
    for label, (segmentation, mask) in enumerate(zip(annotations.segmentations, masks, strict=True)):
        seen = shown(segmentation, mask, matrix, height, width)
        if label in boxes:
            assert np.abs(boxes[label] - seen).max() <= 0.5
            assert targets.masks.segmentations[list(boxes).index(label)] == segmentation
        elif seen is not None and not augment.iou_crop:
            box, sides = annotations.boxes[label], seen[2:] - seen[:2]
            whole = (box[2:] - box[:2]).prod() * float(matrix[:, :2].det().abs())
            assert sides.prod() <= augment.min_visible * whole * 1.1 or sides.min() < 1.5


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("resize", "augment"), COMBINED)
def test_the_picture_moves_with_the_masks(resize, augment, seed):
    masks, _ = blobs(seed)
    image = painted(masks)
    pixels, targets = training(image, annotated(masks), resize, augment, np.random.default_rng(seed))
    matrix, size = targets.masks.matrix, pixels.shape[1:]
    inside = warped(np.ones((HEIGHT, WIDTH), bool), matrix, *size)
    expected = np.zeros(size, int)
    for number in range(len(masks)):
        expected[warped(image[..., 0] == 20 * (number + 1), matrix, *size)] = 20 * (number + 1)
    agree = np.abs(pixels[0].numpy().astype(int) - expected) <= 2
    assert inside.sum() < 1500 or agree[inside].mean() > 0.75  # all but the blurred borders
    if augment.zoom_out_colour is not None:
        assert (pixels[:, torch.from_numpy(~inside)] == torch.tensor(GREY)[:, None]).all()


def test_a_crop_may_show_the_canvas_alone():
    image, annotations = scene(1)
    augment = Augment(zoom_out=1, zoom_out_sides=(4, 4), zoom_out_colour=GREY, crop=32)
    empty = 0
    for seed in range(30):
        pixels, targets = training(image, annotations, AS_IT_IS, augment, np.random.default_rng(seed))
        assert pixels.shape == (3, 32, 32)
        if (pixels == torch.tensor(GREY)[:, None, None]).all():
            assert len(targets) == 0
            empty += 1
    assert empty > 10


def test_keypoints_stuff_and_proposals_go_with_the_picture():
    image, boxes = np.zeros((60, 90, 3), np.uint8), [[10, 10, 40, 50], [50, 5, 85, 30]]
    keypoints = np.array([[[20.5, 20, 2], [39, 12, 1], [0, 0, 0]], [[60, 10, 2], [84, 29, 2], [51, 6, 1]]], np.float32)
    semantic = np.arange(60 * 90).reshape(60, 90) % 200
    masks = [np.zeros((60, 90), bool) for _ in boxes]
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    plain = annotated(masks)
    annotations = ImageAnnotations(
        7, plain.boxes, plain.labels, plain.crowds, plain.ids, plain.segmentations, keypoints,
        semantic.astype(np.uint8), np.array(boxes, np.float32),
    )  # fmt: skip
    cut = 0
    for seed in range(40):
        augment = Augment(**EVERYTHING, zoom_out=0.5, iou_crop=LEAST)
        pixels, targets = training(image, annotations, Resize(fixed=(80, 80)), augment, np.random.default_rng(seed))
        matrix, size = targets.masks.matrix.numpy(), pixels.shape[1:]
        for label, found in zip(targets.labels.tolist(), targets.keypoints.numpy(), strict=True):
            for (x, y, visibility), point in zip(keypoints[label], found, strict=True):
                there = matrix @ [x, y, 1]
                seen = visibility and (there >= 0).all() and (there <= size[::-1]).all()
                assert np.allclose(point, [*there, visibility] if seen else 0, atol=1e-3)
                cut += bool(visibility and not seen)
        assert np.array_equal(targets.semantic != IGNORED, warped(np.ones((60, 90), bool), targets.masks.matrix, *size))
        for value in (0, 77, 199):
            there = warped(semantic == value, targets.masks.matrix, *size)
            assert np.array_equal(targets.semantic == value, there)
        moved = [np.sort((np.reshape(box, (2, 2)) @ matrix[:, :2].T + matrix[:, 2]), 0) for box in boxes]
        clipped = np.array([corners.clip(0, size[::-1]).ravel() for corners in moved])
        assert np.allclose(targets.proposals, clipped[(clipped[:, 2:] > clipped[:, :2]).all(1)], atol=1e-3)
    assert cut > 10


def test_a_seed_gives_one_sample_and_leaves_the_other_draws_alone():
    masks, _ = blobs(2)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    colours = {"brightness": (0.8, 1.2), "contrast": (0.5, 1.5), "hue": (-0.1, 0.1), "saturation": (0.5, 1.5)}
    augment = Augment(**EVERYTHING, **SSD, **colours, distort=0.5)
    samples = set()
    for seed in range(20):
        one, other = (
            training(image, annotated(masks), Resize(fixed=(64, 64)), augment, np.random.default_rng(seed))
            for _ in range(2)
        )
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1].boxes, other[1].boxes)
        assert torch.equal(one[1].masks.matrix, other[1].masks.matrix)
        samples.add(one[0].contiguous().numpy().tobytes())
        alone, changed = (
            training(image, boxed([]), Resize(fixed=(64, 64)), options, np.random.default_rng(seed))[0]
            for options in (Augment(**colours), Augment(**colours, iou_crop=(1.0,), zoom_out=1e-9))
        )
        assert torch.equal(alone, changed)
    assert len(samples) == 20


def in_order(image: np.ndarray, steps) -> np.ndarray:
    """Changes one after the other, in float; saturation and hue are one step."""
    for name, value in steps:
        if name == "brightness":
            image = image * value
        elif name == "contrast":
            image = image.mean() + (image - image.mean()) * value
        else:
            factor, turn = value
            cosine, sine = factor * np.cos(2 * np.pi * turn), factor * np.sin(2 * np.pi * turn)
            image = image @ (np.linalg.inv(YIQ) @ [[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]] @ YIQ).T
        image = image.clip(0, 255)
    return image


def test_colours_are_distorted_in_the_order_of_the_papers_code():
    # Colours that clip, so that the order tells.
    image = np.random.default_rng(0).integers(0, 256, (12, 15, 3), np.uint8)
    fixed = {"brightness": (1.125, 1.125), "contrast": (1.5, 1.5), "saturation": (1.5, 1.5), "hue": (0.05, 0.05)}
    augment = Augment(flip=0, distort=1.0, **fixed)
    first = [("brightness", 1.125), ("contrast", 1.5), ("colours", (1.5, 0.05))]
    last = [first[0], first[2], first[1]]
    counts = {}
    for seed in range(200):
        pixels, _ = training(image, boxed([]), AS_IT_IS, augment, np.random.default_rng(seed))
        found = pixels.permute(1, 2, 0).numpy().astype(float)
        errors = {
            (way, channels): np.abs(found - in_order(image, steps)[..., channels]).mean()
            for way, steps in (("first", first), ("last", last))
            for channels in permutations(range(3))
        }
        best = min(errors, key=errors.get)
        assert errors[best] < 3
        assert sorted(errors.values())[1] > 2 * errors[best]
        counts[best] = counts.get(best, 0) + 1
    assert len(counts) == 12
    assert 70 < sum(count for (way, _), count in counts.items() if way == "first") < 130


def test_each_change_of_colours_is_made_with_its_chance():
    image = np.random.default_rng(0).integers(60, 160, (12, 15, 3), np.uint8)
    fixed = {"brightness": (1.1, 1.1), "contrast": (0.8, 0.8), "saturation": (0.6, 0.6), "hue": (0.05, 0.05)}
    for chance, share in ((0.0, 1.0), (0.5, 0.5**5 + 0.5**5 / 6), (1.0, 0.0)):
        augment = Augment(flip=0, distort=chance, **fixed)
        same = 0
        for seed in range(600):
            pixels, _ = training(image, boxed([]), AS_IT_IS, augment, np.random.default_rng(seed))
            same += np.array_equal(pixels.permute(1, 2, 0), image)
        assert same / 600 == pytest.approx(share, abs=0.025)
    alone = Augment(flip=0, distort=1.0)
    values = [training(image, boxed([]), AS_IT_IS, alone, np.random.default_rng(seed))[0] for seed in range(30)]
    orders = {tuple(np.argmax([np.array_equal(c, image[..., i]) for i in range(3)]) for c in v.numpy()) for v in values}
    assert orders == set(permutations(range(3)))
