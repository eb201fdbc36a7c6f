import math

import pytest
import torch

from tests.emulator.emulation import ORDERS, call
from tests.ops.test_box_iou import some_boxes

FUNCTIONS = {torch.float32: "box_overlaps_float", torch.float64: "box_overlaps_double"}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", FUNCTIONS)
@pytest.mark.parametrize("measure", range(4))
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (70, 33), (5, 300)])
def test_overlaps_of_all_pairs_equal_the_cpus(emulated, rows, columns, measure, dtype, order):
    emulated.set_order(order, rows)
    function = getattr(emulated, FUNCTIONS[dtype])
    boxes1, boxes2 = some_boxes(rows, 1).to(dtype), some_boxes(columns, 2).to(dtype)
    expected = torch.ops.mrcnn.box_overlaps(boxes1, boxes2, measure)
    # The loss has no number added to its divisors here: neither has the CPU's.
    result = torch.full_like(expected, math.nan)
    assert call(function, measure, None, boxes1, rows, boxes2, columns, 0.0, result, None) is None
    assert torch.equal(result, expected)
    weights = torch.linspace(-1, 1, rows * columns, dtype=dtype).reshape(rows, columns)
    grads = [torch.full_like(boxes, math.nan) for boxes in (boxes1, boxes2)]
    assert call(function, measure, weights, boxes1, rows, boxes2, columns, 0.0, *grads) is None
    for own, wanted in zip(grads, torch.ops.mrcnn.box_overlaps_backward(weights, boxes1, boxes2, measure), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", FUNCTIONS)
@pytest.mark.parametrize("measure", range(4))
def test_overlaps_box_by_box_equal_the_cpus_to_the_bit(emulated, measure, dtype):
    emulated.set_order(0, 1)
    function = getattr(emulated, FUNCTIONS[dtype])
    boxes1, boxes2 = some_boxes(300, 1).to(dtype), some_boxes(300, 2).to(dtype)
    boxes1[4, 2] = math.nan
    boxes1[5] = boxes2[5]
    expected = torch.ops.mrcnn.paired_box_overlaps(boxes1, boxes2, measure, 1e-7)
    result = torch.zeros_like(expected)
    assert call(function, measure, None, boxes1, 300, boxes2, -1, 1e-7, result, None) is None
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    weights = torch.linspace(-1, 1, 300, dtype=dtype)
    grads = [torch.zeros_like(boxes) for boxes in (boxes1, boxes2)]
    assert call(function, measure, weights, boxes1, 300, boxes2, -1, 1e-7, *grads) is None
    wanted = torch.ops.mrcnn.paired_box_overlaps_backward(weights, boxes1, boxes2, measure, 1e-7)
    for own, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0, equal_nan=True)
