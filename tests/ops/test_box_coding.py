import math

import pytest
import torch

from mrcnn_cli.ops import decode, encode
from mrcnn_cli.ops.box_coding import clip_boxes


def some_boxes(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random, dtype=torch.float64) * 100
    return torch.cat([corner, corner + torch.rand(count, 2, generator=random, dtype=torch.float64) * 50 + 1], 1)


def test_encode_follows_the_papers_formula():
    box, anchor = [10.0, 20.0, 50.0, 100.0], [0.0, 10.0, 30.0, 50.0]
    width, height, anchor_width, anchor_height = 40.0, 80.0, 30.0, 40.0
    expected = [
        10 * (30.0 - 15.0) / anchor_width,
        10 * (60.0 - 30.0) / anchor_height,
        5 * math.log(width / anchor_width),
        5 * math.log(height / anchor_height),
    ]
    deltas = encode(torch.tensor([box]), torch.tensor([anchor]), (10.0, 10.0, 5.0, 5.0))
    torch.testing.assert_close(deltas, torch.tensor([expected]))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decode_undoes_encode(weights):
    boxes, anchors = some_boxes(50, 1), some_boxes(50, 2)
    torch.testing.assert_close(decode(encode(boxes, anchors, weights), anchors, weights), boxes)


def test_decode_clamps_wild_sizes_from_above_only():
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    wide = decode(torch.tensor([[0.0, 0.0, 50.0, 0.0]]), anchor)
    assert (wide[0, 2] - wide[0, 0]).item() == pytest.approx(1000.0)
    narrow = decode(torch.tensor([[0.0, 0.0, -50.0, 0.0]]), anchor)
    assert 0 <= (narrow[0, 2] - narrow[0, 0]).item() < 1e-6


def test_decode_broadcasts_one_anchor_over_classes():
    anchors, deltas = some_boxes(4).float(), torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(0))
    every = decode(deltas, anchors[:, None])
    for k in range(3):
        torch.testing.assert_close(every[:, k], decode(deltas[:, k], anchors))


def test_coding_has_right_gradients():
    deltas = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    anchors = some_boxes(5)
    assert torch.autograd.gradcheck(lambda d: decode(d, anchors, (10.0, 10.0, 5.0, 5.0)), (deltas,))


def test_clip_keeps_boxes_inside_of_the_image():
    boxes = torch.tensor([[-5.0, 3.0, 20.0, 300.0], [1.0, 2.0, 3.0, 4.0]])
    assert clip_boxes(boxes, (100, 10)).tolist() == [[0.0, 3.0, 10.0, 100.0], [1.0, 2.0, 3.0, 4.0]]
