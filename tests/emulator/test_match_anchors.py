import math

import pytest
import torch

from mrcnn_cli.ops import match_anchors
from tests.emulator.emulation import ORDERS, call
from tests.ops.test_match_anchors import boxes_on_a_grid


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize(("count", "objects"), [(1, 1), (31, 0), (300, 7), (1000, 65)])
def test_matches_equal_the_cpus(emulated, count, objects, allow_low_quality, order):
    emulated.set_order(order, count)
    for dtype in (torch.float32, torch.float64):
        anchors, boxes = (
            boxes_on_a_grid(count, 1, extent=60).to(dtype),
            boxes_on_a_grid(objects, 2, extent=60).to(dtype),
        )
        crowds = boxes_on_a_grid(5, 3, extent=60).to(dtype)
        if objects > 1:
            anchors[0, 1] = boxes[0, 0] = math.nan
            boxes[1, 2:] = boxes[1, :2]
        function = emulated.match_anchors_float if dtype == torch.float32 else emulated.match_anchors_double
        # With the objects that overlap nothing, and without them
        for chosen in (boxes, boxes[2:]):
            for ignore in (None, crowds):
                matched = torch.full((count,), -9, dtype=torch.int64)
                crowd_count = 0 if ignore is None else len(ignore)
                rest = (0.25, 0.5, 0.7, allow_low_quality, matched)
                failure = call(function, anchors, count, chosen, len(chosen), ignore, crowd_count, *rest)
                assert failure is None
                assert torch.equal(matched, match_anchors(anchors, chosen, 0.25, 0.5, allow_low_quality, ignore))


def test_objects_that_are_all_nan_match_nothing(emulated):
    emulated.set_order(0, 1)
    anchors, boxes = boxes_on_a_grid(40, 1).float(), torch.full((3, 4), math.nan)
    matched = torch.full((40,), -9, dtype=torch.int64)
    failure = call(emulated.match_anchors_float, anchors, 40, boxes, 3, None, 0, 0.3, 0.7, 0.7, True, matched)
    assert failure is None
    assert matched.tolist() == [-1] * 40
