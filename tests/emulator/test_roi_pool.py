import math

import pytest
import torch

from mrcnn_cli.ops import roi_pool
from tests.emulator.emulation import ORDERS, call
from tests.ops.test_roi_pool import some_boxes, some_map

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
SCALE = 0.25


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def run(library, map, rois, pooled, places, *, backward):
    """Runs the launcher on channels-last memory; fills `pooled` and `places`, or the map from them."""
    return call(
        library.roi_pool,
        backward,
        TYPES[map.dtype],
        *map.shape,
        *pooled.shape[2:],
        SCALE,
        map,
        rois,
        len(rois),
        pooled,
        places,
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("dtype", "channels", "size"),
    [
        (torch.float32, 37, (4, 2)),
        (torch.float32, 3, (7, 7)),
        (torch.float64, 5, (2, 3)),
        (torch.float16, 8, (3, 3)),
        (torch.bfloat16, 33, (1, 2)),
    ],
)
def test_values_and_gradients_have_the_cpus_bits(emulated, dtype, channels, size, order):
    emulated.set_order(order, 3)
    map = channels_last(some_map(2, channels, 11, 14).to(dtype)).requires_grad_()
    rois = torch.cat([some_boxes(20, 2), some_boxes(4, 2, 1, 400.0)])
    rois = rois.to(torch.float64 if dtype == torch.float64 else torch.float32)
    expected = roi_pool(map, rois, size, SCALE)
    pooled = torch.full_like(expected, math.nan)
    places = torch.full_like(expected, -7, dtype=torch.int32)
    assert run(emulated, map, rois, pooled, places, backward=False) is None
    assert torch.equal(pooled, expected)
    wanted_places = torch.ops.mrcnn.roi_pool(map, rois, SCALE, *size, True)[1]
    assert torch.equal(places, wanted_places)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    weights = channels_last(weights)
    wanted = torch.autograd.grad(expected, map, weights)[0]
    grad = torch.full_like(map, math.nan)  # every pixel must be written
    assert run(emulated, grad, rois, weights, places, backward=True) is None
    assert torch.equal(grad, wanted)


def test_more_regions_than_one_round_of_a_block_are_gathered_in_their_order(emulated):
    map = channels_last(some_map(2, 3, 6, 10).float()).requires_grad_()
    rois = some_boxes(600, 2, 5, 30.0).float()
    expected = roi_pool(map, rois, 1, SCALE)
    places = torch.ops.mrcnn.roi_pool(map, rois, SCALE, 1, 1, True)[1]
    weights = channels_last(torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)))
    wanted = torch.autograd.grad(expected, map, weights)[0]
    for order in ORDERS:
        emulated.set_order(order, 2)
        grad = torch.full_like(map, math.nan)
        assert run(emulated, grad, rois, weights, places, backward=True) is None
        assert torch.equal(grad, wanted)


def test_a_region_of_no_image_gives_zeros_and_no_gradient(emulated):
    emulated.set_order(0, 1)
    map = channels_last(some_map(2, 4, 6, 5).float())
    rois = torch.tensor([[2.0, 0, 0, 30, 30], [-1, 0, 0, 30, 30], [math.nan, 0, 0, 30, 30], [1, math.nan, 0, 5, 5]])
    pooled = channels_last(torch.full((4, 4, 2, 2), math.nan))
    places = torch.zeros_like(pooled, dtype=torch.int32)
    assert run(emulated, map, rois, pooled, places, backward=False) is None
    assert torch.equal(pooled, torch.zeros_like(pooled))
    assert (places == -1).all()
    grad = torch.full_like(map, math.nan)
    assert run(emulated, grad, rois, torch.ones_like(pooled), places, backward=True) is None
    assert torch.equal(grad, torch.zeros_like(grad))
