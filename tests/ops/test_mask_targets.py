import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_cli.ops import mask_targets, reference, roi_align
from mrcnn_cli.ops.mask_targets import both_ways
from mrcnn_cli.ops.packed_masks import pack_masks


def ellipses(count, height, width, seed=0):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    masks = []
    for _ in range(count):
        cy, cx = random.uniform(0, height), random.uniform(0, width)
        ry, rx = random.uniform(3, height / 2), random.uniform(3, width / 2)
        masks.append(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1)
    return np.stack(masks)


def encode(masks):
    return [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


def loose_boxes(count, height, width, seed=1):
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * torch.tensor([width, height]) * 0.7 - 4
    return torch.cat([corner, corner + torch.rand(count, 2, generator=random) * 40 + 2], 1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_sampling_the_runs_equals_roi_align_of_the_full_masks(aligned, sampling_ratio):
    masks, boxes = ellipses(8, 40, 56), loose_boxes(8, 40, 56)
    rois = torch.cat([torch.arange(8.0)[:, None], boxes], 1)
    full = torch.from_numpy(masks).double()[:, None]
    expected = roi_align(full, rois.double(), 14, 1.0, sampling_ratio, aligned)[:, 0]
    options = {"sampling_ratio": sampling_ratio, "aligned": aligned, "threshold": None}
    targets = mask_targets(encode(masks), boxes, 14, **options)
    torch.testing.assert_close(targets.double(), expected, rtol=0, atol=1e-4)


def test_plain_and_compressed_and_text_counts_mean_the_same():
    masks, boxes = ellipses(3, 30, 20), loose_boxes(3, 30, 20)
    compressed = encode(masks)
    text = [{"size": e["size"], "counts": e["counts"].decode()} for e in compressed]
    plain = []
    for mask in masks:
        flat = np.concatenate([[0], mask.T.reshape(-1).astype(int), [2]])
        edges = np.flatnonzero(np.diff(flat))
        plain.append({"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()})
    expected = mask_targets(compressed, boxes, 28)
    assert torch.equal(mask_targets(text, boxes, 28), expected)
    assert torch.equal(mask_targets(plain, boxes, 28), expected)


@pytest.mark.parametrize("name", ["flip", "turn", "enlarge"])
def test_the_matrix_moves_the_annotation_to_the_input(name):
    """A moved mask, cut, equals the cut of the mask that was moved as an image."""
    [mask] = ellipses(1, 32, 32, seed=5)
    if name == "flip":
        matrix, moved = [[-1.0, 0.0, 32.0], [0.0, 1.0, 0.0]], mask[:, ::-1]
    elif name == "turn":  # counter-clockwise, as numpy.rot90: (x, y) -> (y, 32 - x)
        matrix, moved = [[0.0, 1.0, 0.0], [-1.0, 0.0, 32.0]], np.rot90(mask)
    else:
        matrix, moved = [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], mask.repeat(2, 0).repeat(2, 1)
    boxes = torch.tensor([[4.0, 2.0, 30.0, 26.0]])
    options = {"sampling_ratio": 4, "threshold": None}
    cut = mask_targets(encode([mask]), boxes, 14, matrix=torch.tensor(matrix, dtype=torch.float64), **options)
    expected = mask_targets(encode([moved]), boxes, 14, **options)
    # Enlarging interpolates between source pixels instead of repeating them: edges differ by part of a bin.
    atol = 0.3 if name == "enlarge" else 1e-5
    torch.testing.assert_close(cut, expected, rtol=0, atol=atol)
    assert (cut - expected).abs().mean() < 0.02


def test_polygons_are_rasterised_on_the_grid_of_the_box():
    square = [[10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]]
    [target] = mask_targets([square], torch.tensor([[10.0, 10.0, 30.0, 30.0]]), 8)
    expected = torch.zeros(8, 8)
    expected[:4, :4] = 1
    assert torch.equal(target, expected)


def test_polygons_follow_the_matrix():
    square = [[5.0, 5.0, 10.0, 5.0, 10.0, 10.0, 5.0, 10.0]]
    doubled = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    [target] = mask_targets([square], torch.tensor([[10.0, 10.0, 30.0, 30.0]]), 8, matrix=doubled)
    assert target.sum() == 16
    assert target[:4, :4].all()


def test_several_parts_are_one_object():
    parts = [[0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0], [4.0, 4.0, 8.0, 4.0, 8.0, 8.0, 4.0, 8.0]]
    [target] = mask_targets([parts], torch.tensor([[0.0, 0.0, 8.0, 8.0]]), 8)
    assert target[:4, :4].all()
    assert target[4:, 4:].all()
    assert target.sum() == 32


def test_polygons_and_runs_of_one_shape_agree_up_to_the_edge():
    y, x = np.mgrid[:60, :60] + 0.5
    mask = (x >= 12) & (x < 41) & (y >= 8) & (y < 50)
    polygon = [[12.0, 8.0, 41.0, 8.0, 41.0, 50.0, 12.0, 50.0]]
    boxes = torch.tensor([[5.0, 5.0, 45.0, 55.0]])
    both = mask_targets([polygon, encode([mask])[0]], boxes.repeat(2, 1), 28)
    assert (both[0] != both[1]).float().mean() < 0.03


def test_no_objects_give_an_empty_tensor():
    assert mask_targets([], torch.zeros(0, 4), 28).shape == (0, 28, 28)


def test_an_empty_box_has_an_empty_target():
    masks = ellipses(1, 20, 20)
    assert mask_targets(encode(masks), torch.tensor([[5.0, 5.0, 5.0, 5.0]]), 7).sum() == 0


MATRICES = {
    "as it is": None,
    "flipped and scaled": torch.tensor([[-1.3, 0.0, 52.0], [0.0, 0.7, 3.0]], dtype=torch.float64),
    "sheared": torch.tensor([[0.9, 0.4, -5.0], [-0.2, 1.1, 4.0]], dtype=torch.float64),
}


def star(random, center, radius, corners):
    angles = np.sort(random.random(corners)) * 2 * np.pi
    reach = radius * random.uniform(0.3, 1.0, corners)
    return np.stack([center[0] + reach * np.cos(angles), center[1] + reach * np.sin(angles)], 1).reshape(-1).tolist()


def some_objects(count=12):
    """Stars of one and of several parts, masks with long and with many runs, and boxes that fit them loosely, miss
    them, are empty, inverted, tiny, far larger than the image or not finite. Some objects come twice."""
    random = np.random.default_rng(7)
    masks = ellipses(count, 40, 36)
    masks[count // 2 :] ^= random.random((count - count // 2, 40, 36)) < 0.2
    stars = [[star(random, random.uniform(5, 35, 2), 14, 9) for _ in range(1 + i % 3)] for i in range(count)]
    stars[1][0] = [*stars[1][0][:2], *stars[1][0]]  # a corner that comes twice
    different = [*encode(masks), *stars, {"size": [40, 36], "counts": [0, 1440]}, {"size": [1, 1], "counts": [0, 1]}]
    odd = [
        [5.0, 5.0, 5.0, 9.0], [20.0, 20.0, 10.0, 8.0], [10.0, 10.0, 10.02, 10.03], [-500.0, -300.0, 900.0, 700.0],
        [100.0, 100.0, 130.0, 140.0], [math.nan, 0.0, 5.0, 5.0], [0.0, 0.0, math.inf, 5.0], [0.0, 0.0, 36.0, 40.0],
    ]  # fmt: skip
    boxes = torch.cat([loose_boxes(2 * len(different), 40, 36), torch.tensor(odd * 2)])
    objects = different * 2 + [different[0]] * len(odd) + [different[count]] * len(odd)
    return objects, boxes


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(("size", "ratio", "aligned"), [(7, 0, True), (14, 2, False)])
def test_targets_equal_the_loop(size, ratio, aligned, matrix):
    objects, boxes = some_objects()
    # the loop cannot take thousands of points
    near = [i for i, box in enumerate(boxes.tolist()) if not max(map(abs, box)) > 200 or math.isnan(sum(box))]
    objects, boxes = [objects[i] for i in near], boxes[near]
    options = {"matrix": MATRICES[matrix], "sampling_ratio": ratio, "aligned": aligned}
    for threshold in (None, 0.5):
        targets = mask_targets(objects, boxes, size, threshold=threshold, **options)
        expected = reference.mask_targets(objects, boxes, size, threshold=threshold, **options)
        torch.testing.assert_close(targets.double(), expected, rtol=0, atol=1e-6)
    assert 0.05 < targets.mean() < 0.95


def by_pycocotools(polygons, box, size):
    corner, scale = box[:2], size / np.maximum(box[2:] - box[:2], 0.1)
    moved = [((np.reshape(polygon, (-1, 2)) - corner) * scale).reshape(-1).tolist() for polygon in polygons]
    return torch.from_numpy(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, size, size)))).float()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_polygons_are_filled_bit_for_bit_as_pycocotools_fills_them(data):
    coordinate = st.one_of(
        st.floats(-60, 160), st.integers(-10, 60), st.integers(-100, 300).map(lambda n: n / 10), st.floats(-400, 400)
    )
    corners = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=12)
    polygons = data.draw(
        st.lists(corners.map(lambda points: [c for point in points for c in point]), min_size=1, max_size=3)
    )
    low = [data.draw(st.one_of(st.integers(-5, 60), st.floats(-20, 90, width=32))) for _ in range(2)]
    # pycocotools walks along every line five pixels to one of the grid: with smaller boxes for minutes
    sides = [data.draw(st.one_of(st.integers(2, 80), st.floats(1, 90, width=32))) for _ in range(2)]
    box = np.float32([*low, low[0] + sides[0], low[1] + sides[1]]).astype(np.float64)
    size = data.draw(st.sampled_from([1, 2, 7, 14, 28, 63, 64, 65, 130]))
    [target] = mask_targets([polygons], torch.from_numpy(box)[None], size)
    assert torch.equal(target, by_pycocotools(polygons, box, size))


def test_thousands_of_stars_are_filled_bit_for_bit_as_pycocotools_fills_them():
    random = np.random.default_rng(11)
    stars = [
        [star(random, random.uniform(0, 80, 2), random.uniform(1, 60), random.integers(3, 90))] for _ in range(3000)
    ]
    boxes = []
    for [polygon] in stars:
        points = np.reshape(polygon, (-1, 2))
        boxes.append(np.concatenate([points.min(0), points.max(0)]) + random.normal(0, 2, 4))
    boxes = torch.tensor(np.array(boxes)).float()
    for size in (28, 100):
        targets = mask_targets(stars, boxes, size)
        for target, polygons, box in zip(targets, stars, boxes.double().numpy(), strict=True):
            assert torch.equal(target, by_pycocotools(polygons, box, size))


def test_corners_beyond_all_images_are_filled_too():
    far = [[-1e300, -1e300, 1e300, -1e300, 1e300, 1e300, -1e300, 1e300]]
    assert mask_targets([far], torch.tensor([[0.0, 0.0, 8.0, 8.0]]), 8).all()
    tiny = [[0.0, 0.0, 2000.0, 0.0, 2000.0, 2000.0, 0.0, 2000.0]]
    assert mask_targets([tiny], torch.tensor([[5.0, 5.0, 5.0, 5.0]]), 8).all()  # a side counts as a tenth of a pixel


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_sampling_any_runs_equals_roi_align_of_the_full_mask(data):
    height, width, size = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 15))
    density = data.draw(st.sampled_from([0.0, 0.03, 0.5, 0.97, 1.0]))
    mask = np.random.default_rng(data.draw(st.integers(0, 10**6))).random((height, width)) < density
    ratio, aligned = data.draw(st.sampled_from([0, 1, 2, 5])), data.draw(st.booleans())
    box = [data.draw(st.one_of(st.floats(-30, 70, width=32), st.integers(-3, 45))) for _ in range(4)]
    boxes = torch.tensor([box]).double()
    rois = torch.cat([torch.zeros(1, 1), boxes], 1).double()
    expected = roi_align(torch.from_numpy(mask).double()[None, None], rois, size, 1.0, ratio, aligned)[:, 0]
    targets = mask_targets(encode([mask]), boxes, size, sampling_ratio=ratio, aligned=aligned, threshold=None)
    torch.testing.assert_close(targets.double(), expected, rtol=0, atol=1e-6)


