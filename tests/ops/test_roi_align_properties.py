"""What holds of roi_align for every shape, stride, type and box."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import multilevel_roi_align, reference, roi_align

# Values are at most one. float32: a position may be off by a few units in the last place of its coordinate.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
some_examples = settings(deadline=None, derandomize=True, max_examples=100, database=None)
layouts = st.sampled_from(["contiguous", "channels last", "transposed", "every other channel", "cut from a larger map"])


def coordinates(offset):
    """Inside of, across and far outside of the maps; the offset keeps samples off the edge where they stop counting."""
    return st.integers(-200, 900).map(lambda step: step / 6 + offset)


@st.composite
def some_rois(draw, images, most=5):
    """[R, 5] regions, some without area, some inverted."""
    rows = []
    for _ in range(draw(st.integers(0, most))):
        low = [draw(coordinates(0.0137)), draw(coordinates(0.0237))]
        if draw(st.booleans()):
            high = [low[0] + draw(st.integers(0, 300)) / 7, low[1] + draw(st.integers(0, 300)) / 7]
        else:
            high = [draw(coordinates(0.0291)), draw(coordinates(0.0391))]
        rows.append([draw(st.integers(0, images - 1)), *low, *high])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)


@st.composite
def pooling(draw):
    return {
        "output_size": (draw(st.integers(1, 5)), draw(st.integers(1, 5))),
        "sampling_ratio": draw(st.integers(-1, 4)),
        "aligned": draw(st.booleans()),
    }


def laid_out(map, layout):
    """The same numbers, elsewhere in memory."""
    if layout == "channels last":
        return map.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return map.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "every other channel":
        wide = torch.full((map.shape[0], 2 * map.shape[1], *map.shape[2:]), math.nan, dtype=map.dtype)
        wide[:, ::2] = map
        return wide[:, ::2]
    if layout == "cut from a larger map":
        wide = torch.full((*map.shape[:2], map.shape[2] + 3, map.shape[3] + 2), math.nan, dtype=map.dtype)
        wide[:, :, 1:-2, 2:] = map
        return wide[:, :, 1:-2, 2:]
    return map.contiguous()


def some_map(size, seed):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


@some_examples
@given(
    st.data(),
    st.integers(1, 2),
    st.integers(1, 20),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from(list(TOLERANCE)),
    layouts,
    pooling(),
    st.sampled_from([1.0, 0.5, 0.25, 0.125]),
)
def test_any_call_equals_the_loop(data, images, channels, height, width, dtype, layout, how, scale):
    rois = data.draw(some_rois(images)).to(torch.float64 if dtype == torch.float64 else torch.float32)
    map = laid_out(some_map((images, channels, height, width), height * 100 + width).to(dtype), layout)
    result = roi_align(map, rois, spatial_scale=scale, **how)
    assert result.dtype == dtype
    expected = reference.roi_align(map, rois.double(), spatial_scale=scale, **how)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@some_examples
@given(st.data(), st.integers(1, 2), st.integers(1, 40), layouts, st.integers(1, 3), pooling())
def test_the_gradient_is_the_transpose(data, images, channels, layout, levels, how):
    # Both are linear, and <A x, g> = <x, A^T g> for all x and g makes one the transpose of the other.
    rois = data.draw(some_rois(images, most=12))
    maps = [some_map((images, channels, 16 >> level, 18 >> level), level) for level in range(levels)]
    maps = [laid_out(map, layout).requires_grad_() for map in maps]
    scales = [0.25 / 2**level for level in range(levels)]
    result = multilevel_roi_align(maps, rois, spatial_scales=scales, canonical_size=30, canonical_level=3, **how)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad(result, maps, weights)
    other = [some_map(map.shape, 10 + level) for level, map in enumerate(maps)]
    moved = multilevel_roi_align(other, rois, spatial_scales=scales, canonical_size=30, canonical_level=3, **how)
    forward = (moved * weights).sum()
    backward = sum((map * grad).sum() for map, grad in zip(other, grads, strict=True))
    torch.testing.assert_close(forward, backward, rtol=1e-10, atol=1e-10)


@some_examples
@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans(), pooling(), st.randoms())
def test_a_region_does_not_depend_on_the_others(data, dtype, channels_last, how, random):
    rois = data.draw(some_rois(2, most=12)).float()
    maps = [some_map((2, 20, 16 >> level, 18 >> level), level).to(dtype) for level in range(2)]
    maps = [laid_out(map, "channels last" if channels_last else "contiguous") for map in maps]
    options = {"spatial_scales": [0.25, 0.125], "canonical_size": 30, "canonical_level": 3, **how}
    together = multilevel_roi_align(maps, rois, **options)
    order = list(range(len(rois)))
    random.shuffle(order)
    assert torch.equal(multilevel_roi_align(maps, rois[order], **options), together[order])
    for region in order[:2]:
        alone = multilevel_roi_align(maps, rois[region : region + 1], **options)
        assert torch.equal(alone, together[region : region + 1])


@some_examples
@given(st.data(), st.integers(1, 30), st.booleans(), pooling(), st.sampled_from([1.0, 0.5, 0.3, 1 / 16]))
def test_any_finite_boxes_agree_with_torchvision(data, channels, channels_last, how, scale):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    number = st.floats(-300, 300, width=32)
    rois = data.draw(st.lists(st.tuples(st.integers(0, 1), number, number, number, number), max_size=8))
    rois = torch.tensor(rois, dtype=torch.float32).reshape(-1, 5)
    if how["sampling_ratio"] <= 0:  # torchvision's CPU kernel asks for a negative amount of memory for an inverted box
        rois = torch.cat([rois[:, :1], torch.minimum(rois[:, 1:3], rois[:, 3:]), rois[:, 1:].view(-1, 2, 2).amax(1)], 1)
    map = some_map((2, channels, 13, 17), 3).float()
    leaf = laid_out(map, "channels last" if channels_last else "contiguous").requires_grad_()
    oracle = map.detach().clone().requires_grad_()
    result = roi_align(leaf, rois, spatial_scale=scale, **how)
    expected = torchvision.ops.roi_align(oracle, rois, spatial_scale=scale, **how)
    # The bound of the docstring: no sample may be judged or placed otherwise, so only sums are rounded otherwise.
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)
    weights = torch.ones_like(expected)
    result.backward(weights)
    expected.backward(weights)
    size = max(1.0, oracle.grad.abs().max().item() if len(rois) else 0.0)
    torch.testing.assert_close(leaf.grad, oracle.grad, rtol=0, atol=4e-6 * size)


def large_call(channels, dtype=torch.float32):
    """Maps and boxes whose pooled values and gradients are larger than the caches, and are written past them."""
    maps = [some_map((1, channels, 200 >> level, 220 >> level), level).to(dtype) for level in range(2)]
    maps = [map.to(memory_format=torch.channels_last) for map in maps]
    random = torch.Generator().manual_seed(2)
    corner = torch.rand(100, 2, generator=random) * 700
    sides = 10 + torch.rand(100, 2, generator=random) ** 3 * 300
    rois = torch.cat([torch.zeros(100, 1), corner, corner + sides], 1)
    return maps, rois


def pooled_and_gradient(maps, rois, weights):
    leaves = [map.detach().clone(memory_format=torch.preserve_format).requires_grad_() for map in maps]
    result = multilevel_roi_align(leaves, rois, 14, [1 / 4, 1 / 8], 2, canonical_level=3)
    return [result, *torch.autograd.grad(result, leaves, weights)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_results_written_past_the_caches_are_the_same_to_the_bit(dtype):
    # Channels know nothing of each other, so the same call with a sixteenth of them, which is small, gives the same.
    channels = 128 if dtype == torch.float32 else 256
    maps, rois = large_call(channels, dtype)
    weights = some_map((100, channels, 14, 14), 9).to(dtype).to(memory_format=torch.channels_last)
    few = slice(16, 16 + channels // 16)
    part = [map[:, few].contiguous(memory_format=torch.channels_last) for map in maps]
    small = pooled_and_gradient(part, rois, weights[:, few])
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            large = pooled_and_gradient(maps, rois, weights)
            assert large[0].nbytes >= 8 << 20
            assert sum(grad.nbytes for grad in large[1:]) >= 8 << 20
            for one, other in zip(large, small, strict=True):
                assert torch.equal(one[:, few], other)
    finally:
        torch.set_num_threads(threads)


def test_channels_that_do_not_fill_a_vector_are_written_past_the_caches_too():
    maps, rois = large_call(100)
    weights = some_map((100, 100, 14, 14), 9).float().to(memory_format=torch.channels_last)
    large = pooled_and_gradient(maps, rois, weights)
    few = slice(96, 100)
    part = [map[:, few].contiguous(memory_format=torch.channels_last) for map in maps]
    for one, other in zip(large, pooled_and_gradient(part, rois, weights[:, few]), strict=True):
        assert torch.equal(one[:, few], other)


def test_an_infinite_gradient_stays_where_its_bin_lies():
    for channels_last in (False, True):
        map = torch.zeros(1, 8, 20, 20, requires_grad=True)
        taken = map.contiguous(memory_format=torch.channels_last) if channels_last else map
        result = roi_align(taken, torch.tensor([[0.0, 1, 1, 15, 15]]), 7, 1.0, 2)
        weights = torch.ones_like(result)
        weights[0, :, 3, 3] = math.inf
        result.backward(weights)
        touched = map.grad.isfinite().logical_not()[0, 0].nonzero()
        assert touched.min() >= 7
        assert touched.max() <= 9
