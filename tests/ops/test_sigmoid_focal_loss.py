import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import reference, sigmoid_focal_loss, sigmoid_focal_loss_labels
from tests.ops import contract

TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def some_logits(*size, seed=0, scale=1.5):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def dense(*size, soft=False, **options):
    share = torch.rand(*size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    arguments = {"inputs": some_logits(*size), "targets": share if soft else (share < 0.3).double()}
    return lambda: {**arguments, **options}


def labelled(rows, classes, **options):
    labels = torch.randint(-1, classes + 1, (rows,), generator=torch.Generator().manual_seed(4))
    arguments = {"inputs": some_logits(rows, classes), "labels": labels}
    return lambda: {**arguments, **options}


DENSE = contract.Operator(
    function=sigmoid_focal_loss,
    reference=reference.sigmoid_focal_loss,
    cases={
        "paper": dense(7, 13),
        "soft targets": dense(29, soft=True),
        "not weighted": dense(3, 4, 5, alpha=-1),
        "gamma 0": dense(41, gamma=0),
        "gamma 1": dense(41, gamma=1),
        "gamma 1.5, soft": dense(41, gamma=1.5, soft=True),
        "gamma 0.2": dense(41, gamma=0.2),
        "gamma 5": dense(41, gamma=5),
        "sum": dense(19, 9, reduction="sum"),
        "mean": dense(19, 9, reduction="mean"),
        "sum of several blocks": dense(43, 101, reduction="sum"),
    },
    values=("inputs", "targets"),
    tolerance=TOLERANCE,
    differentiable=("inputs",),
)
LABELS = contract.Operator(
    function=sigmoid_focal_loss_labels,
    reference=reference.sigmoid_focal_loss_labels,
    cases={
        "paper": labelled(9, 7),
        "one class": labelled(30, 1),
        "gamma 0": labelled(17, 3, gamma=0),
        "gamma 1.5": labelled(17, 3, gamma=1.5),
        "sum": labelled(23, 5, reduction="sum"),
        "mean, rows across blocks": labelled(47, 91, reduction="mean"),
        "more classes than a block holds": labelled(3, 2500),
    },
    values=("inputs",),
    tolerance=TOLERANCE,
    differentiable=("inputs",),
)
BOTH = [(DENSE, case) for case in DENSE.cases] + [(LABELS, case) for case in LABELS.cases]
every_case = pytest.mark.parametrize(("operator", "case"), BOTH, ids=[f"{op.function.__name__}: {c}" for op, c in BOTH])
small_case = pytest.mark.parametrize(
    ("operator", "case"),
    [(DENSE, "paper"), (DENSE, "gamma 1.5, soft"), (DENSE, "gamma 0"), (DENSE, "mean"), (LABELS, "paper")],
)


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_it_equals_the_loop(operator, case, dtype):
    tolerance = TOLERANCE[dtype] * (1000 if "sum" in case else 1)  # of sums of a few thousand
    options = {name: getattr(operator, name) for name in ("function", "reference", "cases", "values", "differentiable")}
    contract.equals_the_loop(contract.Operator(**options, tolerance={dtype: tolerance}), case, dtype)


def gradients_of(function, arguments, dtype):
    logits = arguments["inputs"].to(dtype).requires_grad_()
    truth = {name: value.to(dtype) if name == "targets" else value for name, value in arguments.items()}
    losses = function(**{**truth, "inputs": logits})
    weights = torch.linspace(-1, 1, losses.numel(), dtype=dtype).reshape(losses.shape) if losses.ndim else 1.5
    return torch.autograd.grad((losses * weights).sum(), logits)[0]


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_gradients_of_every_type_equal_those_of_float64(operator, case, dtype):
    arguments = {
        name: value.to(dtype).double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in operator.cases[case]().items()
    }
    expected = gradients_of(operator.function, arguments, torch.float64)
    result = gradients_of(operator.function, arguments, dtype)
    assert result.dtype == dtype
    # the upstream gradients are rounded to the type as well
    torch.testing.assert_close(result.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=TOLERANCE[dtype])


@every_case
def test_its_gradients_are_right(operator, case):
    if "block" in case:
        return  # numerical gradients ask for one evaluation per number
    arguments = operator.arguments(case, torch.float64)
    logits = arguments.pop("inputs").clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: operator.function(x, **arguments), [logits])


