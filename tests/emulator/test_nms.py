import ctypes
import math

import pytest
import torch

from mrcnn_cli.ops import nms_sorted
from tests.emulator.emulation import ORDERS, call
from tests.ops.test_nms import some_boxes


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 63, 64, 65, 200, 1000])
def test_nms_keeps_the_boxes_that_the_cpu_keeps(emulated, count, order):
    emulated.set_order(order, count)
    for dtype in (torch.float32, torch.float64):
        boxes = some_boxes(count).to(dtype)
        boxes[count // 2, 1] = math.nan
        function = emulated.nms_float if dtype == torch.float32 else emulated.nms_double
        for groups in (None, torch.arange(count) % 3):
            for threshold in (0.3, 0.7):
                expected = nms_sorted(boxes, threshold, groups)
                for mask_words in (1, 3000, 2**24):  # one row block at a time, a few, all
                    keep = torch.zeros(count, dtype=torch.bool)
                    failure = call(function, boxes, groups, count, threshold, keep, mask_words)
                    assert failure is None
                    assert torch.equal(keep, expected)


def test_nms_refuses_more_boxes_than_its_grid_can_hold(emulated):
    assert b"2147483647" in call(emulated.nms_too_many, torch.zeros(1, 4), 2**31)


def test_scratch_memory_does_not_grow_with_the_square_of_the_boxes(emulated):
    emulated.nms_scratch.restype = ctypes.c_int64
    megabytes = {n: 8 * emulated.nms_scratch(ctypes.c_int64(n)) / 2**20 for n in (1000, 32768, 400_000, 10_000_000)}
    assert megabytes[1000] < 0.2
    assert max(megabytes.values()) < 140
