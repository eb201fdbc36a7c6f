"""What the emulated ps_roi_align and ps_roi_pool must satisfy."""

import ctypes
import math

import torch

from tests.emulator.emulation import ORDERS, array, call
from tests.ops.test_ps_roi_align import in_format, some_boxes, some_map

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
SCALE = 0.25
CASES = [
    (torch.float32, 5, (3, 2)),
    (torch.float32, 1, (7, 7)),
    (torch.float64, 4, (2, 3)),
    (torch.float16, 8, (3, 3)),
    (torch.bfloat16, 3, (1, 2)),
]


def run(launcher, map, rois, pooled, channels_last, *, backward):
    """Runs the launcher; fills `pooled`, or the map from it."""
    sizes = [map.shape[0], pooled.shape[1], *map.shape[2:], *pooled.shape[2:], 0, channels_last, len(rois)]
    return call(launcher, backward, TYPES[map.dtype], array(ctypes.c_int64, sizes), SCALE, map, rois, pooled)


def equals_the_cpu(launcher, function, dtype, out, size, channels_last):
    map = some_map(2, out * size[0] * size[1], 19, 23).to(dtype)  # two blocks of pixels, the second not full
    map = in_format(map, channels_last).requires_grad_()
    rois = torch.cat([some_boxes(20, 2), some_boxes(4, 2, 1, 400.0)])
    rois[3, 1:] = torch.tensor([-1e7, 3, 1e7, 40])
    rois = rois.to(torch.float64 if dtype == torch.float64 else torch.float32)
    expected = function(map, rois, size, SCALE)
    pooled = torch.full_like(expected, math.nan)
    assert run(launcher, map, rois, pooled, channels_last, backward=False) is None
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(pooled, expected, rtol=rounding, atol=8 * rounding)
    weights = in_format(some_map(*expected.shape, seed=2).to(dtype), channels_last)
    wanted = torch.autograd.grad(expected, map, weights)[0]
    grad = torch.full_like(map, math.nan)  # every pixel must be written
    assert run(launcher, grad, rois, weights, channels_last, backward=True) is None
    torch.testing.assert_close(grad, wanted, rtol=rounding, atol=16 * rounding)


def gathers_in_order(emulated, launcher, function):
    map = some_map(2, 6, 8, 9).float().requires_grad_()
    rois = some_boxes(600, 2, 5, 30.0).float()
    expected = function(map, rois, (1, 2), SCALE)
    weights = some_map(*expected.shape, seed=2).float()
    wanted = torch.autograd.grad(expected, map, weights)[0]
    grads = []
    for order in ORDERS:
        emulated.set_order(order, 2)
        grads.append(torch.full_like(map, math.nan))
        assert run(launcher, grads[-1], rois, weights, False, backward=True) is None
    torch.testing.assert_close(grads[0], wanted, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(grad, grads[0]) for grad in grads)


def gives_zeros_for_no_image(launcher):
    map = some_map(2, 16, 6, 5).float()
    rois = torch.tensor([[2.0, 0, 0, 30, 30], [-1, 0, 0, 30, 30], [math.nan, 0, 0, 30, 30], [1, math.nan, 0, 5, 5]])
    pooled = torch.full((4, 4, 2, 2), math.nan)
    assert run(launcher, map, rois, pooled, False, backward=False) is None
    assert torch.equal(pooled, torch.zeros_like(pooled))
    grad = torch.full_like(map, math.nan)
    assert run(launcher, grad, rois, torch.ones_like(pooled), False, backward=True) is None
    assert torch.equal(grad, torch.zeros_like(grad))
