import math

import pytest
import torch

from mrcnn_cli.ops import soft_nms_scores
from mrcnn_cli.ops.soft_nms import METHODS
from tests.emulator.emulation import ORDERS, call
from tests.ops.test_nms import some_boxes, some_scores


def leaves_the_same_bits(emulated, method, count, order, dtypes=(torch.float32, torch.float64)):
    emulated.set_order(order, count)
    for dtype in dtypes:
        function = emulated.soft_nms_float if dtype == torch.float32 else emulated.soft_nms_double
        boxes = some_boxes(count, clusters=count // 12 + 1).to(dtype)
        scores = some_scores(count, distinct=max(count // 2, 2)).to(dtype)
        boxes[count // 2, 1] = scores[count // 3] = math.nan
        for idxs in (None, torch.randint(-2, 5, (count,), generator=torch.Generator().manual_seed(1))):
            places, groups = (None, None) if idxs is None else (idxs.sort(stable=True).indices, idxs.sort().values)
            result = torch.full((count,), math.nan, dtype=dtype)  # every score must be written
            failure = call(function, boxes, scores, places, groups, count, METHODS[method], 0.3, 0.4, 0.01, result)
            assert failure is None
            expected = soft_nms_scores(boxes, scores, 0.3, method, 0.4, 0.01, idxs)
            assert torch.equal(result, expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 31, 130])
@pytest.mark.parametrize("method", METHODS)
def test_soft_nms_leaves_the_bits_that_the_cpu_leaves(emulated, method, count, order):
    leaves_the_same_bits(emulated, method, count, order)


def test_it_does_so_for_more_boxes_than_a_block_has_threads(emulated):
    leaves_the_same_bits(emulated, "hard", 530, 2, (torch.float32,))
