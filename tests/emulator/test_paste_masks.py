import math

import pytest
import torch

from mrcnn_cli.ops import paste_masks_dense
from tests.emulator.emulation import ORDERS, call
from tests.ops.test_paste_masks import odd_boxes

FULL = [[-40.0, -40.0, 400.0, 400.0], [0.0, 0.0, 30.0, 9.0]]  # columns that join from top to bottom


def some_masks(size, height, width):
    random = torch.Generator().manual_seed(size)
    boxes = torch.cat([odd_boxes(height, width), torch.tensor(FULL, dtype=torch.float64)])
    masks = torch.rand(len(boxes), size, size, generator=random)
    masks[-2:] = masks[-2:] * 0.2 + 0.45
    masks[0, size // 2] = math.nan
    return masks, boxes


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("size", "height", "width"), [(1, 9, 30), (7, 40, 33), (28, 31, 140), (5, 1, 300)])
def test_edges_equal_the_cpus(emulated, size, height, width, order):
    emulated.set_order(order, size)
    masks, boxes = some_masks(size, height, width)
    for threshold in (0.5, 0.0, 0.8):
        expected, starts = torch.ops.mrcnn.paste_masks(masks, boxes, height, width, threshold, 40_000)
        total = int(starts[-1])
        for capacity in (total, total // 2):
            edges, found = torch.full((total,), -1, dtype=torch.int32), torch.full_like(starts, -1)
            arguments = (len(masks), size, height, width, threshold, capacity, found, edges)
            assert call(emulated.paste_edges, masks, boxes, *arguments) is None
            assert torch.equal(found, starts)
            assert torch.equal(edges[:capacity], expected[:capacity])
            assert (edges[capacity:] == -1).all()  # what does not fit is not written


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("size", "height", "width"), [(1, 9, 30), (7, 40, 33), (28, 70, 140)])
def test_whole_images_equal_the_cpus(emulated, size, height, width, order):
    emulated.set_order(order, size)
    masks, boxes = some_masks(size, height, width)
    images = torch.ones(len(masks), height, width, dtype=torch.bool)
    assert call(emulated.paste_dense, masks, boxes, len(masks), size, height, width, 0.5, images) is None
    assert torch.equal(images, paste_masks_dense(masks, boxes, (height, width)))


def test_more_masks_than_one_round_of_the_scan_are_placed(emulated):
    emulated.set_order(0, 1)
    masks, boxes = torch.ones(600, 1, 1), torch.tensor([[0.0, 0, 2, 2]], dtype=torch.float64).repeat(600, 1)
    boxes[::3] = -5.0
    expected, starts = torch.ops.mrcnn.paste_masks(masks, boxes, 3, 2, 0.5, 4000)
    edges, found = torch.zeros_like(expected), torch.zeros_like(starts)
    assert call(emulated.paste_edges, masks, boxes, 600, 1, 3, 2, 0.5, 4000, found, edges) is None
    assert torch.equal(found, starts)
    assert torch.equal(edges[: starts[-1]], expected[: starts[-1]])
