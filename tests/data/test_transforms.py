"""Picture, boxes and masks stay together: checked with masks drawn in full and warped by the matrix alone."""

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch.nn.functional import interpolate

from mrcnn_cli import config
from mrcnn_cli.data.annotations import ImageAnnotations
from mrcnn_cli.data.transforms import Augment, Resize, inference, training
from mrcnn_cli.errors import UserError

HEIGHT, WIDTH = 90, 131
EVERYTHING = {"flip": 0.5, "vertical_flip": 0.5, "quarter_turns": True, "scale": (0.7, 1.4)}


FINE = 4  # sampling points per pixel and axis


def blobs(seed: int, count: int = 12, whole: bool = False) -> tuple[list[np.ndarray], list[list[float]]]:
    """Tilted ellipses as masks and as polygons; unless `whole`, some are cut by the picture's edge."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    masks, polygons = [], []
    while len(masks) < count:
        centre = generator.uniform((0, 0), (WIDTH, HEIGHT))
        long, short = generator.uniform(8, 25), generator.uniform(4, 8)
        angle = generator.uniform(0, np.pi)
        across = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
        along = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
        mask = (across / long) ** 2 + (along / short) ** 2 <= 1
        turn = np.arange(48) / 48 * 2 * np.pi
        points = np.stack([long * np.cos(turn), short * np.sin(turn)], 1)
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        points = centre + points @ rotation
        if mask.sum() < 60 or (whole and ((points < 0) | (points > (WIDTH, HEIGHT))).any()):
            continue
        masks.append(mask)
        polygons.append(points.reshape(-1).tolist())
    return masks, polygons


def extent(mask: np.ndarray) -> list[float] | None:
    rows, columns = mask.nonzero()
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


def annotated(masks, polygons=None, crowds=None, with_masks=True) -> ImageAnnotations:
    count = len(masks)
    if polygons is None:
        boxes = np.array([extent(mask) for mask in masks], np.float32).reshape(-1, 4)
        segmentations = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    else:
        points = [np.array(polygon).reshape(-1, 2) for polygon in polygons]
        boxes = np.array([[*p.min(0), *p.max(0)] for p in points], np.float32).reshape(-1, 4)
        segmentations = [[polygon] for polygon in polygons]
    return ImageAnnotations(
        7,
        boxes,
        np.arange(count, dtype=np.int64),
        np.zeros(count, bool) if crowds is None else np.array(crowds),
        np.arange(count, dtype=np.int64) + 100,
        segmentations if with_masks else None,
    )


def warped(mask: np.ndarray, matrix: torch.Tensor, height: int, width: int, fine: int = 1) -> np.ndarray:
    """The mask in the network's pixels: each one (or `fine` x `fine` points of it) looks up where it comes from."""
    inverse = np.linalg.inv(np.vstack([matrix.numpy(), [0, 0, 1]]))
    y, x = (np.mgrid[: height * fine, : width * fine] + 0.5) / fine
    source = np.einsum("ij,jhw->ihw", inverse[:2, :2], np.stack([x, y])) + inverse[:2, 2, None, None]
    column, row = np.floor(source).astype(int)
    within = (column >= 0) & (column < mask.shape[1]) & (row >= 0) & (row < mask.shape[0])
    return within & mask[row.clip(0, mask.shape[0] - 1), column.clip(0, mask.shape[1] - 1)]


def shown(segmentation, mask: np.ndarray, matrix: torch.Tensor, height: int, width: int) -> np.ndarray | None:
    """What is to be seen of an object: its box, to a quarter of a pixel."""
    if isinstance(segmentation, dict):
        fine = warped(mask, matrix, height, width, FINE)
    else:
        points = np.array(segmentation[0]).reshape(-1, 2) @ matrix.numpy()[:, :2].T + matrix.numpy()[:, 2]
        (encoding,) = coco_mask.frPyObjects([(points * FINE).reshape(-1).tolist()], height * FINE, width * FINE)
        fine = coco_mask.decode(encoding)
    box = extent(fine)
    return None if box is None else np.array(box) / FINE


