"""ps_roi_align, and what ps_roi_pool shares with it: everything but which pixels a bin takes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import ps_roi_align, ps_roi_pool, reference
from tests.ops import contract
from tests.ops.test_roi_pool import some_boxes

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
BINS = (4, 2)


def some_map(*size, seed=1, channels_last=False):
    map = torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return map.to(memory_format=torch.channels_last) if channels_last else map


def case(out=3, channels_last=False, size=(11, 14), boxes=7, output_size=BINS, **options):
    # bins of 1/2 and 1/4 of whole numbers, which float32 holds: the loop's float64 finds the same pixels
    arguments = {
        "input": some_map(2, out * math.prod(output_size), *size, channels_last=channels_last),
        "boxes": some_boxes(boxes, 2),
        "output_size": output_size,
        "spatial_scale": 0.25,
    }
    return lambda: {**arguments, **options}


def operator(function, loop, **ratios):
    cases = {
        f"{out} out, {layout}": case(out, channels_last, **ratios)
        for out in (1, 3, 8, 21)
        for layout, channels_last in (("contiguous", False), ("channels last", True))
    }
    cases["one bin"] = case(5, output_size=(1, 1), **ratios)
    cases["many bins, channels last"] = case(9, True, output_size=(2, 8), **ratios)
    return contract.Operator(
        function=function,
        reference=loop,
        cases=cases,
        values=("input",),
        tolerance=TOLERANCE,
        differentiable=("input",),
    )


ADAPTIVE = operator(ps_roi_align, reference.ps_roi_align)
TWO = operator(ps_roi_align, reference.ps_roi_align, sampling_ratio=2)
WHOLE = operator(ps_roi_pool, reference.ps_roi_pool)
every_operator = pytest.mark.parametrize(
    "operator", [ADAPTIVE, TWO, WHOLE], ids=["ps_roi_align, adaptive", "ps_roi_align, 2 samples", "ps_roi_pool"]
)
both = pytest.mark.parametrize("function", [ps_roi_align, ps_roi_pool])
every_case = pytest.mark.parametrize("name", WHOLE.cases)
formats = pytest.mark.parametrize("channels_last", [False, True])


def in_format(map, channels_last):
    return map.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def loop_of(function):
    return getattr(reference, function.__name__)


@every_operator
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_it_equals_the_loop(operator, name, dtype):
    contract.equals_the_loop(operator, name, dtype)


@both
@formats
def test_its_gradients_are_right(function, channels_last):
    boxes = some_boxes(5, 2)
    map = some_map(2, 12, 5, 6, channels_last=channels_last).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, boxes, (2, 3), 0.1), [map])
    assert torch.autograd.gradgradcheck(lambda x: function(x, boxes, (2, 3), 0.1), [map], fast_mode=True)


@every_operator
@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_gradients_of_every_type_equal_the_loops(operator, name, dtype):
    arguments = operator.arguments(name, dtype)
    map = arguments["input"].detach().requires_grad_()
    wide = map.detach().double().requires_grad_()
    result = operator.function(**{**arguments, "input": map})
    expected = operator.reference(**{**arguments, "input": wide})
    weights = some_map(*result.shape, seed=5).to(dtype)
    grad = torch.autograd.grad(result, map, weights)[0]
    wanted = torch.autograd.grad(expected, wide, weights.double())[0]
    assert grad.dtype == dtype
    torch.testing.assert_close(grad.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-5)


@every_operator
@formats
def test_opcheck_passes(operator, channels_last):
    contract.passes_opcheck(operator, f"3 out, {'channels last' if channels_last else 'contiguous'}")


@both
def test_it_compiles_whole(function):
    for name in ("3 out, contiguous", "3 out, channels last"):
        contract.compiles_whole(ADAPTIVE if function is ps_roi_align else WHOLE, name)


@every_operator
@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(operator, name, dtype):
    contract.same_bits_for_any_number_of_threads(operator, name, dtype)


@pytest.mark.gpu
@every_operator
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu(operator, name, dtype):
    contract.cuda_equals_cpu(operator, name, dtype)


@both
@formats
def test_every_bin_reads_a_channel_of_its_own(function, channels_last):
    # Each channel holds its own number all over, so the result says which one was read.
    map = in_format(torch.arange(24.0).reshape(1, 24, 1, 1).expand(1, 24, 9, 9), channels_last)
    result = function(map, torch.tensor([[0, 1, 1, 7.0, 7.0]]), (2, 4))
    assert torch.equal(result, torch.arange(24.0).reshape(1, 3, 2, 4))


@both
def test_the_result_and_the_gradient_keep_the_memory_format(function):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        map = some_map(2, 18, 12, 9).float().to(memory_format=memory_format).requires_grad_()
        result = function(map, some_boxes(4, 2).float(), 3, 0.25)
        result.sum().backward()
        assert result.is_contiguous(memory_format=memory_format)
        assert map.grad.is_contiguous(memory_format=memory_format)


@both
def test_any_strides_are_taken(function):
    wide, boxes = some_map(2, 24, 12, 18).float(), some_boxes(5, 2).float()
    for map in (wide[:, ::2], wide[..., 1::2], wide.transpose(2, 3), wide[:, :1].expand(2, 12, 12, 18)):
        leaf, dense = map.detach().requires_grad_(), map.contiguous().requires_grad_()
        result, expected = function(leaf, boxes, (2, 3), 0.25), function(dense, boxes, (2, 3), 0.25)
        assert torch.equal(result, expected)
        weights = some_map(3, 2, *result.shape[:2]).float().permute(2, 3, 1, 0)
        one, other = torch.autograd.grad(result, leaf, weights)[0], torch.autograd.grad(expected, dense, weights)[0]
        assert torch.equal(one, other)


@both
def test_both_memory_formats_have_the_same_bits(function):
    map, boxes = some_map(2, 6 * 11, 10, 13).float(), some_boxes(9, 2).float()
    one, other = map.clone().requires_grad_(), in_format(map, True).clone().requires_grad_()
    results = [function(x, boxes, (2, 3), 0.25) for x in (one, other)]
    assert torch.equal(*results)
    weights = some_map(*results[0].shape, seed=8).float()
    grads = [torch.autograd.grad(result, x, weights)[0] for result, x in zip(results, (one, other), strict=True)]
    assert torch.equal(*grads)


@both
def test_a_list_of_boxes_per_image_means_the_same_as_rows_with_an_index(function):
    map, boxes = some_map(2, 9, 12, 12).float(), some_boxes(6, 2).float()
    rows = boxes[boxes[:, 0].argsort(stable=True)]
    lists = [rows[rows[:, 0] == image, 1:] for image in range(2)]
    assert torch.equal(function(map, lists, 3, 0.25), function(map, rows, 3, 0.25))


@both
@formats
def test_nothing_in_gives_nothing_or_zeros_out(function, channels_last):
    map = in_format(some_map(2, 8, 6, 6).float(), channels_last).requires_grad_()
    result = function(map, torch.zeros(0, 5), 2)
    assert result.shape == (0, 2, 2, 2)
    result.sum().backward()
    assert torch.equal(map.grad, torch.zeros_like(map))
    assert function(torch.zeros(0, 8, 6, 6), [], 2).shape == (0, 2, 2, 2)
    assert function(torch.zeros(1, 0, 6, 6), torch.zeros(2, 5), 7).shape == (2, 0, 7, 7)
    for size in ((0, 6), (6, 0), (0, 0)):
        empty = in_format(torch.zeros(1, 8, *size), channels_last).requires_grad_()
        result = function(empty, torch.tensor([[0, 0, 0, 5.0, 5.0]]), 2)
        assert torch.equal(result, torch.zeros(1, 2, 2, 2))
        result.sum().backward()
        assert empty.grad.shape == empty.shape


ODD = [
    [3, 3, 3, 3],  # no area
    [8, 9, 3, 2],  # inverted
    [-500, -500, -400, -400],  # outside of the image
    [-30, -30, 90, 90],  # larger than the image
    [0, 0, 0.001, 60],
    [math.nan, 0, 5, 5],
    [0, 0, math.nan, 5],
    [0, 0, math.inf, 5],
    [-math.inf, -math.inf, math.inf, math.inf],
]


@every_operator
@formats
def test_odd_boxes_stay_finite_and_agree_with_the_loop(operator, channels_last):
    options = {"sampling_ratio": 2} if operator is TWO else {}
    rois = torch.tensor([[0, *box] for box in ODD], dtype=torch.float32)
    map = some_map(1, 16, 13, 15, channels_last=channels_last).float().requires_grad_()
    result = operator.function(map, rois, BINS, 0.25, **options)
    expected = operator.reference(map, rois, BINS, 0.25, **options)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=3e-6)
    result.sum().backward()
    assert map.grad.isfinite().all()


@both
def test_boxes_far_larger_than_their_map_take_no_time_for_what_lies_outside(function):
    rois = torch.tensor(
        [[0, -1e8, -1e8, 1e8, 1e8], [0, -1e9, 2, 1e9, 3], [0, 1e30, 0, 2e30, 5], [0, -2e38, 0, 2e38, 5]]
    )
    map = torch.ones(1, 49, 10, 10, requires_grad=True)
    result = function(map, rois, 7)
    assert result.isfinite().all()
    result.sum().backward()
    assert map.grad.isfinite().all()


@both
def test_nan_stays_in_the_bins_that_hold_it(function):
    map = torch.ones(1, 8, 9, 9)
    map[0, 5, 4, 4] = math.nan
    result = function(map, torch.tensor([[0, 0, 0, 8.0, 8.0], [0, 0, 0, 2.0, 2.0]]), (2, 2))
    # channel 5 is read by bin 0, 1 of channel 1, which does not hold pixel 4, 4 or only its lower left corner
    assert not result[1].isnan().any()
    assert not result[0, 0].isnan().any()


def test_autocast_leaves_the_type_alone():
    map, boxes = some_map(1, 16, 20, 20).bfloat16(), torch.tensor([[0, 101.3, 57.7, 300.9, 250.1]])
    for function in (ps_roi_align, ps_roi_pool):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = function(map, boxes, 4, 1 / 16)
        assert torch.equal(inside, function(map, boxes, 4, 1 / 16))
        assert inside.dtype == torch.bfloat16


@both
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.zeros(3, 4, 5)}, r"input must be \[N, C, H, W\], got \[3, 4, 5\]"),
        ({"input": torch.zeros(1, 8, 2, 2).int()}, "input must be floating point, got Int"),
        ({"input": torch.zeros(2, 12, 2, 2)}, r"input must have a multiple of 4 x 2 channels, .* got \[2, 12, 2, 2\]"),
        ({"boxes": torch.zeros(3, 4)}, r"boxes must be \[R, 5\].*got \[3, 4\]"),
        ({"boxes": torch.zeros(3, 5).int()}, "boxes must be floating point, got Int"),
        ({"boxes": torch.tensor([[2.0, 0, 0, 1, 1]])}, r"boxes\[0\] lies on image 2, .* holds 2"),
        ({"boxes": torch.tensor([[math.nan, 0, 0, 1, 1]])}, r"boxes\[0\] lies on image nan"),
        ({"boxes": [torch.zeros(3, 4)]}, r"boxes must be one \[R, 4\] per image, got 1 for 2"),
        ({"output_size": (0, 2)}, "output_size must be positive, got 0 x 2"),
        ({"spatial_scale": 0.0}, "spatial_scale must be positive, got 0"),
    ],
)
def test_a_wrong_argument_is_named(function, changes, message):
    operator = ADAPTIVE if function is ps_roi_align else WHOLE
    contract.refuses(operator, "3 out, contiguous", changes, f"{function.__name__}: {message}")


@formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampling_ratio", [-1, 1, 2, 3])
def test_it_agrees_with_torchvision(channels_last, dtype, sampling_ratio):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    map = some_map(2, 35 * 3, 40, 50).to(dtype)
    one, other = in_format(map, channels_last).clone().requires_grad_(), map.clone().requires_grad_()
    boxes = torch.cat([some_boxes(60, 2), some_boxes(60, 2, 1, 900.0)]).to(dtype)
    result = ps_roi_align(one, boxes, (7, 5), 0.0625, sampling_ratio)
    expected = torchvision.ops.ps_roi_align(other, boxes, (7, 5), 0.0625, sampling_ratio)
    precision = 10 * torch.finfo(dtype).eps
    torch.testing.assert_close(result, expected, rtol=0, atol=precision)
    weights = some_map(*expected.shape, seed=9).to(dtype)
    result.backward(weights)
    expected.backward(weights)
    torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=10 * precision)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    function=st.sampled_from([ps_roi_align, ps_roi_pool]),
    images=st.integers(1, 3),
    out=st.integers(1, 10),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    bins=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    regions=st.integers(0, 12),
    dtype=st.sampled_from(contract.DTYPES),
    channels_last=st.booleans(),
    step=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_it_is_linear_and_its_gradient_is_the_transpose(
    function, images, out, height, width, bins, regions, dtype, channels_last, step, seed
):
    channels = out * bins[0] * bins[1]
    map = in_format(some_map(images, channels * step, height, width, seed=seed).to(dtype), channels_last)[:, ::step]
    map = map.detach().requires_grad_()
    boxes = some_boxes(regions, images, seed, extent=12.0).float()
    result = function(map, boxes, bins, 1.0)
    assert result.shape == (regions, out, *bins)
    weights = some_map(*result.shape, seed=seed + 1).to(dtype)
    grad = torch.autograd.grad(result, map, weights)[0]
    one, other = (weights.double() * result.double()).sum(), (grad.double() * map.double()).sum()
    size = (weights.double() * result.double()).abs().sum() + (grad.double() * map.double()).abs().sum() + 1
    assert abs(one - other) <= 2 * torch.finfo(dtype).eps * size
    assert torch.equal(function(torch.zeros_like(map), boxes, bins, 1.0), torch.zeros_like(result))
