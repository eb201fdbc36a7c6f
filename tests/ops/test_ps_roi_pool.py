"""What is ps_roi_pool's own; the rest is tested beside ps_roi_align."""

import pytest
import torch

from mrcnn_cli.ops import ps_roi_pool
from tests.ops.test_ps_roi_align import formats, in_format, some_boxes, some_map


def both_sides(map, boxes, output_size, scale, channels_last):
    """Values and gradients of ours and of torchvision's."""
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    one, other = in_format(map, channels_last).clone().requires_grad_(), map.clone().requires_grad_()
    result = ps_roi_pool(one, boxes, output_size, scale)
    expected = torchvision.ops.ps_roi_pool(other, boxes, output_size, scale)
    weights = some_map(*expected.shape, seed=9).to(map.dtype)
    result.backward(weights)
    expected.backward(weights)
    return result, expected, one.grad, other.grad


@formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0625, 0.3])
def test_values_have_torchvisions_bits(channels_last, dtype, scale):
    boxes = torch.cat([some_boxes(60, 2), some_boxes(60, 2, 1, 900.0), some_boxes(9, 1) * 30]).to(dtype)
    boxes[:, 0] %= 2
    result, expected, _, _ = both_sides(some_map(2, 35 * 3, 40, 50).to(dtype), boxes, (7, 5), scale, channels_last)
    assert torch.equal(result, expected)


@formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_have_torchvisions_bits_inside_the_map(channels_last, dtype):
    boxes = some_boxes(80, 2, extent=500.0).to(dtype)
    boxes[:, 1:] = boxes[:, 1:].clamp(max=600)  # of 640 x 800 pixels
    _, _, grad, wanted = both_sides(some_map(2, 35 * 3, 40, 50).to(dtype), boxes, (7, 5), 0.0625, channels_last)
    assert torch.equal(grad, wanted)


@formats
def test_the_last_row_and_column_of_the_map_belong_to_no_bin(channels_last):
    map = torch.zeros(1, 4, 8, 8)
    map[:, :, 7] = map[:, :, :, 7] = 100
    map = in_format(map, channels_last).requires_grad_()
    result = ps_roi_pool(map, torch.tensor([[0, 0, 0, 9.0, 9.0]]), 2)
    assert torch.equal(result, torch.zeros(1, 1, 2, 2))
    grad = torch.autograd.grad(result.sum(), map)[0]
    assert not grad[:, :, 7].any()
    assert not grad[..., 7].any()
    torch.testing.assert_close(grad.sum().item(), 4.0)  # each bin is a mean
