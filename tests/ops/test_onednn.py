"""The layers by oneDNN's fused kernels are PyTorch's own layers."""

import pytest
import torch
from torch.nn import functional

from mrcnn_cli.models.convolution import ConvNorm, Linear
from mrcnn_cli.ops import onednn

pytestmark = pytest.mark.skipif(not onednn.takes(torch.ones(1)), reason="this PyTorch is built without oneDNN")
ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "hard_swish": functional.hardswish,
}


def image(*shape):
    return torch.randn(*shape).to(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 4), (5, 1, 16)])
def test_a_fused_convolution_is_the_layers_one_after_the_other(kernel, stride, groups, with_shortcut, activation):
    x, weight, bias = image(2, 16, 11, 14), torch.randn(16, 16 // groups, kernel, kernel), torch.randn(16)
    plain = functional.conv2d(x, weight, bias, stride, kernel // 2, 1, groups)
    shortcut = torch.randn_like(plain) if with_shortcut else None
    expected = ACTIVATIONS[activation](plain + shortcut if with_shortcut else plain)
    before = shortcut.clone() if with_shortcut else None
    geometry = ((stride, stride), (kernel // 2, kernel // 2), (1, 1), groups)
    found = onednn.conv2d(x, weight, bias, *geometry, activation, shortcut)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if with_shortcut:
        assert torch.equal(shortcut, before)


def test_products_and_their_gradients_are_those_of_pytorch():
    x, weight, bias = torch.randn(7, 33), torch.randn(5, 33), torch.randn(5)
    weights = torch.randn(7, 5)
    results = []
    for work in (functional.linear, onednn.linear):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        output = work(*inputs)
        results.append([output, *torch.autograd.grad((output * weights).sum(), inputs)])
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_convolution_of_1x1_and_its_gradients_are_those_of_pytorch(memory_format, with_bias):
    x, weight = torch.randn(2, 6, 5, 9).to(memory_format=memory_format), torch.randn(4, 6, 1, 1)
    tensors = [x, weight] + ([torch.randn(4)] if with_bias else [])
    weights = torch.randn(2, 4, 5, 9)
    results = []
    for work in (functional.conv2d, onednn.conv1x1):
        inputs = [tensor.clone(memory_format=torch.preserve_format).requires_grad_() for tensor in tensors]
        output = work(*inputs, *([] if with_bias else [None]))
        results.append([output, *torch.autograd.grad((output * weights).sum(), inputs)])
    for found, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)


def test_what_has_no_gradient_gets_none_and_costs_nothing():
    x, weight = torch.randn(3, 4), torch.randn(2, 4, requires_grad=True)
    onednn.linear(x, weight, torch.zeros(2)).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(2, 4))


@pytest.mark.parametrize("norm", ["none", "frozen_batch_norm", "batch_norm", "sync_batch_norm", "group_norm"])
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_layers_say_the_same_with_and_without_gradients(norm, activation):
    layer = ConvNorm(32, 32, 3, norm=norm, activation=activation).eval()
    if norm.endswith("batch_norm"):
        torch.nn.init.uniform_(layer.norm.running_var, 0.5, 2.0)
        torch.nn.init.normal_(layer.norm.running_mean)
        torch.nn.init.normal_(layer.norm.weight)
    x, shortcut = image(1, 32, 8, 8), image(1, 32, 8, 8)
    expected = layer(x, shortcut)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, shortcut), expected, rtol=1e-4, atol=1e-5)


def test_empty_and_other_inputs_take_pytorchs_own_way():
    layer, conv = Linear(4, 2), ConvNorm(4, 2, 1)
    assert layer(torch.empty(0, 4)).shape == (0, 2)
    assert layer(torch.empty(3, 4, dtype=torch.float64).to(torch.float32)).shape == (3, 2)
    assert layer.double()(torch.ones(3, 4, dtype=torch.float64)).dtype == torch.float64
    with torch.no_grad():
        assert conv(torch.empty(0, 4, 5, 5)).shape == (0, 2, 5, 5)


def test_autocast_takes_pytorchs_own_way_and_computes_in_half_precision():
    layers = [(Linear(12, 5), torch.randn(3, 12)), (ConvNorm(12, 5, 1, norm="none"), image(2, 12, 6, 6))]
    for layer, x in layers:
        assert onednn.takes(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not onednn.takes(x)
            assert layer(x).dtype == torch.bfloat16
