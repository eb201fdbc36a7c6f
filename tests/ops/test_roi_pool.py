import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import reference, roi_pool
from tests.ops import contract

# A largest number is found, not computed: it is exact, and gradients are sums that are rounded once.
EXACT = dict.fromkeys(contract.DTYPES, 0.0)


def some_boxes(count, images, seed=0, extent=70.0):
    """[count, 5] boxes on all images, some reaching outside, with sides from nothing to 60 pixels."""
    random = torch.Generator().manual_seed(seed)
    corner = (torch.rand(count, 2, generator=random, dtype=torch.float64) - 0.2) * extent
    sides = 60 * torch.rand(count, 2, generator=random, dtype=torch.float64) ** 2
    image = torch.arange(count).double()[:, None] % images
    return torch.cat([image, corner, corner + sides], 1)


def some_map(*size, seed=1, channels_last=False):
    """Whole numbers, so that many are equal, and every type holds them."""
    map = torch.randint(-8, 9, size, generator=torch.Generator().manual_seed(seed)).double()
    return map.to(memory_format=torch.channels_last) if channels_last else map


def distinct_map(*size):
    """No two numbers of a plane are equal or nearly so, for numerical gradients."""
    count = math.prod(size)
    return torch.randperm(count, generator=torch.Generator().manual_seed(2)).double().reshape(size) / 8


def case(channels=5, channels_last=False, size=(11, 14), boxes=7, output_size=(4, 2)):
    # bins of 1/2 and 1/4 of whole numbers, which float32 holds: the loop's float64 finds the same pixels
    arguments = {
        "input": some_map(2, channels, *size, channels_last=channels_last),
        "boxes": some_boxes(boxes, 2),
        "output_size": output_size,
        "spatial_scale": 0.25,
    }
    return lambda: dict(arguments)


ROI_POOL = contract.Operator(
    function=roi_pool,
    reference=reference.roi_pool,
    cases={
        f"{channels} channels, {name}": case(channels, channels_last)
        for channels in (1, 5, 16, 37)
        for name, channels_last in (("contiguous", False), ("channels last", True))
    }
    | {"one bin": case(output_size=(1, 1)), "many bins": case(output_size=(16, 8))},
    values=("input",),
    tolerance=EXACT,
    differentiable=("input",),
)
every_case = pytest.mark.parametrize("name", ROI_POOL.cases)
formats = pytest.mark.parametrize("channels_last", [False, True])


def in_format(map, channels_last):
    return map.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_it_equals_the_loop(name, dtype):
    contract.equals_the_loop(ROI_POOL, name, dtype)


@formats
def test_its_gradients_are_right(channels_last):
    boxes = some_boxes(5, 2)
    map = in_format(distinct_map(2, 3, 5, 6), channels_last).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, boxes, (2, 3), 0.1), [map])
    assert torch.autograd.gradgradcheck(lambda x: roi_pool(x, boxes, (2, 3), 0.1), [map])


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_the_gradient_goes_to_the_first_of_the_largest(name, dtype):
    arguments = ROI_POOL.arguments(name, dtype)
    map, boxes = arguments["input"].detach().requires_grad_(), arguments["boxes"]
    pooled = roi_pool(**{**arguments, "input": map})
    weights = some_map(*pooled.shape, seed=4).to(dtype)  # whole numbers: their sums are exact
    grad = torch.autograd.grad(pooled, map, weights)[0]
    assert grad.dtype == dtype
    expected = torch.zeros(map.shape, dtype=torch.float64)
    height, width = arguments["output_size"]
    limits = map.shape[2:]
    for r, (image, *box) in enumerate(boxes.tolist()):
        bins = [
            reference.regions._whole_pixels(box[1 - axis], box[3 - axis], 0.25, (height, width)[axis], limits[axis], 1)
            for axis in (0, 1)
        ]
        for y, rows in enumerate(bins[0]):
            for x, columns in enumerate(bins[1]):
                for c in range(map.shape[1]):
                    pixels = [(-map[int(image), c, i, j].item(), i, j) for i in rows for j in columns]
                    if pixels:
                        _, i, j = min(pixels)
                        expected[int(image), c, i, j] += weights[r, c, y, x].double()
    assert torch.equal(grad.double(), expected.to(dtype).double())


