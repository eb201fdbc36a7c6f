import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mrcnn_cli.ops import paste_masks, paste_masks_dense, reference
from tests.ops import contract

INF, NAN = math.inf, math.nan
SIZE = (23, 31)


def odd_boxes(height, width):
    """[N, 4] float64: inside, over each border, the whole image, tiny, thin, outside, empty, inverted, not finite."""
    return torch.tensor(
        [
            [0.1 * width, 0.2 * height, 0.66 * width, 0.78 * height],
            [-6.0, -3.5, 0.3 * width, 0.5 * height],
            [0.5 * width, 0.43 * height, 1.9 * width, 2.2 * height],
            [0.0, 0.0, width, height],
            [8.4, 8.4, 8.9, 8.8],
            [2.0, 0.1, 2.3, height - 0.2],
            [0.3, 3.2, width - 0.4, 3.6],
            [-90.0, 2.0, -80.0, 9.0],
            [2.0 * width, 2.0, 3.0 * width, 9.0],
            [-1e7, -1e7, 1e7, 1e7],
            [5.0, 5.0, 5.0, 9.0],
            [9.0, 9.0, 5.0, 5.0],
            [NAN, 0.0, 5.0, 5.0],
            [0.0, 0.0, INF, 5.0],
            [-INF, 0.0, 5.0, 5.0],
        ],
        dtype=torch.float64,
    )


def case(size, threshold=0.5):
    boxes = odd_boxes(*SIZE)
    masks = torch.rand(len(boxes), size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    return {"masks": masks, "boxes": boxes, "image_size": SIZE, "threshold": threshold}


PASTE = contract.Operator(
    function=paste_masks_dense,
    reference=reference.paste_masks_dense,
    cases={
        "7 x 7": lambda: case(7),
        "28 x 28": lambda: case(28, 0.4),
        "80 x 80": lambda: case(80),
        "one value": lambda: case(1, 0.3),
        "no masks": lambda: {"masks": torch.zeros(0, 5, 5).double(), "boxes": torch.zeros(0, 4), "image_size": SIZE},
    },
    values=("masks",),
    same_type=False,
)


@pytest.mark.parametrize("name", PASTE.cases)
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_pasting_equals_the_loop(name, dtype):
    contract.equals_the_loop(PASTE, name, dtype)


def encoded(images):
    return [coco_mask.encode(np.asfortranarray(image)) for image in images.numpy().astype(np.uint8)]


@pytest.mark.parametrize("name", PASTE.cases)
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_run_lengths_equal_pycocotools_encoding_of_the_loop(name, dtype):
    arguments = PASTE.arguments(name, dtype)
    assert paste_masks(**arguments) == encoded(paste_masks_dense(**arguments))
    loop = reference.paste_masks_dense(**arguments | {"masks": arguments["masks"].double()})
    assert paste_masks(**arguments) == encoded(loop)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_run_lengths_equal_pycocotools_encoding_of_whole_images(data):
    height, width, size = (data.draw(st.integers(1, most)) for most in (60, 60, 100))
    count = data.draw(st.integers(0, 5))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    smooth = data.draw(st.booleans())
    masks = torch.rand(count, size, size, generator=random)
    if smooth and count:
        masks = torch.nn.functional.avg_pool2d(masks[:, None], 3, 1, 1)[:, 0] * 2 - 0.3
    masks = data.draw(st.sampled_from([masks, masks.transpose(1, 2), masks.half(), masks.round()]))
    coordinate = st.one_of(st.floats(-80, 140, width=32), st.integers(-5, 65), st.sampled_from([NAN, INF, -INF, 1e30]))
    boxes = torch.tensor([[data.draw(coordinate) for _ in range(4)] for _ in range(count)]).reshape(-1, 4)
    if data.draw(st.booleans()):
        boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], 1)
    threshold = data.draw(st.sampled_from([0.5, 0.25, 0.0, 1.0, -1.0, 0.7]))
    dense = paste_masks_dense(masks, boxes, (height, width), threshold)
    assert paste_masks(masks, boxes, (height, width), threshold) == encoded(dense)


@pytest.mark.parametrize("values", [(0.0, 1.0), (-INF, INF), (NAN, 1.0), (INF, -3e38), (3e38, -3e38), (0.5, 0.5)])
def test_values_of_any_size_give_runs_and_images_that_agree(values):
    choice = torch.randint(0, 2, (20, 9, 9), generator=torch.Generator().manual_seed(1)).bool()
    masks = torch.where(choice, *(torch.tensor(value) for value in values))
    boxes = torch.tensor([[-3.0, -2.0, 70.0, 50.0]]).repeat(20, 1)
    assert paste_masks(masks, boxes, (40, 60)) == encoded(paste_masks_dense(masks, boxes, (40, 60)))


