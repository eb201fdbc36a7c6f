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
                keep = torch.zeros(count, dtype=torch.bool)
                failure = call(function, boxes, groups, count, threshold, keep)
                assert failure is None
                assert torch.equal(keep, nms_sorted(boxes, threshold, groups))


def test_nms_refuses_more_boxes_than_its_scan_can_hold(emulated):
    assert b"393216" in call(emulated.nms_too_many, torch.zeros(1, 4), 400_000)
