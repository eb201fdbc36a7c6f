"""Composed pictures and their masks agree: each object is painted in a value of its own, so pixels tell the truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mrcnn_cli.data.annotations import ImageAnnotations
from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.composition import Visibility, mosaic, paste
from mrcnn_cli.data.loader import DataConfig, training_batches
from mrcnn_cli.data.transforms import Augment, Resize, training
from mrcnn_cli.structures import Masks, Targets

ALL = Visibility(side=0, share=0)
SIZES = [(60, 80), (71, 50), (40, 93), (64, 64)]
STEP = 8  # between the values of two objects; picture p has the values from 60 * p + 1


def picture(number: int, size: tuple[int, int], count: int = 6) -> tuple[np.ndarray, ImageAnnotations]:
    """Discs, later ones in front of earlier ones, with the masks of what is to be seen of them."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[: size[0], : size[1]]
    labels = np.full(size, -1)
    for index in range(count):
        centre, radius = generator.uniform((0, 0), size), generator.uniform(5, 18)
        labels[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2] = index
    image = np.where(labels >= 0, 60 * number + 1 + STEP * labels, 60 * number).astype(np.uint8)
    seen = [index for index in range(count) if (labels == index).any()]
    masks = [labels == index for index in seen]
    return np.repeat(image[..., None], 3, axis=2), annotated(masks, [number * 100 + index for index in seen])


def annotated(masks, labels, keypoints=None, semantic=None) -> ImageAnnotations:
    count = len(masks)
    boxes = np.array([extent(mask) for mask in masks], np.float32).reshape(-1, 4)
    encodings = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    ids = np.arange(count, dtype=np.int64)
    crowds = np.zeros(count, bool)
    return ImageAnnotations(7, boxes, np.array(labels, np.int64), crowds, ids, encodings, keypoints, semantic)