@pytest.mark.parametrize(("operator", "case"), [(DENSE, "paper"), (DENSE, "sum"), (LABELS, "sum")])
def test_opcheck_passes(operator, case):
    arguments = operator.arguments(case, torch.float32)
    truth = arguments.get("targets", arguments.get("labels"))
    reduction = 2 if "sum" in case else 0
    logits = arguments["inputs"].requires_grad_()
    for call, given_arguments in (
        (torch.ops.mrcnn.sigmoid_focal_loss, (logits, truth, 0.25, 2.0, reduction)),
        (
            torch.ops.mrcnn.sigmoid_focal_loss_backward,
            (torch.ones(() if reduction else logits.shape), logits.detach(), truth, 0.25, 2.0, reduction),
        ),
    ):
        with warnings.catch_warnings():
            # torch's own checker reads .grad of copies that it made
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            report = torch.library.opcheck(call.default, given_arguments)
        assert set(report.values()) == {"SUCCESS"}, report


@small_case
def test_it_compiles_whole(operator, case):
    contract.compiles_whole(operator, case)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(operator, case, dtype):
    contract.same_bits_for_any_number_of_threads(operator, case, dtype)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_long_sum_has_the_same_bits_for_any_number_of_threads_and_is_exact(reduction):
    logits, targets = some_logits(300_001).float(), (some_logits(300_001, seed=1) > 4).float()
    losses = sigmoid_focal_loss(logits, targets).double()
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            results.append(sigmoid_focal_loss(logits, targets, reduction=reduction))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(results[0], getattr(losses, reduction)().float())


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu(operator, case, dtype):
    contract.cuda_equals_cpu(operator, case, dtype)


@pytest.mark.gpu
def test_a_label_that_is_no_class_gives_nan_on_a_gpu():
    losses = sigmoid_focal_loss_labels(torch.zeros(2, 3, device="cuda"), torch.tensor([4, 3], device="cuda"))
    assert losses[0].isnan().all()
    assert losses[1].isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("extent", [1.0, 10.0, 100.0])
def test_float32_keeps_its_digits_for_logits_of_any_size(gamma, extent):
    # of their own size, not of one: easy examples are nearly all there are, and their losses are tiny
    logits = torch.linspace(-extent, extent, 4001)
    for target in (0.0, 1.0):
        targets = torch.full_like(logits, target)
        leaf, wide = logits.clone().requires_grad_(), logits.double().requires_grad_()
        losses = sigmoid_focal_loss(leaf, targets, gamma=gamma)
        expected = sigmoid_focal_loss(wide, targets.double(), gamma=gamma)
        grads = torch.autograd.grad(losses.sum(), leaf)[0]
        wanted = torch.autograd.grad(expected.sum(), wide)[0]
        relative = 1e-6 * max(1.0, gamma / 2)
        torch.testing.assert_close(losses.double(), expected, rtol=relative, atol=1e-36)
        torch.testing.assert_close(grads.double(), wanted, rtol=relative, atol=1e-36)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_infinite_logits_cost_nothing_where_they_are_right_and_everything_where_not(gamma, dtype):
    inf = math.inf
    # a vector's worth, so that no way of computing it is left out
    logits = torch.tensor([inf, -inf, inf, -inf] * 4, dtype=dtype).requires_grad_()
    targets = torch.tensor([1, 0, 0, 1] * 4, dtype=dtype)
    losses = sigmoid_focal_loss(logits, targets, gamma=gamma)
    assert losses.tolist() == [0, 0, inf, inf] * 4
    slopes = torch.autograd.grad(losses, logits, torch.ones_like(losses))[0]
    assert slopes.tolist() == [0, 0, 0.75, -0.25] * 4