def test_runs_that_need_more_room_than_most_are_found_whole():
    masks = torch.zeros(40, 50, 50)
    masks[:, ::2] = 1.0  # an edge in every row of the grid
    boxes = torch.tensor([[0.0, 0.0, 20.0, 200.0]]).repeat(40, 1)
    edges, starts = torch.ops.mrcnn.paste_masks(masks, boxes, 200, 20, 0.5, 10)
    assert starts[-1] > 20 * (2 * 40 + 52)
    assert len(edges) == 10
    assert paste_masks(masks, boxes, (200, 20)) == encoded(paste_masks_dense(masks, boxes, (200, 20)))


def test_no_image_is_made_of_any_mask():
    # as whole images these would be 80 GB
    corner = torch.rand(200, 2, generator=torch.Generator().manual_seed(2)) * 19000
    boxes = torch.cat([corner, corner + 100], 1).round()
    encodings = paste_masks(torch.ones(200, 28, 28), boxes, (20000, 20000))
    assert all(9990 < coco_mask.area(encoding) < 10420 for encoding in encodings)


def test_a_mask_that_fills_the_image_is_one_run():
    [encoding] = paste_masks(torch.ones(1, 4, 4), torch.tensor([[-10.0, -10.0, 30.0, 30.0]]), (8, 9))
    assert encoding == coco_mask.encode(np.ones((8, 9), np.uint8, order="F"))


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_has_an_empty_encoding(size):
    masks, boxes = torch.ones(1, 4, 4), torch.tensor([[0.0, 0.0, 3.0, 3.0]])
    [encoding] = paste_masks(masks, boxes, size)
    assert encoding["size"] == list(size)
    assert coco_mask.area(encoding) == 0
    assert paste_masks_dense(masks, boxes, size).shape == (1, *size)


def test_no_masks_give_no_encodings():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (10, 10)) == []


@pytest.mark.parametrize("name", ["7 x 7", "80 x 80"])
def test_any_number_of_threads_gives_the_same(name):
    contract.same_bits_for_any_number_of_threads(PASTE, name, torch.float32)
    arguments, threads = PASTE.arguments(name, torch.float32), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(paste_masks(**arguments))
    finally:
        torch.set_num_threads(threads)
    assert results[0] == results[1] == results[2]


def test_whole_images_compile():
    contract.compiles_whole(PASTE, "7 x 7")


def test_the_operators_are_registered_in_full():
    contract.passes_opcheck(PASTE, "7 x 7")
    arguments = PASTE.arguments("7 x 7", torch.float32)
    report = torch.library.opcheck(
        torch.ops.mrcnn.paste_masks,
        (arguments["masks"], arguments["boxes"], *SIZE, 0.5, 20_000),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip - the room beyond the edges is not written, so results differ there
    assert set(report.values()) == {"SUCCESS"}


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"paste_masks: masks must be \[N, M, M\], got \[1, 4, 5\]"):
        paste_masks(torch.zeros(1, 4, 5), torch.zeros(1, 4), (10, 10))
    with pytest.raises(ValueError, match=r"boxes must be \[2, 4\].*got \[1, 4\]"):
        paste_masks_dense(torch.zeros(2, 4, 4), torch.zeros(1, 4), (10, 10))
    masks, boxes = torch.zeros(1, 4, 4), torch.zeros(1, 4)
    for function in (paste_masks, paste_masks_dense):
        with pytest.raises(RuntimeError, match="masks must be floating point, got Long"):
            function(masks.long(), boxes, (10, 10))
        with pytest.raises(RuntimeError, match="boxes must be floating point, got Int"):
            function(masks, boxes.int(), (10, 10))
        with pytest.raises(RuntimeError, match=r"less than 2\^31 pixels, got 70000 x 70000"):
            function(masks, boxes, (70000, 70000))
        with pytest.raises(RuntimeError, match="threshold must be a number, got NaN"):
            function(masks, boxes, (10, 10), NAN)
        with pytest.raises(RuntimeError, match=r"rows and columns, got \[1, 0, 0\]"):
            function(masks[:, :0, :0], boxes, (10, 10))


@pytest.mark.gpu
@pytest.mark.parametrize("name", PASTE.cases)
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu(name, dtype):
    contract.cuda_equals_cpu(PASTE, name, dtype)
    assert paste_masks(**PASTE.arguments(name, dtype, "cuda")) == paste_masks(**PASTE.arguments(name, dtype))