def painted(masks) -> np.ndarray:
    """Each object in a grey of its own; later ones cover earlier ones."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for number, mask in enumerate(masks):
        image[mask] = 20 * (number + 1)
    return image


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["runs", "polygons"])
@pytest.mark.parametrize(
    ("resize", "augment"),
    [
        (Resize(scale=2.0), Augment(**EVERYTHING)),
        (Resize(scale=1.5), Augment(**EVERYTHING, crop=64)),
        (Resize(short_side=120, long_side=150), Augment(**EVERYTHING, short_sides=(100, 140), crop=128)),
        (Resize(scale=1.0), Augment(**EVERYTHING, crop=16, min_visible=0.0)),
    ],
)
def test_boxes_are_those_of_the_warped_masks(resize, augment, kind, seed):
    masks, polygons = blobs(seed, whole=kind == "polygons")
    annotations = annotated(masks, polygons if kind == "polygons" else None)
    pixels, targets = training(painted(masks), annotations, resize, augment, np.random.default_rng(seed))
    height, width = pixels.shape[1:]
    assert pixels.dtype == torch.uint8
    assert len(targets.masks) == len(targets) == len(targets.labels)
    assert targets.image_id == 7
    if augment.crop:
        assert max(height, width) <= augment.crop
    boxes = dict(zip(targets.labels.tolist(), targets.boxes.numpy(), strict=True))
    for kept, label in enumerate(boxes):
        assert targets.masks.segmentations[kept] == annotations.segmentations[label]
    zoom = np.sqrt(abs(np.linalg.det(targets.masks.matrix.numpy()[:, :2])))
    for label, (segmentation, mask) in enumerate(zip(annotations.segmentations, masks, strict=True)):
        seen = shown(segmentation, mask, targets.masks.matrix, height, width)
        if label in boxes:
            assert np.abs(boxes[label] - seen).max() <= 0.5
        elif seen is not None:  # left out: a sliver in a side, or of the whole
            sides, whole = seen[2:] - seen[:2], annotations.boxes[label] * zoom
            small = (sides < augment.min_side + 0.5).any()
            assert small or sides.prod() <= augment.min_visible * (whole[2:] - whole[:2]).prod() * 1.1


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("crop", [None, 96])
def test_the_picture_moves_with_the_masks(seed, crop):
    masks, _ = blobs(seed)
    image = painted(masks)
    pixels, targets = training(
        image, annotated(masks), Resize(scale=2.0), Augment(**EVERYTHING, crop=crop), np.random.default_rng(seed)
    )
    height, width = pixels.shape[1:]
    labelled = np.stack([image[..., 0] == 20 * (number + 1) for number in range(len(masks))])
    expected = sum(
        20 * (number + 1) * warped(mask, targets.masks.matrix, height, width).astype(int)
        for number, mask in enumerate(labelled)
    )
    agree = np.abs(pixels[0].numpy().astype(int) - expected) <= 2
    assert agree.mean() > 0.85  # all but the blurred borders
    assert np.array_equal(pixels[0], pixels[2])
    for label in targets.labels.tolist():  # borders of an object lie where its mask ends
        inner = warped(labelled[label], targets.masks.matrix, height, width)
        if inner.sum() > 300:
            assert agree[inner].mean() > 0.6


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        (Augment(flip=0), lambda a: a),
        (Augment(flip=1), lambda a: a[:, ::-1]),
        (Augment(flip=0, vertical_flip=1), lambda a: a[::-1]),
    ],
)
def test_flips_are_exact(augment, expected):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    pixels, _ = training(image, annotated([]), Resize(scale=1.0), augment, np.random.default_rng(0))
    assert np.array_equal(pixels.permute(1, 2, 0), expected(image))


def test_quarter_turns_are_exact_and_equally_often():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    generator = np.random.default_rng(0)
    counts = [0] * 4
    for _ in range(400):
        augment = Augment(flip=0, quarter_turns=True)
        pixels, targets = training(image, annotated([np.ones((20, 30))]), Resize(scale=1.0), augment, generator)
        turned = [np.array_equal(pixels.permute(1, 2, 0), np.rot90(image, turns)) for turns in range(4)]
        assert sum(turned) == 1
        counts[turned.index(True)] += 1
        assert targets.boxes.tolist() == [[0, 0, pixels.shape[2], pixels.shape[1]]]
    assert min(counts) > 70


def test_a_crop_takes_every_place_and_all_of_a_shorter_side():
    image = np.zeros((40, 200, 3), np.uint8)
    image[..., 0] = np.arange(200)
    generator = np.random.default_rng(0)
    starts = set()
    for _ in range(300):
        pixels, _ = training(image, annotated([]), Resize(scale=1.0), Augment(flip=0, crop=190), generator)
        assert pixels.shape == (3, 40, 190)
        starts.add(int(pixels[0, 0, 0]))
    assert starts == set(range(11))


@pytest.mark.parametrize("kind", ["runs", "polygons"])
def test_an_object_cut_by_a_crop_has_the_box_of_what_is_left_of_it(kind):
    """A diagonal stripe: what a window shows of it is often smaller than its box cut by the window."""
    mask = np.eye(100, dtype=bool)
    for offset in range(1, 6):
        mask |= np.eye(100, k=offset, dtype=bool)
    polygons = [[0, 0, 5, 0, 100, 95, 100, 100]] if kind == "polygons" else None
    annotations = annotated([mask], polygons)
    smaller = 0
    for seed in range(60):
        pixels, targets = training(
            np.zeros((100, 100, 3), np.uint8),
            annotations,
            Resize(scale=1.0),
            Augment(crop=30, min_visible=0, min_side=0),
            np.random.default_rng(seed),
        )
        seen = shown(annotations.segmentations[0], mask, targets.masks.matrix, *pixels.shape[1:])
        assert (seen is None) == (len(targets) == 0)
        if seen is not None:
            assert np.abs(targets.boxes[0].numpy() - seen).max() <= 0.5
            smaller += (targets.boxes[0, 2:] - targets.boxes[0, :2]).min() < 29
    assert smaller > 10


def test_slivers_left_by_a_crop_are_left_out_but_small_objects_are_not():
    masks = [np.zeros((100, 100), bool) for _ in range(2)]
    masks[0][:, 10:90] = True  # a crop of 16 leaves 16 of 100 rows and at most 16 of 80 columns
    masks[1][::, :][50:51, 50:51] = True
    for with_masks in (True, False):
        annotations = annotated(masks, with_masks=with_masks)
        image = np.zeros((100, 100, 3), np.uint8)
        _, targets = training(
            image, annotations, Resize(scale=1.0), Augment(crop=16, min_visible=0.1), np.random.default_rng(0)
        )
        assert 0 not in targets.labels.tolist()
        _, targets = training(
            image, annotations, Resize(scale=1.0), Augment(crop=16, min_visible=0.001), np.random.default_rng(0)
        )
        assert 0 in targets.labels.tolist()
        _, targets = training(image, annotations, Resize(scale=0.3), Augment(flip=0), np.random.default_rng(0))
        assert targets.labels.tolist() == [0, 1]  # 0.3 px wide, but whole
        assert (targets.masks is not None) == with_masks


def test_crowds_are_regions_and_no_objects():
    masks, _ = blobs(3, count=4)
    _, targets = training(
        painted(masks),
        annotated(masks, crowds=[False, True, False, True]),
        Resize(scale=2.0),
        Augment(flip=0),
        np.random.default_rng(0),
    )
    assert targets.labels.tolist() == [0, 2]
    assert len(targets.masks) == 2
    assert targets.crowds.tolist() == [[2.0 * v for v in extent(masks[1])], [2.0 * v for v in extent(masks[3])]]
    assert targets.crowds.dtype == targets.boxes.dtype == torch.float32


def test_a_picture_without_objects_has_empty_targets():
    _, targets = training(
        np.zeros((30, 40, 3), np.uint8), annotated([]), Resize(), Augment(crop=100), np.random.default_rng(0)
    )
    assert targets.boxes.shape == (0, 4)
    assert targets.crowds.shape == (0, 4)
    assert targets.labels.dtype == torch.int64
    assert len(targets.masks) == 0


def test_the_same_numbers_give_the_same_picture_and_other_numbers_another():
    masks, _ = blobs(1)
    augment = Augment(**EVERYTHING, crop=64, gamma=(0.8, 1.2), contrast=(0.8, 1.2), brightness=(0.8, 1.2))
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    first, second, other = (
        training(image, annotated(masks), Resize(scale=2.0), augment, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1].boxes, second[1].boxes)
    assert torch.equal(first[1].masks.matrix, second[1].masks.matrix)
    assert not torch.equal(first[1].masks.matrix, other[1].masks.matrix)


def test_switching_one_option_on_leaves_the_others_draws_alone():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    for seed in range(8):
        plain, _ = training(
            image,
            annotated([]),
            Resize(scale=1.0),
            Augment(crop=32, brightness=(0.5, 1.0)),
            np.random.default_rng(seed),
        )
        turned, _ = training(
            image,
            annotated([]),
            Resize(scale=1.0),
            Augment(crop=32, brightness=(0.5, 1.0), vertical_flip=1),
            np.random.default_rng(seed),
        )
        assert torch.equal(plain.flip(1), turned)


class OtherwiseDrawn:
    """The first ten numbers of a seed's generator, and any others after them."""

    def __init__(self, seed: int):
        self.seed = seed

    def random(self, count: int) -> np.ndarray:
        return np.concatenate([np.random.default_rng(self.seed).random(10), np.full(count - 10, 0.9)])


