import math

import pytest
import torch

from mrcnn_cli.ops import sigmoid_focal_loss, sigmoid_focal_loss_labels
from mrcnn_cli.ops.sigmoid_focal_loss import REDUCTIONS
from tests.emulator.emulation import ORDERS, call

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1.0, 1.5)])
@pytest.mark.parametrize("with_labels", [False, True])
def test_the_emulated_losses_and_gradients_equal_the_cpus(emulated, with_labels, alpha, gamma, dtype, order):
    emulated.set_order(order, 5)
    random = torch.Generator().manual_seed(7)
    rows, classes = 67, 41  # more than one block of a sum, and the last one not full
    logits = (3 * torch.randn(rows, classes, generator=random)).to(dtype).requires_grad_()
    truth = torch.randint(-1, classes + 1, (rows,), generator=random)
    if not with_labels:
        truth = torch.rand(rows, classes, generator=random).to(dtype)
    function = sigmoid_focal_loss_labels if with_labels else sigmoid_focal_loss
    for name, number in REDUCTIONS.items():
        expected = function(logits, truth, alpha, gamma, name)
        losses = torch.full_like(expected, math.nan)
        options = (TYPES[dtype], logits.numel(), classes if with_labels else 0, alpha, gamma, number)
        assert call(emulated.focal_loss, *options, logits, truth, losses) is None
        rounding = torch.finfo(dtype).eps
        close = {"rtol": max(4 * rounding, 1e-14), "atol": max(4 * rounding, 1e-15)}
        torch.testing.assert_close(losses, expected, **close)
        weights = torch.randn(expected.shape, generator=random).to(dtype)
        wanted = torch.autograd.grad(expected, logits, weights)[0]
        grads = torch.full_like(logits, math.nan)
        assert call(emulated.focal_loss_backward, *options, logits, truth, weights, grads) is None
        torch.testing.assert_close(grads, wanted, **close)


def test_a_sum_has_the_same_bits_in_every_order_of_the_threads(emulated):
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(2))
    targets = (logits > 1).float()
    sums = []
    for order in ORDERS:
        emulated.set_order(order, 9)
        sums.append(torch.full((), math.nan))
        assert call(emulated.focal_loss, 0, 5000, 0, 0.25, 2.0, 2, logits, targets, sums[-1]) is None
    assert all(torch.equal(one, sums[0]) for one in sums)
    torch.testing.assert_close(sums[0], sigmoid_focal_loss(logits, targets, reduction="sum"))


def test_a_label_that_is_no_class_gives_nan(emulated):
    emulated.set_order(0, 1)
    losses = torch.zeros(3, 2)
    labels = torch.tensor([3, 2, -5])
    assert call(emulated.focal_loss, 0, 6, 2, 0.25, 2.0, 0, torch.zeros(3, 2), labels, losses) is None
    assert losses.isnan().tolist() == [[True, True], [False, False], [False, False]]
    assert losses[2].tolist() == [0, 0]


@pytest.mark.parametrize(("number", "expected"), [(1, math.nan), (2, 0.0)])
def test_no_logits_give_what_the_cpu_gives(emulated, number, expected):
    emulated.set_order(0, 1)
    losses = torch.full((), 7.0)
    assert call(emulated.focal_loss, 0, 0, 0, 0.25, 2.0, number, torch.zeros(0), torch.zeros(0), losses) is None
    torch.testing.assert_close(losses.item(), expected, equal_nan=True)
