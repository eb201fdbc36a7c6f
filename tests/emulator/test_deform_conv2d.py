import ctypes
import math

import pytest
import torch

from mrcnn_cli.ops import deform_conv2d
from tests.emulator.emulation import ORDERS, array, call

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
CASES = [
    # dtype, channels, groups, offset groups: packets of sixteen bytes, packets cut by groups, more than a warp's
    (torch.float32, 8, 1, 1),
    (torch.float32, 6, 3, 2),
    (torch.float32, 136, 1, 1),
    (torch.float64, 5, 1, 1),
    (torch.float16, 24, 1, 3),
    (torch.bfloat16, 10, 2, 1),
]
every_case = pytest.mark.parametrize(("dtype", "channels", "groups", "offset_groups"), CASES)


class Call:
    """One set of operands, the numbers that describe it to the launchers, and what the CPU makes of it."""

    def __init__(
        self,
        dtype,
        channels,
        groups,
        offset_groups,
        size=(11, 13),
        kernel=(3, 2),
        stride=(2, 1),
        padding=(2, 1),
        scale=2.0,
    ):
        random = torch.Generator().manual_seed(channels)
        dilation = (1, 2)
        self.type = TYPES[dtype]
        self.taps = kernel[0] * kernel[1]
        self.out = [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
        self.plane = self.out[0] * self.out[1]
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        self.sums = sums
        self.input = torch.randn(2, channels, *size, generator=random).to(dtype)
        self.input = self.input.to(memory_format=torch.channels_last)
        self.offset = torch.randn(2, 2 * offset_groups * self.taps, *self.out, generator=random).to(sums) * scale
        self.offset[0, 0, 0, :5] = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e9])
        self.mask = torch.rand(2, offset_groups * self.taps, *self.out, generator=random).to(sums)
        self.channels, self.groups, self.depth = channels, groups, self.taps * channels // groups
        self.shape = array(
            ctypes.c_int64,
            [2, channels, groups, *size, *self.out, *kernel, *stride, *padding, *dilation, groups, offset_groups],
        )
        # A weight of ones and zeros makes an operator that returns its columns, [2, groups * depth, ...].
        weight = torch.eye(self.depth).reshape(self.depth, *kernel, channels // groups).permute(0, 3, 1, 2)
        self.weight = weight.repeat(groups, 1, 1, 1)
        self.arguments = {"stride": stride, "padding": padding, "dilation": dilation}

    def columns_of_cpu(self):
        """[groups, rows, depth] with a graph that leads to the leaves."""
        self.leaves = [t.to(self.sums).requires_grad_() for t in (self.input, self.offset, self.mask)]
        input, offset, mask = self.leaves
        columns = deform_conv2d(input, offset, self.weight.to(self.sums), mask=mask, **self.arguments)
        columns = columns.reshape(2, self.groups, self.depth, self.plane).permute(1, 0, 3, 2)
        return columns.reshape(self.groups, 2 * self.plane, self.depth)

    def chunks(self):
        """Both images at once; then in parts, the second image's alone."""
        yield [[0, 2, 0, self.plane]]
        yield [[0, 1, 0, self.plane], [1, 1, 0, 30], [1, 1, 30, self.plane - 30]]

    def rows(self, chunk):
        first = chunk[0] * self.plane + chunk[2]
        return slice(first, first + chunk[1] * chunk[3])


def numbers(chunk):
    return array(ctypes.c_int64, chunk)


@pytest.mark.parametrize("order", ORDERS)
@every_case
def test_columns_equal_the_cpus(emulated, dtype, channels, groups, offset_groups, order):
    emulated.set_order(order, 3)
    given = Call(dtype, channels, groups, offset_groups)
    expected = given.columns_of_cpu().detach()
    for chunks in given.chunks():
        for chunk in chunks:
            wanted = expected[:, given.rows(chunk)]
            columns = torch.full(wanted.shape, math.nan, dtype=dtype)
            assert (
                call(
                    emulated.deform_columns,
                    given.type,
                    given.shape,
                    numbers(chunk),
                    given.input,
                    given.offset,
                    given.mask,
                    columns,
                )
                is None
            )
            rounding = torch.finfo(dtype).eps
            torch.testing.assert_close(columns.to(given.sums), wanted, rtol=rounding, atol=4e-7)


@pytest.mark.parametrize("order", ORDERS)
@every_case
def test_gradients_equal_the_cpus(emulated, dtype, channels, groups, offset_groups, order):
    emulated.set_order(order, 5)
    given = Call(dtype, channels, groups, offset_groups)
    columns = given.columns_of_cpu()
    sent = torch.randn(columns.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    of_input, of_offset, of_mask = torch.autograd.grad(columns, given.leaves, sent.to(given.sums))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for chunks in given.chunks():
        offset_gradient, mask_gradient = torch.full_like(of_offset, math.nan), torch.full_like(of_mask, math.nan)
        input_gradient = torch.zeros_like(of_input, memory_format=torch.channels_last)
        for chunk in chunks:
            part = sent[:, given.rows(chunk)].contiguous()
            described = (given.type, given.shape, numbers(chunk))
            points = (given.offset, given.mask, part)
            assert (
                call(emulated.deform_point_gradients, *described, given.input, *points, offset_gradient, mask_gradient)
                is None
            )
            assert call(emulated.deform_input_gradient, *described, *points, input_gradient) is None
        torch.testing.assert_close(input_gradient, of_input, rtol=1e-5, atol=tolerance)
        torch.testing.assert_close(offset_gradient, of_offset, rtol=1e-5, atol=tolerance)
        torch.testing.assert_close(mask_gradient, of_mask, rtol=1e-5, atol=tolerance)


def test_more_points_than_one_segment_and_more_segments_than_one_round_are_gathered_in_their_order(emulated):
    # 17 x 23 places make two segments for each of 132 points
    given = Call(torch.float32, 1, 1, 1, size=(4, 9), kernel=(12, 11), stride=(1, 1), padding=(12, 17))
    assert (given.out, given.taps) == ([17, 23], 132)
    columns = given.columns_of_cpu()
    sent = torch.randn(columns.shape, generator=torch.Generator().manual_seed(1))
    (of_input,) = torch.autograd.grad(columns, given.leaves[:1], sent)
    part = sent[:, given.plane :].contiguous()
    results = []
    for order in ORDERS:
        emulated.set_order(order, 9)
        gradient = torch.zeros_like(of_input, memory_format=torch.channels_last)
        chunk = numbers([1, 1, 0, given.plane])
        assert (
            call(
                emulated.deform_input_gradient, given.type, given.shape, chunk, given.offset, given.mask, part, gradient
            )
            is None
        )
        results.append(gradient[1])
    torch.testing.assert_close(results[0], of_input[1], rtol=1e-5, atol=1e-4)
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("dtype", TYPES)
def test_biases_and_products_are_added(emulated, dtype):
    emulated.set_order(0, 1)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    output, bias = torch.randn(50, 7).to(dtype), torch.randn(7).to(sums)
    expected = (output.to(sums) + bias).to(dtype)
    assert call(emulated.deform_add_bias, TYPES[dtype], 50, 7, bias, output) is None
    assert torch.equal(output, expected)
    total = torch.randn(50, 7).to(sums)
    expected = total + output.to(sums)
    assert call(emulated.deform_add_product, TYPES[dtype], 350, output, total) is None
    assert torch.equal(total, expected)