@formats
def test_opcheck_passes(channels_last):
    contract.passes_opcheck(ROI_POOL, f"5 channels, {'channels last' if channels_last else 'contiguous'}")


def test_it_compiles_whole():
    contract.compiles_whole(ROI_POOL, "5 channels, contiguous")
    contract.compiles_whole(ROI_POOL, "5 channels, channels last")


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(name, dtype):
    contract.same_bits_for_any_number_of_threads(ROI_POOL, name, dtype)


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu(name, dtype):
    contract.cuda_equals_cpu(ROI_POOL, name, dtype)


def test_without_a_gradient_the_values_are_the_same():
    arguments = ROI_POOL.arguments("37 channels, contiguous", torch.float32)
    expected = roi_pool(**{**arguments, "input": arguments["input"].clone().requires_grad_()})
    assert torch.equal(roi_pool(**arguments), expected)
    with torch.no_grad():
        assert torch.equal(roi_pool(**{**arguments, "input": arguments["input"].clone().requires_grad_()}), expected)


@pytest.mark.parametrize("channels", [64, 40])  # forty channels do not end with a line of the cache
def test_results_larger_than_the_caches_have_the_bits_of_their_parts(channels):
    input = some_map(2, channels, 30, 34, channels_last=True).float().requires_grad_()
    boxes = some_boxes(1200, 2).float()
    pooled = roi_pool(input, boxes, 7, 0.25)
    assert pooled.numel() * 4 >= 8 << 20
    weights = some_map(*pooled.shape, seed=3).float()  # whole numbers, whose sums do not depend on their order
    (gradient,) = torch.autograd.grad(pooled, input, weights)
    pieces = [roi_pool(input, part, 7, 0.25) for part in boxes.split(100)]
    assert torch.equal(pooled, torch.cat(pieces))
    gradients = [
        torch.autograd.grad(piece, input, weight)[0] for piece, weight in zip(pieces, weights.split(100), strict=True)
    ]
    assert torch.equal(gradient, sum(gradients))
    with torch.no_grad():
        assert torch.equal(pooled, roi_pool(input, boxes, 7, 0.25))


def test_the_result_and_the_gradient_keep_the_memory_format():
    for memory_format in (torch.contiguous_format, torch.channels_last):
        map = some_map(2, 6, 12, 9).float().to(memory_format=memory_format).requires_grad_()
        result = roi_pool(map, some_boxes(4, 2).float(), 3, 0.25)
        result.sum().backward()
        assert result.is_contiguous(memory_format=memory_format)
        assert map.grad.is_contiguous(memory_format=memory_format)


def test_any_strides_are_taken():
    wide = some_map(2, 10, 12, 18).float()
    boxes = some_boxes(5, 2).float()
    for map in (wide[:, ::2], wide[..., 1::2], wide.transpose(2, 3), wide[:, :1].expand(2, 4, 12, 18)):
        leaf, dense = map.detach().requires_grad_(), map.contiguous().requires_grad_()
        result, expected = roi_pool(leaf, boxes, (2, 3), 0.25), roi_pool(dense, boxes, (2, 3), 0.25)
        assert torch.equal(result, expected)
        weights = some_map(3, 2, *result.shape[:2]).float().permute(2, 3, 1, 0)
        one, other = torch.autograd.grad(result, leaf, weights)[0], torch.autograd.grad(expected, dense, weights)[0]
        assert torch.equal(one, other)
    assert torch.equal(roi_pool(wide, torch.cat([boxes, boxes], 1)[:, :5], 2), roi_pool(wide, boxes, 2))


def test_a_list_of_boxes_per_image_means_the_same_as_rows_with_an_index():
    map, boxes = some_map(2, 3, 12, 12).float(), some_boxes(6, 2).float()
    rows = boxes[boxes[:, 0].argsort(stable=True)]
    lists = [rows[rows[:, 0] == image, 1:] for image in range(2)]
    assert torch.equal(roi_pool(map, lists, 3, 0.25), roi_pool(map, rows, 3, 0.25))
    many = torch.arange(300.0).reshape(300, 1, 1, 1)
    half = [torch.tensor([[0, 0, 1, 1]], dtype=torch.bfloat16) for _ in range(300)]
    assert torch.equal(roi_pool(many, half, 1).flatten(), torch.arange(300.0))


