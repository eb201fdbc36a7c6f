import math

import pytest
import torch

from mrcnn_cli.ops import batched_nms, box_voting
from mrcnn_cli.ops.box_voting import METHODS
from tests.emulator.emulation import ORDERS, call
from tests.ops.test_nms import some_boxes, some_scores


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 31, 200])
@pytest.mark.parametrize("method", METHODS)
def test_box_voting_equals_the_cpu(emulated, method, count, order):
    emulated.set_order(order, count)
    for dtype in (torch.float32, torch.float64):
        function = emulated.box_voting_float if dtype == torch.float32 else emulated.box_voting_double
        boxes, scores = some_boxes(count, clusters=count // 25 + 1).to(dtype), some_scores(count).to(dtype)
        boxes[count // 2, 1] = math.nan
        for idxs in (None, torch.arange(count) % 3):
            keep = batched_nms(boxes, scores, torch.zeros(count).long() if idxs is None else idxs, 0.5)
            voted = torch.full((len(keep), 4), math.nan, dtype=dtype)
            left = torch.full((len(keep),), math.nan, dtype=dtype)
            failure = call(
                function, boxes, scores, idxs, count, keep, len(keep), 0.25, METHODS[method], 2.0, voted, left
            )
            assert failure is None
            # which boxes vote is the same; their float64 sums are made in another order
            expected_boxes, expected_scores = box_voting(boxes, scores, keep, 0.25, method, 2.0, idxs)
            rounding = 4 * torch.finfo(dtype).eps
            torch.testing.assert_close(voted, expected_boxes, rtol=rounding, atol=256 * rounding, equal_nan=True)
            torch.testing.assert_close(left, expected_scores, rtol=rounding, atol=rounding, equal_nan=True)


def test_a_kept_index_of_no_box_gives_nan_and_touches_nothing_else(emulated):
    emulated.set_order(0, 1)
    boxes, scores, keep = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0.5]), torch.tensor([1, 0, -1])
    voted, left = torch.zeros(3, 4), torch.zeros(3)
    assert call(emulated.box_voting_float, boxes, scores, None, 1, keep, 3, 0.5, 0, 1.0, voted, left) is None
    assert voted.isnan().all(1).tolist() == left.isnan().tolist() == [True, False, True]
    assert voted[1].tolist() == [0, 0, 9, 9]