def test_numbers_for_what_is_switched_off_change_nothing():
    """So samples keep their bits when an option is added, which draws its number after all others."""
    masks, _ = blobs(3)
    options = EVERYTHING | {"crop": 64, "gamma": (0.7, 1.3), "contrast": (0.7, 1.3), "brightness": (0.7, 1.3)}
    for seed in range(6):
        one, other = (
            training(painted(masks), annotated(masks), Resize(scale=1.5), Augment(**options), generator)
            for generator in (np.random.default_rng(seed), OtherwiseDrawn(seed))
        )
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1].boxes, other[1].boxes)
        assert torch.equal(one[1].masks.matrix, other[1].masks.matrix)


def test_the_input_is_left_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    image.flags.writeable = False  # as arrays of PIL images are
    copy = image.copy()
    for resize in (Resize(scale=1.0), Resize(scale=1.5)):
        inference(image, resize).fill_(0)
        training(image, annotated([]), resize, Augment(), np.random.default_rng(0))[0].fill_(0)
    assert np.array_equal(image, copy)


@pytest.mark.parametrize("size", [(40, 57), (100, 143), (210, 300), (70, 100), (1, 1)])
def test_resizing_is_pillows_antialiased_bilinear_filter(size):
    image = np.random.default_rng(0).integers(0, 256, (100, 143, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    resized = inference(image, Resize(short_side=size[0], long_side=size[1]))
    assert resized.shape == (3, *size)
    difference = np.abs(resized.permute(1, 2, 0).numpy() - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.05


def test_colours_change_as_the_words_say():
    image = np.full((4, 4, 3), 51, np.uint8)
    image[0] = 204

    def corner(**options) -> list[int]:
        pixels, _ = training(
            image, annotated([]), Resize(scale=1.0), Augment(flip=0, **options), np.random.default_rng(0)
        )
        return [int(pixels[0, 0, 0]), int(pixels[0, 1, 0])]

    assert corner() == [204, 51]
    assert corner(brightness=(0.5, 0.5)) == [102, 26]
    assert corner(brightness=(2.0, 2.0)) == [255, 102]
    assert corner(gamma=(2.0, 2.0)) == [163, 10]
    assert corner(contrast=(0.5, 0.5)) == [147, 70]  # the mean is 89.25
    assert corner(contrast=(0.0001, 0.0001)) == [89, 89]


def changed(image: np.ndarray, **options) -> np.ndarray:
    pixels, _ = training(image, annotated([]), Resize(scale=1.0), Augment(flip=0, **options), np.random.default_rng(0))
    return pixels.permute(1, 2, 0).numpy().astype(int)


def brightness(image: np.ndarray) -> np.ndarray:
    return image @ np.array([0.299, 0.587, 0.114])


def test_saturation_and_hue_leave_grey_and_brightness_alone():
    image = np.random.default_rng(0).integers(90, 160, (20, 30, 3), np.uint8)
    grey = np.repeat(image[..., :1], 3, axis=2)
    for options in ({"saturation": (0.3, 0.3)}, {"saturation": (1.5, 1.5)}, {"hue": (0.2, 0.2)}, {"hue": (-0.4, -0.4)}):
        assert np.abs(changed(grey, **options) - grey).max() <= 1
        assert np.abs(brightness(changed(image, **options)) - brightness(image)).max() <= 1.5
        assert np.abs(changed(image, **options) - image).max() > 5


def test_without_saturation_grey_is_left_and_with_more_of_it_colours_go_apart():
    image = np.random.default_rng(0).integers(90, 160, (20, 30, 3), np.uint8)
    middle = brightness(image)[..., None]
    assert np.abs(changed(image, saturation=(1e-6, 1e-6)) - middle).max() <= 1
    assert np.abs(changed(image, saturation=(1.5, 1.5)) - (middle + 1.5 * (image - middle))).max() <= 1


def test_a_third_of_a_turn_of_hue_takes_red_to_a_green_and_a_whole_one_is_none():
    red = np.full((2, 2, 3), (160, 100, 100), np.uint8)
    first, second = (changed(red, hue=(turn, turn))[0, 0] for turn in (1 / 3, -1 / 3))
    assert first.argmax() != 0
    assert second.argmax() != 0
    assert first.argmax() != second.argmax()
    half_and_half = changed(changed(red, hue=(0.5, 0.5)).astype(np.uint8), hue=(0.5, 0.5))
    assert np.abs(half_and_half - red).max() <= 1


@pytest.mark.parametrize("sigma", [0.5, 1.3, 3.0])
def test_blur_is_a_gaussian_mean_of_the_neighbours(sigma):
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    reach = int(np.ceil(3 * sigma))
    expected = np.zeros(image.shape)
    total = 0.0
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            weight = np.exp(-(dy**2 + dx**2) / (2 * sigma**2))
            rows, columns = (np.arange(9) + dy).clip(0, 8), (np.arange(14) + dx).clip(0, 13)
            expected += weight * image[rows][:, columns]
            total += weight
    assert np.abs(changed(image, blur=1.0, blur_sigma=(sigma, sigma)) - expected / total).max() <= 0.51


def test_as_many_pictures_are_blurred_as_the_recipe_says():
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    generator = np.random.default_rng(0)
    sharp = 0
    for _ in range(400):
        pixels, _ = training(image, annotated([]), Resize(scale=1.0), Augment(flip=0, blur=0.3), generator)
        sharp += np.array_equal(pixels.permute(1, 2, 0), image)
    assert 240 < sharp < 320


# Large-scale jitter is scale and crop together, as in "Simple Copy-Paste" (Ghiasi et al., 2021).
def test_large_scale_jitter_shows_pictures_a_tenth_to_twice_as_large_in_a_window():
    resize, augment = Resize(short_side=128, long_side=128), Augment(flip=0, scale=(0.1, 2.0), crop=128)
    image = np.zeros((90, 130, 3), np.uint8)
    generator = np.random.default_rng(0)
    sizes, zooms = [], []
    for _ in range(300):
        pixels, targets = training(image, annotated([np.ones((90, 130), bool)]), resize, augment, generator)
        sizes.append(pixels.shape[1:])
        zooms.append(abs(targets.masks.matrix[0, 0].item()))
    assert np.max(sizes) == 128
    assert np.min(sizes) < 15
    whole = 128 / 130
    assert min(zooms) == pytest.approx(0.1 * whole, rel=0.1)
    assert max(zooms) == pytest.approx(2 * whole, rel=0.02)
    assert np.mean(zooms) == pytest.approx(1.05 * whole, rel=0.05)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("method", ["antialias", "pillow", "torchvision"])
def test_each_channel_goes_the_way_of_colours(channels, kind, method):
    """Also through crops, turns and blur: a channel by itself, repeated three times, becomes the same."""
    image = np.random.default_rng(0).integers(0, 256, (60, 80, channels)).astype(kind)
    augment, resize = Augment(**EVERYTHING, crop=64, blur=0.5), Resize(scale=1.3, method=method)
    for seed in range(6):
        pixels, _ = training(image, annotated([]), resize, augment, np.random.default_rng(seed))
        assert pixels.shape[0] == channels
        assert pixels.numpy().dtype == (np.float32 if method == "torchvision" else kind)
        for channel in range(channels):
            alone = image[:, :, [channel] * 3]
            expected, _ = training(alone, annotated([]), resize, augment, np.random.default_rng(seed))
            assert (pixels[channel].float() - expected[0].float()).abs().max() <= (
                1 if pixels.dtype == torch.uint8 else 1e-3
            )


def test_the_brightness_of_deep_pixels_changes_between_their_least_and_greatest_value():
    image = np.array([[0.0, 1000.0], [2000.0, 4000.0]], np.float32)[:, :, None]

    def changed(**options):
        augment = Augment(flip=0, **options)
        pixels, _ = training(image, annotated([]), Resize(scale=1.0), augment, np.random.default_rng(0))
        return pixels[0].flatten().tolist()

    assert changed(brightness=(0.5, 0.5)) == pytest.approx([0, 500, 1000, 2000])
    assert changed(gamma=(2, 2)) == pytest.approx([0, 250, 1000, 4000])
    assert changed(contrast=(0.5, 0.5)) == pytest.approx([875, 1375, 1875, 2875])
    image -= 1000
    assert changed(brightness=(0.5, 0.5)) == pytest.approx([-1000, -500, 0, 1000])


def test_colours_of_other_than_three_channels_cannot_be_varied():
    with pytest.raises(ValueError, match="not of 4 channels"):
        training(
            np.zeros((4, 4, 4), np.uint8), annotated([]), Resize(), Augment(hue=(0.1, 0.2)), np.random.default_rng(0)
        )


# Rows of short side, long side, height, width -> height, width by exact arithmetic, rounded half up.
@pytest.mark.parametrize(
    ("short", "long", "height", "width", "expected"),
    [
        (800, 1333, 480, 640, (800, 1067)),
        (800, 1333, 640, 480, (1067, 800)),
        (800, 1333, 427, 640, (800, 1199)),
        (800, 1333, 300, 1000, (400, 1333)),
        (800, 1333, 1000, 300, (1333, 400)),
        (800, 1333, 500, 500, (800, 800)),
        (600, 1000, 375, 500, (600, 800)),
        (100, 1000, 200, 1001, (100, 501)),  # 500.5
        (800, 1333, 1, 10_000, (1, 1333)),
    ],
)
def test_sizes_are_detectron2s(short, long, height, width, expected):
    assert Resize(short_side=short, long_side=long).size(height, width) == expected


def test_a_factor_enlarges_both_sides_up_to_the_limit():
    assert Resize(scale=2.0).size(33, 40) == (66, 80)
    assert Resize(scale=0.5).size(33, 41) == (17, 21)
    assert Resize(scale=2.0, long_side=60).size(33, 40) == (50, 60)
    assert Resize(scale=2.0).factor(33, 40) == 2.0
    assert Resize(short_side=100, long_side=120).factor(50, 80) == 1.5


def test_a_fixed_size_is_that_of_every_picture_and_boxes_follow_it():
    resize = Resize(fixed=(300, 200))
    assert resize.size(33, 400) == resize.size(640, 480) == (300, 200)
    assert Resize(fixed=(300, 200), method="torchvision").size(33, 400) == (300, 200)
    assert resize.factor(75, 200) == 2.0
    assert config.validate(Resize, resize.model_dump(mode="json", exclude_none=True)) == resize
    boxes = np.array([[10, 20, 30, 60]], np.float32)
    annotations = ImageAnnotations(1, boxes, np.array([0]), np.array([False]), None)
    image = np.zeros((100, 50, 3), np.uint8)
    pixels, targets = training(image, annotations, resize, Augment(flip=0), np.random.default_rng(0))
    assert pixels.shape == (3, 300, 200)
    assert targets.boxes.tolist() == [[40, 60, 120, 180]]


def test_the_default_is_800_by_1333_and_a_short_side_alone_keeps_the_limit():
    assert (Resize().short_side, Resize().long_side) == (800, 1333)
    assert Resize(short_side=600).long_side == 1333
    assert Resize(scale=2.0).short_side is None
    for resize in (Resize(), Resize(scale=2.0), Resize(scale=2.0, long_side=500)):
        assert config.validate(Resize, resize.model_dump(mode="json", exclude_none=True)) == resize


@pytest.mark.parametrize(
    ("schema", "table", "words"),
    [
        (Resize, {"scale": 2.0, "short_side": 800}, "scale and short_side exclude each other"),
        (Resize, {"short_side": 1500}, "long_side (1333) is less than short_side (1500)"),
        (Resize, {"fixed": [300, 300], "short_side": 800}, "fixed stands alone"),
        (Resize, {"fixed": [300, 300], "scale": 2.0}, "fixed stands alone"),
        (Resize, {"scale": 0}, "scale: input should be greater than 0"),
        (Resize, {"short_side": 0}, "short_side: input should be greater than or equal to 1"),
        (Resize, {"shortside": 3}, "did you mean 'short_side'"),
        (Augment, {"flip": 1.5}, "flip: input should be less than or equal to 1"),
        (Augment, {"scale": [1.3, 0.8]}, "scale is [1.3, 0.8]: write the lower value first"),
        (Augment, {"gamma": [0, 1]}, "gamma[0]: input should be greater than 0"),
        (Augment, {"gamma": 1.0}, "gamma: "),
        (Augment, {"hue": [0, 0.7]}, "hue[1]: input should be less than or equal to 0.5"),
        (Augment, {"blur_sigma": [2, 1]}, "blur_sigma is [2, 1]: write the lower value first"),
        (Augment, {"crop": 4}, "crop: input should be greater than or equal to 16"),
        (Augment, {"zoom_out_sides": [0.5, 2]}, "zoom_out_sides[0]: input should be greater than or equal to 1"),
        (Augment, {"zoom_out_sides": [4, 2]}, "zoom_out_sides is [4, 2]: write the lower value first"),
        (Augment, {"iou_crop": [0.5, 1.5]}, "iou_crop[1]: input should be less than or equal to 1"),
        (Augment, {"iou_crop_sides": [0.3, 2]}, "iou_crop_sides[1]: input should be less than or equal to 1"),
        (Augment, {"iou_crop_ratios": [2, 0.5]}, "iou_crop_ratios is [2, 0.5]: write the lower value first"),
        (Augment, {"distort": -0.1}, "distort: input should be greater than or equal to 0"),
    ],
)
def test_values_out_of_range_are_refused_in_words(schema, table, words):
    with pytest.raises(UserError) as caught:
        config.validate(schema, table)
    assert words in str(caught.value)


def test_pillows_bytes_and_torchs_differ_by_rounding_only():
    image = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    resize = Resize(short_side=64, method="pillow")
    pillow = inference(image, resize)
    expected = np.asarray(Image.fromarray(image).resize((64, 85), Image.Resampling.BILINEAR))
    assert pillow.dtype == torch.uint8
    assert np.array_equal(pillow.permute(1, 2, 0).numpy(), expected)
    difference = (pillow.int() - inference(image, Resize(short_side=64)).int()).abs()
    assert difference.max() <= 1


def test_torchvisions_sizes_are_rounded_down_and_its_pixels_are_not_rounded():
    image = np.random.default_rng(0).integers(0, 256, (427, 640, 3), dtype=np.uint8)
    for resize in (Resize(method="torchvision"), Resize(short_side=300, long_side=333, method="torchvision")):
        pixels = inference(image, resize)
        scale = min(resize.short_side / 427, resize.long_side / 640)
        expected = interpolate(
            torch.from_numpy(image).permute(2, 0, 1)[None].float(),
            scale_factor=scale,
            mode="bilinear",
            recompute_scale_factor=True,
        )[0]
        assert pixels.shape == expected.shape
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-4)


def test_a_scale_and_a_limit_hold_for_torchvisions_method_too():
    assert Resize(scale=0.5, method="torchvision").size(99, 201) == (49, 100)
    assert Resize(scale=2.0, long_side=300, method="torchvision").size(100, 200) == (150, 300)