@formats
def test_nothing_in_gives_nothing_or_zeros_out(channels_last):
    map = in_format(some_map(2, 3, 6, 6).float(), channels_last).requires_grad_()
    result = roi_pool(map, torch.zeros(0, 5), 7)
    assert result.shape == (0, 3, 7, 7)
    result.sum().backward()
    assert torch.equal(map.grad, torch.zeros_like(map))
    assert roi_pool(torch.zeros(0, 3, 6, 6), [], 7).shape == (0, 3, 7, 7)
    assert roi_pool(torch.zeros(1, 0, 6, 6), torch.zeros(2, 5), 7).shape == (2, 0, 7, 7)
    for size in ((0, 6), (6, 0), (0, 0)):
        empty = in_format(torch.zeros(1, 3, *size), channels_last).requires_grad_()
        result = roi_pool(empty, torch.tensor([[0, 0, 0, 5.0, 5.0]]), 2)
        assert torch.equal(result, torch.zeros(1, 3, 2, 2))
        result.sum().backward()
        assert empty.grad.shape == empty.shape


@formats
def test_odd_boxes_give_what_the_loop_gives(channels_last):
    inf, nan = math.inf, math.nan
    boxes = [
        [3, 3, 3, 3],  # no area: one pixel
        [8, 9, 3, 2],  # inverted: the pixel of its first corner
        [-500, -500, -400, -400],  # outside of the image
        [-30, -30, 90, 90],  # larger than the image
        [-1e9, 0, 1e9, 5],
        [1e30, 0, 2e30, 5],
        [nan, 0, 5, 5],
        [0, 0, nan, 5],
        [0, 0, inf, 5],
        [-inf, -inf, inf, inf],
    ]
    rois = torch.tensor([[0, *box] for box in boxes], dtype=torch.float64)
    map = in_format(some_map(1, 4, 13, 15), channels_last).requires_grad_()
    result = roi_pool(map, rois, (4, 2), 0.25)
    assert torch.equal(result, reference.roi_pool(map, rois, (4, 2), 0.25))
    result.sum().backward()
    assert map.grad.isfinite().all()
    narrow = roi_pool(map.detach().float(), rois.float(), (4, 2), 0.25)
    far = [4]  # so far outside that float32 is off by pixels
    near = [r for r in range(len(boxes)) if r not in far]
    assert torch.equal(narrow[near].double(), result[near])
    assert narrow[far].isfinite().all()


@pytest.mark.parametrize("dtype", contract.DTYPES)
@formats
def test_nan_is_never_the_largest_and_infinity_is(channels_last, dtype):
    map = torch.zeros(1, 3, 2, 2, dtype=dtype)
    map[0, 0] = torch.tensor([[math.nan, -2], [-3, math.nan]], dtype=dtype)
    map[0, 1] = math.inf
    map[0, 2] = -math.inf
    map = in_format(map, channels_last).requires_grad_()
    boxes = torch.tensor([[0, 0, 0, 1.0, 1.0]])
    result = roi_pool(map, boxes, 1)
    lowest = torch.tensor(torch.finfo(torch.float32).min).to(dtype).item()
    assert result.flatten().tolist() == [-2, math.inf, lowest]
    grad = torch.autograd.grad(result.sum(), map)[0]
    assert grad.nonzero().tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]


def test_a_place_that_is_none_is_not_written_to():
    places = torch.tensor([2**31 - 1, -1, -(2**31), 4, 3], dtype=torch.int32).reshape(5, 1, 1, 1)
    for channels_last in (False, True):
        grad = torch.ops.mrcnn.roi_pool_backward(
            torch.ones(5, 1, 1, 1), torch.zeros(5, 5), places, 1.0, 1, 2, 2, channels_last
        )
        assert grad.flatten().tolist() == [0, 0, 0, 1]


