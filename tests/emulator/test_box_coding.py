import ctypes
import math

import pytest
import torch

from mrcnn_cli.ops import clip_boxes, decode, encode
from tests.emulator.emulation import ORDERS, array, call
from tests.ops.test_box_coding import WEIGHTS, some_boxes, some_deltas

ENCODE, ENCODE_BACKWARD, DECODE, DECODE_BACKWARD, CLIP, CLIP_BACKWARD = range(6)
FUNCTIONS = {torch.float32: "box_coding_float", torch.float64: "box_coding_double"}
CLAMP = 2.0

every_type = pytest.mark.parametrize("dtype", FUNCTIONS)


def run(library, step, gradient, values, anchors, repeats, weights):
    """What a launcher writes: of the shape of the values, and of the anchors."""
    out = torch.full_like(values, math.nan)
    to_anchors = None if anchors is None else torch.full_like(anchors, math.nan)
    weights = array(ctypes.c_double, [*weights, 0, 0][:4])
    count = 1 if anchors is None else len(anchors)
    function = getattr(library, FUNCTIONS[values.dtype])
    rest = (len(values), count, repeats, weights, CLAMP, out, to_anchors)
    assert call(function, step, gradient, values, anchors, *rest) is None
    return out, to_anchors


def assert_close(results, expected):
    # Logarithms and exponentials of two libraries differ in their last bits.
    rounding = 8 * torch.finfo(results[0].dtype).eps
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=rounding, atol=10 * rounding)


@every_type
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 127, 300])
def test_encoding_equals_the_cpus(emulated, count, order, dtype):
    emulated.set_order(order, count)
    boxes, anchors = (some_boxes(count, seed).to(dtype).requires_grad_() for seed in (1, 2))
    expected = encode(boxes, anchors, WEIGHTS)
    result, _ = run(emulated, ENCODE, None, boxes.detach(), anchors.detach(), 1, WEIGHTS)
    assert_close([result], [expected.detach()])
    gradient = some_deltas(count, seed=5).to(dtype)
    results = run(emulated, ENCODE_BACKWARD, gradient, boxes.detach(), anchors.detach(), 1, WEIGHTS)
    assert_close(results, torch.autograd.grad(expected, (boxes, anchors), gradient))


@every_type
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("rounds", "count", "repeats"), [(1, 1, 1), (1, 300, 1), (2, 40, 3)])
def test_decoding_equals_the_cpus(emulated, rounds, count, repeats, order, dtype):
    emulated.set_order(order, count)
    deltas = some_deltas(rounds, count, repeats).to(dtype).requires_grad_()
    anchors = some_boxes(count, 2).to(dtype).requires_grad_()
    expected = decode(deltas, anchors[:, None], (4, 3, 0.5, 1), CLAMP)
    flat = deltas.detach().reshape(-1, 4)
    result, _ = run(emulated, DECODE, None, flat, anchors.detach(), repeats, (4, 3, 0.5, 1))
    assert_close([result], [expected.detach().reshape(-1, 4)])
    gradient = some_deltas(rounds, count, repeats, seed=5).to(dtype)
    results = run(emulated, DECODE_BACKWARD, gradient.reshape(-1, 4), flat, anchors.detach(), repeats, (4, 3, 0.5, 1))
    wanted = torch.autograd.grad(expected, (deltas, anchors), gradient)
    assert_close(results, [wanted[0].reshape(-1, 4), wanted[1]])


@every_type
def test_clipping_equals_the_cpus_to_the_bit(emulated, dtype):
    emulated.set_order(0, 1)
    boxes = (4 * some_deltas(300)).to(dtype)
    boxes[7] = torch.tensor([math.nan, math.inf, -math.inf, 3.0])
    boxes.requires_grad_()
    expected = clip_boxes(boxes, (3, 4))
    result, _ = run(emulated, CLIP, None, boxes.detach(), None, 1, (3, 4))
    torch.testing.assert_close(result, expected.detach(), rtol=0, atol=0, equal_nan=True)
    gradient = some_deltas(300, seed=5).to(dtype)
    result, _ = run(emulated, CLIP_BACKWARD, gradient, boxes.detach(), None, 1, (3, 4))
    assert torch.equal(result, torch.autograd.grad(expected, boxes, gradient)[0])