@pytest.mark.parametrize("function", [sigmoid_focal_loss, sigmoid_focal_loss_labels])
def test_nan_stays_where_it_is(function):
    logits = torch.zeros(3, 11)
    logits[1, 4] = math.nan
    logits.requires_grad_()
    truth = torch.zeros(3, 11) if function is sigmoid_focal_loss else torch.zeros(3, dtype=torch.int64)
    losses = function(logits, truth)
    grads = torch.autograd.grad(losses.sum(), logits)[0]
    for result in (losses, grads):
        assert result.isnan().nonzero().tolist() == [[1, 4]]
    assert function(logits, truth, reduction="sum").isnan()


def test_labels_mean_the_same_as_one_hot_targets():
    logits, labels = some_logits(200, 80).float(), torch.arange(200) % 81
    targets = torch.nn.functional.one_hot(labels, 81)[:, :80].float()
    for reduction in ("none", "mean", "sum"):
        one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        losses = sigmoid_focal_loss_labels(one, labels, reduction=reduction)
        expected = sigmoid_focal_loss(other, targets, reduction=reduction)
        assert torch.equal(losses, expected)
        losses.sum().backward()
        expected.sum().backward()
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_rows_with_a_negative_label_count_for_nothing(gamma):
    logits = some_logits(90, 50).float().requires_grad_()  # three blocks, whose borders cut rows
    labels = torch.arange(90) % 51
    ignored = torch.arange(90) % 4 == 1
    losses = sigmoid_focal_loss_labels(logits, torch.where(ignored, -2, labels), gamma=gamma)
    expected = sigmoid_focal_loss_labels(logits, labels, gamma=gamma)
    grads = torch.autograd.grad(losses.sum(), logits)[0]
    wanted = torch.autograd.grad(expected[~ignored].sum(), logits)[0]
    assert not losses[ignored].any()
    assert not grads[ignored].any()
    torch.testing.assert_close(losses, expected * ~ignored[:, None], rtol=2e-6, atol=0)
    torch.testing.assert_close(grads, wanted, rtol=2e-6, atol=0)


def test_no_logits_give_what_pytorch_gives_for_nothing():
    empty = torch.zeros(0, 4, requires_grad=True)
    for function, truth in (
        (sigmoid_focal_loss, torch.zeros(0, 4)),
        (sigmoid_focal_loss_labels, torch.zeros(0, dtype=torch.int64)),
    ):
        assert function(empty, truth).shape == (0, 4)
        assert function(empty, truth, reduction="sum").item() == 0
        assert function(empty, truth, reduction="mean").isnan()
        assert torch.autograd.grad(function(empty, truth, reduction="sum"), empty)[0].shape == (0, 4)
    assert sigmoid_focal_loss_labels(torch.zeros(3, 0), torch.zeros(3, dtype=torch.int64)).shape == (3, 0)