def test_autocast_leaves_the_type_alone():
    map, boxes = some_map(1, 3, 20, 20).bfloat16(), torch.tensor([[0, 101.3, 57.7, 300.9, 250.1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = roi_pool(map, boxes, 4, 1 / 16)
    assert torch.equal(inside, roi_pool(map, boxes, 4, 1 / 16))
    assert inside.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.zeros(3, 4, 5)}, r"roi_pool: input must be \[N, C, H, W\], got \[3, 4, 5\]"),
        ({"input": torch.zeros(1, 1, 2, 2).int()}, "roi_pool: input must be floating point, got Int"),
        ({"boxes": torch.zeros(3, 4)}, r"roi_pool: boxes must be \[R, 5\].*got \[3, 4\]"),
        ({"boxes": torch.zeros(3, 5).int()}, "roi_pool: boxes must be floating point, got Int"),
        ({"boxes": torch.tensor([[2.0, 0, 0, 1, 1]])}, r"roi_pool: boxes\[0\] lies on image 2, .* holds 2"),
        ({"boxes": torch.tensor([[-1.0, 0, 0, 1, 1]])}, r"roi_pool: boxes\[0\] lies on image -1"),
        ({"boxes": torch.tensor([[math.nan, 0, 0, 1, 1]])}, r"roi_pool: boxes\[0\] lies on image nan"),
        ({"boxes": [torch.zeros(3, 4)]}, r"roi_pool: boxes must be one \[R, 4\] per image, got 1 for 2"),
        ({"boxes": [torch.zeros(3, 4), torch.zeros(3, 5)]}, r"roi_pool: boxes\[1\] must be \[R, 4\], got \[3, 5\]"),
        ({"output_size": (0, 2)}, "roi_pool: output_size must be positive, got 0 x 2"),
        ({"spatial_scale": 0.0}, "roi_pool: spatial_scale must be positive, got 0"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    contract.refuses(ROI_POOL, "5 channels, contiguous", changes, message)


@formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0625, 0.3])
def test_values_and_gradients_have_torchvisions_bits(channels_last, dtype, scale):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    # relu, as before such pooling: many zeros are equal, and which one gets the gradient matters
    map = torch.randn(2, 35, 40, 50, generator=torch.Generator().manual_seed(3), dtype=dtype).relu()
    one, other = in_format(map, channels_last).clone().requires_grad_(), map.clone().requires_grad_()
    boxes = torch.cat([some_boxes(60, 2), some_boxes(60, 2, 1, 900.0), some_boxes(9, 1) * 30]).to(dtype)
    boxes[:, 0] %= 2
    result, expected = roi_pool(one, boxes, (7, 5), scale), torchvision.ops.roi_pool(other, boxes, (7, 5), scale)
    assert torch.equal(result, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4), dtype=dtype)
    result.backward(weights)
    expected.backward(weights)
    assert torch.equal(one.grad, other.grad)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    images=st.integers(1, 3),
    channels=st.integers(1, 40),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    bins=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    regions=st.integers(0, 12),
    dtype=st.sampled_from(contract.DTYPES),
    channels_last=st.booleans(),
    step=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_each_value_is_one_of_the_map_and_gradients_keep_their_sum(
    images, channels, height, width, bins, regions, dtype, channels_last, step, seed
):
    map = some_map(images, channels * step, height, width, seed=seed).to(dtype)
    map = in_format(map, channels_last)[:, ::step].detach().requires_grad_()
    boxes = some_boxes(regions, images, seed, extent=12.0).float()
    result = roi_pool(map, boxes, bins, 1.0)
    assert result.shape == (regions, channels, *bins)
    weights = some_map(*result.shape, seed=seed).to(dtype)
    grad = torch.autograd.grad(result, map, weights)[0]
    image = boxes[:, 0].long()
    empty = (result == 0).all(1, keepdim=True)
    found = (result[:, :, None] == map.detach()[image].flatten(2)[..., None, None]).any(2) if regions else result == 0
    assert (found | empty).all()
    picked = torch.autograd.grad(roi_pool(map, boxes, bins, 1.0).double().sum(), map)[0].sum().item()
    assert picked <= result.numel()
    # values are linear in the map for a fixed choice: the choice times the map gives the values back
    assert (grad.double() * map.double()).sum().item() == (weights.double() * result.double()).sum().item()