def extent(mask: np.ndarray) -> list[int]:
    rows, columns = mask.nonzero()
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def value(label: int) -> int:
    return 60 * (label // 100) + 1 + STEP * (label % 100)


def exact(pixels: torch.Tensor, targets: Targets) -> None:
    """Each object's mask is the region of its value, and its box goes around it."""
    assert torch.equal(targets.masks.matrix, torch.eye(2, 3, dtype=torch.float64))
    for label, box, encoding in zip(targets.labels.tolist(), targets.boxes, targets.masks.segmentations, strict=True):
        mask = coco_mask.decode(encoding).astype(bool)
        assert np.array_equal(mask, (pixels[0] == value(label)).numpy())
        assert box.tolist() == extent(mask)


def drawing(numbers):
    """`another` that takes these pictures by turns."""
    turns = iter(numbers)
    return lambda generator: picture(n := next(turns), SIZES[n])


MOVES = {"flip": 0.5, "vertical_flip": 0.5, "quarter_turns": True, "min_side": 0, "min_visible": 0}


@pytest.mark.parametrize("seed", range(20))
def test_a_mosaic_agrees_with_its_masks_to_the_pixel(seed):
    augment = Augment(**MOVES, mosaic=1)
    image, objects = picture(0, SIZES[0])
    pixels, targets = training(
        image, objects, Resize(scale=1), augment, np.random.default_rng(seed), None, drawing([1, 2, 3])
    )
    exact(pixels, targets)
    values = set(np.unique(pixels[0]).tolist())
    assert {shown // 60 for shown in values} == {0, 1, 2, 3}  # something of each, and every object that is to be seen
    assert {value(label) for label in targets.labels.tolist()} == values - {60 * number for number in range(4)}
    assert sorted(pixels.shape[1:]) <= sorted(SIZES[0])


@pytest.mark.parametrize("seed", range(20))
def test_pasted_objects_cover_what_is_beneath_to_the_pixel(seed):
    augment = Augment(**MOVES, copy_paste=1)
    under, over = picture(0, SIZES[0]), seed % 3 + 1
    pixels, targets = training(*under, Resize(scale=1), augment, np.random.default_rng(seed), None, drawing([over]))
    exact(pixels, targets)
    values = set(np.unique(pixels[0]).tolist())
    assert {value(label) for label in targets.labels.tolist()} == values - {0}
    plain, _ = training(*under, Resize(scale=1), Augment(**MOVES), np.random.default_rng(seed))
    pasted = pixels[0] >= 60
    assert torch.equal(pixels[:, ~pasted], plain[:, ~pasted])


@pytest.mark.parametrize("seed", range(10))
def test_mosaic_and_pasting_go_together_and_over_several_pictures(seed):
    augment = Augment(**MOVES, mosaic=1, copy_paste=1)
    pixels, targets = training(
        *picture(0, SIZES[0]), Resize(scale=1), augment, np.random.default_rng(seed), None, drawing([1, 1, 2, 3])
    )
    for label, encoding in zip(targets.labels.tolist(), targets.masks.segmentations, strict=True):
        assert (pixels[0].numpy()[coco_mask.decode(encoding) > 0] == value(label)).all()


def test_every_object_is_pasted_as_often_as_not_and_at_every_place():
    count, places = 0, set()
    image, objects = picture(1, (30, 30), count=1)
    sample = training(np.zeros((36, 33, 3), np.uint8), annotated([], []), Resize(scale=1), Augment(flip=0), rng(0))
    other = training(image, objects, Resize(scale=1), Augment(flip=0), rng(0))
    for seed in range(600):
        pixels, targets = paste(sample, other, rng(seed), ALL)
        count += len(targets)
        if len(targets):
            places.add(tuple((targets.boxes[0, :2] - other[1].boxes[0, :2]).int().tolist()))
            exact(pixels, targets)
    assert 250 < count < 350
    assert places == {(x, y) for x in range(4) for y in range(7)}


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def bar(size, region, value):
    mask = np.zeros(size, bool)
    mask[region] = True
    return np.where(mask[..., None], value, 0).astype(np.uint8).repeat(3, axis=2), mask


def plain(image, masks, labels) -> tuple[torch.Tensor, Targets]:
    return training(image, annotated(masks, labels), Resize(scale=1), Augment(flip=0), rng(0))


def always(monkeypatch) -> None:
    monkeypatch.setattr("mrcnn_cli.data.composition.PASTED", 1.0)


def test_an_object_of_which_too_little_is_left_is_left_out(monkeypatch):
    always(monkeypatch)
    image, below = bar((40, 40), np.s_[10:20, 10:20], 1)
    under = plain(image, [below], [0])
    for width, kept in ((7, True), (8, False)):  # of ten columns
        cover, above = bar((40, 40), np.s_[5:30, 10 : 10 + width], 61)
        _, targets = paste(under, plain(cover, [above], [100]), rng(0), Visibility(1, 0.3))
        assert targets.labels.tolist() == ([0, 100] if kept else [100])
        if kept:
            assert targets.boxes[0].tolist() == [17, 10, 20, 20]
    _, targets = paste(under, plain(cover, [above], [100]), rng(0), Visibility(3, 0))
    assert targets.labels.tolist() == [100]  # 2 columns of it are left


def test_an_object_wholly_covered_is_gone_and_an_untouched_one_keeps_its_box(monkeypatch):
    always(monkeypatch)
    image, below = bar((40, 40), np.s_[10:20, 10:20], 1)
    far = np.zeros((40, 40), bool)
    far[30:35, 30:35] = True
    pixels, targets = plain(image, [below, far], [0, 1])
    targets = replace(targets, boxes=targets.boxes + torch.tensor([[0.0, 0, 0, 0], [-0.4, -0.3, 0.2, 0.1]]))
    cover, above = bar((40, 40), np.s_[5:30, 5:30], 61)
    _, result = paste((pixels, targets), plain(cover, [above], [100]), rng(0), ALL)
    assert result.labels.tolist() == [1, 100]
    assert torch.equal(result.boxes[0], targets.boxes[1])


def test_without_masks_a_mosaic_cuts_boxes_and_nothing_can_be_pasted():
    samples = [plain(np.zeros((40, 40, 3), np.uint8), [bar((40, 40), np.s_[:, :], 1)[1]], [n]) for n in range(4)]
    samples = [(pixels, replace(targets, masks=None)) for pixels, targets in samples]
    _, targets = mosaic(samples, rng(1), ALL)
    assert targets.masks is None
    boxes = targets.boxes.numpy()
    assert (boxes[:, 2:] - boxes[:, :2]).prod(1).sum() == 1600  # each fills its corner
    assert boxes[0, :2].tolist() == [0, 0]
    assert boxes[3, 2:].tolist() == [40, 40]
    assert boxes[0, 2:].tolist() == boxes[3, :2].tolist()
    assert mosaic(samples, rng(1), Visibility(0, 0.9))[1].labels.tolist() == []
    with pytest.raises(ValueError, match="masks"):
        paste(samples[0], samples[1], rng(0), ALL)


def test_crowds_go_where_their_picture_goes():
    crowd = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
    samples = []
    for number in range(4):
        pixels, targets = plain(np.full((40, 40, 3), number, np.uint8), [], [])
        samples.append((pixels, replace(targets, crowds=crowd if number in (0, 3) else torch.zeros(0, 4))))
    pixels, targets = mosaic(samples, rng(3), ALL)
    for number, (x1, y1, x2, y2) in zip((0, 3), targets.crowds.int().tolist(), strict=True):
        expected = torch.zeros_like(pixels[0], dtype=torch.bool)
        expected[y1:y2, x1:x2] = True
        assert torch.equal(pixels[0] == number, expected)
    pixels, kept = paste(samples[0], samples[1], rng(0), ALL)
    assert torch.equal(kept.crowds, crowd)


def test_proposals_go_where_their_picture_goes_the_best_of_each_first():
    """Each picture has one around all of it and one around its middle, which the canvas always shows a part of."""
    samples = []
    for number in range(4):
        pixels, targets = plain(np.full((40, 40, 3), number, np.uint8), [], [])
        boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [5.0, 5.0, 35.0, 35.0]])
        samples.append((pixels, replace(targets, proposals=boxes)))
    for seed in range(10):
        pixels, targets = mosaic(samples, rng(seed), ALL)
        assert len(targets.proposals) == 8
        for number, (x1, y1, x2, y2) in enumerate(targets.proposals[:4].int().tolist()):
            expected = torch.zeros_like(pixels[0], dtype=torch.bool)
            expected[y1:y2, x1:x2] = True
            assert torch.equal(pixels[0] == number, expected)
        for whole, middle in zip(targets.proposals[:4], targets.proposals[4:], strict=True):
            assert (middle[:2] >= whole[:2]).all()
            assert (middle[2:] <= whole[2:]).all()