def test_any_strides_are_taken():
    wide, targets = some_logits(6, 20).float(), (some_logits(6, 20, seed=1) > 0).float()
    for view in (lambda x: x[:, ::2], lambda x: x.t(), lambda x: x[1:, 3:], lambda x: x[:, :1].expand(6, 9)):
        logits = view(wide).detach().requires_grad_()
        losses = sigmoid_focal_loss(logits, view(targets))
        expected = sigmoid_focal_loss(view(wide).contiguous(), view(targets).contiguous())
        torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
        weights = view(some_logits(6, 20, seed=2).float())
        grads = torch.autograd.grad(losses, logits, weights)[0]
        torch.testing.assert_close(
            grads,
            torch.autograd.grad(
                sigmoid_focal_loss(logits, view(targets)) @ weights.t(), logits, torch.eye(losses.shape[0])
            )[0],
            rtol=1e-5,
            atol=1e-7,
        )
    labels = torch.arange(12)[::2] % 20
    assert torch.equal(sigmoid_focal_loss_labels(wide, labels), sigmoid_focal_loss_labels(wide, labels.clone()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 70),
    classes=st.integers(1, 70),
    gamma=st.sampled_from([0.0, 0.3, 1.0, 2.0, 4.0]),
    alpha=st.sampled_from([-1.0, 0.0, 0.25, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    scale=st.sampled_from([0.1, 5.0, 80.0]),
    step=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_losses_and_gradients_are_finite_and_losses_fall_as_logits_turn_right(
    rows, classes, gamma, alpha, dtype, scale, step, seed
):
    logits = some_logits(rows, classes * step, seed=seed, scale=scale)[:, ::step].to(dtype).requires_grad_()
    labels = torch.randint(0, classes + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    losses = sigmoid_focal_loss_labels(logits, labels, alpha, gamma)
    grads = torch.autograd.grad(losses, logits, torch.ones_like(losses))[0]
    assert losses.dtype == grads.dtype == dtype
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    assert grads.isfinite().all()
    hit = torch.arange(classes)[None] == labels[:, None]
    assert (grads[hit] <= 0).all()
    assert (grads[~hit] >= 0).all()


def test_autocast_leaves_the_type_alone():
    logits, targets = some_logits(5, 9).float(), torch.ones(5, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sigmoid_focal_loss(logits, targets), sigmoid_focal_loss(logits, targets.bfloat16()))


def test_whole_number_targets_are_taken():
    logits = some_logits(4, 5).float()
    targets = logits > 0
    for kind in (torch.bool, torch.int64, torch.uint8):
        assert torch.equal(sigmoid_focal_loss(logits, targets.to(kind)), sigmoid_focal_loss(logits, targets.float()))


def test_a_second_derivative_is_refused():
    logits = some_logits(5).requires_grad_()
    slope = torch.autograd.grad(sigmoid_focal_loss(logits, torch.ones(5)).sum(), logits, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="sigmoid_focal_loss: not differentiable twice"):
        slope.sum().backward()


def test_a_gradient_of_targets_is_refused():
    with pytest.raises(RuntimeError, match="sigmoid_focal_loss: targets get no gradient"):
        sigmoid_focal_loss(torch.zeros(3), torch.zeros(3, requires_grad=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": torch.zeros(7, 13).int()}, "sigmoid_focal_loss: inputs must be floating point, got Int"),
        (
            {"targets": torch.zeros(7, 12)},
            r"sigmoid_focal_loss: targets must be \[7, 13\] as inputs are, got \[7, 12\]",
        ),
        ({"targets": torch.zeros(13)}, r"sigmoid_focal_loss: targets must be \[7, 13\] as inputs are, got \[13\]"),
        ({"alpha": 1.5}, r"sigmoid_focal_loss: alpha must lie in \[0, 1\] or be -1, got 1.5"),
        ({"alpha": math.nan}, "sigmoid_focal_loss: alpha must lie in .*, got nan"),
        ({"gamma": -1.0}, "sigmoid_focal_loss: gamma must be 0 or more, got -1"),
        ({"gamma": math.inf}, "sigmoid_focal_loss: gamma must be 0 or more, got inf"),
        ({"reduction": "avg"}, "sigmoid_focal_loss: reduction must be none, mean or sum, got 'avg'"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    contract.refuses(DENSE, "paper", changes, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.zeros(9)}, "sigmoid_focal_loss: labels must be int64, got float32"),
        ({"labels": torch.zeros(8, dtype=torch.int64)}, r"sigmoid_focal_loss: labels must be \[9\], got \[8\]"),
        ({"labels": torch.full((9,), 8)}, r"sigmoid_focal_loss: labels\[0\] is 8, but there are 7 classes"),
        ({"inputs": torch.zeros(9, 7, 1)}, r"sigmoid_focal_loss: inputs must be \[N, K\] beside labels, got"),
    ],
)
def test_a_wrong_label_is_named(changes, message):
    contract.refuses(LABELS, "paper", changes, message)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2), (-1, 2), (0.25, 0), (0.4, 1), (0.25, 1.5), (0.25, 0.5)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_it_agrees_with_torchvision(alpha, gamma, reduction):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    logits = some_logits(60, 80, scale=4.0).float()
    targets = torch.rand(60, 80, generator=torch.Generator().manual_seed(1))
    targets = torch.where(targets < 0.5, (targets < 0.1).float(), targets)
    one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    losses = sigmoid_focal_loss(one, targets, alpha, gamma, reduction)
    expected = torchvision.ops.sigmoid_focal_loss(other, targets, alpha, gamma, reduction)
    # its own errors for large logits, where it takes 1 - p, are a few in 1e7
    torch.testing.assert_close(losses, expected, rtol=2e-6, atol=1e-6)
    losses.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=2e-6, atol=1e-6)