def test_straight_and_sheared_sampling_agree_where_the_shear_is_nothing():
    masks, boxes = ellipses(6, 40, 56), loose_boxes(6, 40, 56)
    almost = torch.tensor([[1.0, 1e-14, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    options = {"threshold": None}
    straight = mask_targets(encode(masks), boxes, 14, **options)
    torch.testing.assert_close(
        mask_targets(encode(masks), boxes, 14, matrix=almost, **options), straight, rtol=0, atol=1e-6
    )


def test_a_bin_of_more_pixels_than_points_allowed_is_sampled_coarsely():
    encoding = {"size": [1, 40000], "counts": [0, 20000, 20000]}
    target = mask_targets([encoding], torch.tensor([[0.0, 0.0, 40000.0, 1.0]]), 1, threshold=None)
    assert target.item() == pytest.approx(0.5, abs=1e-3)


def test_any_number_of_threads_gives_the_same():
    objects, boxes = some_objects()
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(mask_targets(objects, boxes, 14, threshold=None))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_boxes_of_any_type_and_strides_are_taken_as_they_are(dtype):
    objects, boxes = some_objects()
    rounded = boxes.to(dtype)
    strided = torch.stack([rounded, rounded], 2)[..., 0]
    targets = mask_targets(objects, strided, 9)
    assert targets.dtype == torch.float32
    assert torch.equal(targets, mask_targets(objects, rounded.double(), 9))


def test_the_operator_is_registered_in_full():
    objects, boxes = some_objects()
    packed = pack_masks(objects)
    arguments = (packed.points, packed.polygons, packed.ends, packed.objects, packed.index, boxes, *both_ways(None))
    report = torch.library.opcheck(torch.ops.mrcnn.mask_targets, (*arguments, 9, 0, True, 0.5, *packed.largest))
    assert set(report.values()) == {"SUCCESS"}


SQUARE = [[0.0, 0.0, 4.0, 0.0, 4.0, 4.0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "neither a list of polygons nor a run-length encoding"),
        (None, "neither a list of polygons"),
        ("abc", "neither a list of polygons"),
        (7, "neither a list of polygons"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "a polygon is not a list of numbers"),
        ([["a", "b", "c", "d", "e", "f"]], "a polygon is not a list of numbers"),
        ([[[0, 0], [1, 0], [1, 1]]], "a polygon is not a list of numbers"),
        ([[10**400, 1, 2, 3, 4, 5]], "a polygon is not a list of numbers"),
        ([[0.0, 0.0, 4.0, 4.0]], "a polygon has 4 numbers, not x and y of three points or more"),
        ([[]], "a polygon has 0 numbers"),
        ([*SQUARE, [0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 1.0]], "a polygon has 7 numbers"),
        ([*SQUARE, [0.0, 0.0, 4.0, 0.0, 4.0, math.nan]], "coordinate that is not finite"),
        ([[0.0, -math.inf, 4.0, 0.0, 4.0, 4.0]], "coordinate that is not finite"),
        ({"size": [4, 4], "counts": [4, 6]}, "the counts add up to 10 pixels, the size is 4 x 4 = 16"),
        ({"size": [4, 4], "counts": b"~"}, "no part of a number, at position 0"),
        ({"size": [4, 4], "counts": "P"}, "end in the middle of a number"),
        ({"size": [4, 4], "counts": [17, -1]}, "whole numbers from 0"),
        ({"size": [4, 4], "counts": [2**32, 16]}, "whole numbers from 0 below 2\\^32"),
        ({"size": [4, 4], "counts": [[16]]}, "whole numbers from 0"),
        ({"size": [4, 4], "counts": [16, [1]]}, "whole numbers from 0"),
        ({"size": [4, 4], "counts": None}, "whole numbers from 0"),
        ({"size": [4, 4]}, "has no counts"),
        ({"counts": [16]}, "the size is None"),
        ({"size": [4], "counts": [4]}, r"the size is \[4\], not \[height, width\]"),
        ({"size": [4, 4.0], "counts": [16]}, "the size is"),
        ({"size": [-4, -4], "counts": [16]}, "the size is -4 x -4"),
        ({"size": [70000, 70000], "counts": [16]}, "less than 2\\^31 pixels"),
    ],
)
def test_a_malformed_object_is_named(wrong, message):
    fine = {"size": [2, 2], "counts": [1, 3]}
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(5, 1)
    with pytest.raises(ValueError, match=f"mask_targets: object 3: .*{message}"):
        mask_targets([SQUARE, fine, fine, wrong, SQUARE], boxes, 8)


def test_wrong_arguments_are_named():
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    with pytest.raises(ValueError, match=r"boxes must be \[1, 4\].*got \[2, 4\]"):
        mask_targets([SQUARE], torch.zeros(2, 4), 8)
    with pytest.raises(ValueError, match="matrix cannot be inverted"):
        mask_targets([SQUARE], box, 8, matrix=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"matrix must be \[2, 3\], got \[3, 3\]"):
        mask_targets([SQUARE], box, 8, matrix=torch.eye(3))
    with pytest.raises(RuntimeError, match="matrix must be finite"):
        mask_targets([SQUARE], box, 8, matrix=torch.tensor([[1.0, 0.0, math.inf], [0.0, 1.0, 0.0]]))
    with pytest.raises(RuntimeError, match="boxes must be floating point, got Long"):
        mask_targets([SQUARE], box.long(), 8)
    with pytest.raises(RuntimeError, match="size must be between 1 and 4096, got 0"):
        mask_targets([SQUARE], box, 0)
    with pytest.raises(RuntimeError, match="sampling_ratio must be at most 4096, got 5000"):
        mask_targets([SQUARE], box, 8, sampling_ratio=5000)


def test_packed_numbers_that_lead_astray_are_refused():
    packed = pack_masks([SQUARE, {"size": [2, 2], "counts": [1, 3]}])
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(2, 1)

    def run(**changes):
        values = {name: getattr(packed, name) for name in ("points", "polygons", "ends", "objects", "index")} | changes
        order = ("points", "polygons", "ends", "objects", "index")
        arguments = (*(values[name] for name in order), boxes, *both_ways(None))
        return torch.ops.mrcnn.mask_targets(*arguments, 4, 0, True, 0.5, *packed.largest)

    assert run().shape == (2, 4, 4)
    with pytest.raises(RuntimeError, match="polygon 0 has the points 0 to 9 of 3"):
        run(polygons=torch.tensor([0, 9]))
    with pytest.raises(RuntimeError, match="index must be below 2, got 2"):
        run(index=torch.tensor([0, 2]))
    for wrong in ([0, 3, 2, 2], [-1, 2, 2, 2], [0, 2, 3, 2], [0, 2, -1, 0], [2, 1, 2, 2]):
        with pytest.raises(RuntimeError, match="object 1 leads outside of what was packed"):
            run(objects=torch.tensor([[0, 1, -1, 0], wrong]))
    with pytest.raises(RuntimeError, match="ends must be Int, got Long"):
        run(ends=packed.ends.long())
    with pytest.raises(RuntimeError, match="objects must be rows of numbers"):
        run(objects=packed.objects[:, :3].contiguous())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_any_object_is_packed_or_refused(data):
    size = st.one_of(st.lists(st.integers(-2, 6), max_size=3), st.none(), st.integers())
    counts = st.one_of(
        st.binary(max_size=8), st.text(max_size=8), st.lists(st.integers(-3, 2**33), max_size=6), st.none()
    )
    number = st.one_of(st.floats(), st.integers(), st.text(max_size=2), st.booleans(), st.none())
    polygons = st.lists(st.one_of(st.lists(number, max_size=8), number), max_size=3)
    segmentation = data.draw(st.one_of(polygons, st.fixed_dictionaries({}, optional={"size": size, "counts": counts})))
    try:
        pack_masks([segmentation])
    except ValueError:
        with pytest.raises(ValueError, match="^mask_targets: object 0: "):
            mask_targets([segmentation], torch.tensor([[0.0, 0.0, 5.0, 5.0]]), 5)
    else:
        targets = mask_targets([segmentation], torch.tensor([[0.0, 0.0, 5.0, 5.0]]), 5)
        assert ((targets == 0) | (targets == 1)).all()


def test_an_object_is_packed_once_however_often_it_comes():
    square, [encoding] = [list(SQUARE[0])], encode(ellipses(1, 9, 9))
    packed = pack_masks([square, encoding, square, encoding, [list(SQUARE[0])]])
    assert packed.index.tolist() == [0, 1, 0, 1, 2]
    assert len(packed.objects) == 3
    assert packed.points.shape == (6, 2)
    assert packed.largest == (9, 9)
    assert packed.ends[-1] == 81


@pytest.mark.gpu
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(("size", "ratio", "aligned"), [(28, 0, True), (33, 2, False)])
def test_cuda_equals_cpu(size, ratio, aligned, matrix):
    objects, boxes = some_objects()
    for threshold in (None, 0.5):
        options = {"matrix": MATRICES[matrix], "sampling_ratio": ratio, "aligned": aligned, "threshold": threshold}
        targets = mask_targets(objects, boxes.cuda(), size, **options)
        assert targets.is_cuda
        assert torch.equal(targets.cpu(), mask_targets(objects, boxes, size, **options))