def test_of_a_pasted_picture_the_proposals_come_too(monkeypatch):
    always(monkeypatch)
    image, below = bar((40, 40), np.s_[10:20, 10:20], 1)
    cover, above = bar((30, 30), np.s_[5:15, 5:15], 61)
    under, over = plain(image, [below], [0]), plain(cover, [above], [100])
    under = (under[0], replace(under[1], proposals=under[1].boxes.repeat(3, 1)))
    over = (over[0], replace(over[1], proposals=over[1].boxes))
    for seed in range(10):
        _, targets = paste(under, over, rng(seed), ALL)
        assert torch.equal(targets.proposals[1], targets.boxes[-1])
        assert torch.equal(targets.proposals[[0, 2, 3]], under[1].proposals)


def test_pictures_that_are_too_small_make_a_smaller_mosaic_without_gaps():
    sizes = [(50, 50), (20, 10), (12, 50), (30, 8)]
    samples = [plain(np.full((*size, 3), 10 + number, np.uint8), [], []) for number, size in enumerate(sizes)]
    for seed in range(20):
        pixels, _ = mosaic(samples, rng(seed), ALL)
        assert pixels.shape == (3, 32, 50)
        assert pixels[0, 0, 0] == 10
        assert pixels[0, -1, -1] == 13
        assert pixels.min() == 10


@pytest.mark.parametrize("seed", range(30))
def test_polygons_are_filled_as_pycocotools_fills_them_in_the_whole_picture(seed, monkeypatch):
    """Also where they leave the picture on every side."""
    always(monkeypatch)
    generator = rng(seed)
    size = (57, 83)
    polygons = [(generator.uniform(-40, 120, (7, 2))).reshape(-1).tolist() for _ in range(2)]
    matrix = torch.tensor([[0.0, 0.7, 3.25], [-1.3, 0.0, 70.5]], dtype=torch.float64)
    moved = [(np.reshape(p, (-1, 2)) @ matrix[:, :2].numpy().T + matrix[:, 2].numpy() + 200).ravel() for p in polygons]
    whole = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in moved], 600, 600)))
    expected = whole[200 : 200 + size[0], 200 : 200 + size[1]]
    targets = Targets(
        torch.tensor([[0.0, 0, size[1], size[0]]]), torch.tensor([0]), torch.zeros(0, 4), Masks([polygons], matrix)
    )
    sample = (torch.zeros((3, *size), dtype=torch.uint8), targets)
    _, result = paste(sample, sample, rng(0), ALL)  # it covers itself
    (encoding,) = result.masks.segmentations
    assert np.array_equal(coco_mask.decode(encoding), expected)


MIRROR = np.array([1, 0, 2])


def with_points(number: int) -> tuple[np.ndarray, ImageAnnotations]:
    """A picture whose objects have three keypoints on pixels of their own, and one that is not labelled."""
    image, objects = picture(number, SIZES[number])
    keypoints = np.zeros((len(objects), 3, 3), np.float32)
    for place, encoding in enumerate(objects.segmentations):
        rows, columns = coco_mask.decode(encoding).nonzero()
        chosen = np.random.default_rng(place).integers(0, len(rows), 2)
        keypoints[place, :2] = np.stack([columns[chosen] + 0.5, rows[chosen] + 0.5, np.full(2, 2)], axis=1)
    semantic = np.where(image[..., 0] % 60 == 0, 1 + number, 0).astype(np.uint8)
    return image, replace(objects, keypoints=keypoints, semantic=semantic)


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("options", [{"mosaic": 1}, {"copy_paste": 1}, {"mosaic": 1, "copy_paste": 1}])
def test_keypoints_and_maps_of_stuff_go_with_their_objects(seed, options):
    """Each visible keypoint lies on its object, each hidden one under something that was pasted."""
    turns = iter([1, 2, 3, 1])
    pixels, targets = training(
        *with_points(0),
        Resize(scale=1),
        Augment(**MOVES, **options),
        rng(seed),
        MIRROR,
        lambda _: with_points(next(turns)),
    )
    assert targets.keypoints.shape == (len(targets), 3, 3)
    seen = {0: 0, 1: 0, 2: 0}
    for label, points in zip(targets.labels.tolist(), targets.keypoints.tolist(), strict=True):
        assert points[2] == [0, 0, 0]
        for x, y, visibility in points[:2]:
            seen[int(visibility)] += 1
            shown = pixels[0, int(y), int(x)].item() if visibility else None
            assert (shown == value(label)) == (visibility == 2)
            if visibility == 0:
                assert (x, y) == (0, 0)
    assert seen[2] > 0
    if "copy_paste" not in options:
        assert seen[1] == 0
    expected = torch.where(pixels[0] % 60 == 0, 1 + pixels[0] // 60, 0)
    assert torch.equal(targets.semantic, expected.to(torch.uint8))


def test_where_nothing_is_left_there_are_no_keypoints_of_the_right_shape(monkeypatch):
    always(monkeypatch)
    image, below = bar((40, 40), np.s_[10:20, 10:20], 1)
    under = plain(image, [below], [0])
    under = (under[0], replace(under[1], keypoints=torch.zeros(1, 5, 3)))
    cover, above = bar((40, 40), np.s_[5:30, 5:30], 61)
    over = plain(cover, [above], [100])
    over = (over[0], replace(over[1], keypoints=torch.zeros(1, 5, 3)))
    assert paste(under, over, rng(0), ALL)[1].keypoints.shape == (1, 5, 3)
    empty = plain(image, [], [])
    empty = (empty[0], replace(empty[1], keypoints=torch.zeros(0, 5, 3)))
    assert mosaic([empty] * 4, rng(0), ALL)[1].keypoints.shape == (0, 5, 3)


def test_options_of_composition_leave_the_other_draws_alone():
    image = rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    options = {"scale": (0.5, 1.0), "brightness": (0.5, 1.0)}
    empty = (image, annotated([], []))
    for seed in range(8):
        first, _ = training(*empty, Resize(scale=1), Augment(**options), rng(seed))
        second, _ = training(
            *empty, Resize(scale=1), Augment(**options, copy_paste=1), rng(seed), None, lambda _: empty
        )
        assert torch.equal(first, second)  # there was nothing to paste


def test_another_picture_is_asked_for_in_words():
    with pytest.raises(ValueError, match="another"):
        training(*picture(0, SIZES[0]), Resize(scale=1), Augment(mosaic=1), rng(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_composed_pictures_depend_on_the_seed_alone(files, workers):
    dataset: Dataset = files.read()
    options = {"augment": {"mosaic": 0.5, "copy_paste": 0.5}, "resize": {"scale": 1.0}}
    runs = []
    for config in (DataConfig(workers=0, **options), DataConfig(workers=workers, cache_mb=0, **options)):
        runs.append(list(training_batches(dataset, config, batch_size=2, seed=3, steps=8)))
    later = list(training_batches(dataset, config, batch_size=2, seed=3, steps=8, first_step=5))
    for one, other in [*zip(*runs, strict=True), *zip(runs[0][5:], later, strict=True)]:
        assert torch.equal(one[0].pixels, other[0].pixels)
        for first, second in zip(one[1], other[1], strict=True):
            assert torch.equal(first.boxes, second.boxes)
            assert first.masks.segmentations == second.masks.segmentations
            assert first.seed == second.seed
