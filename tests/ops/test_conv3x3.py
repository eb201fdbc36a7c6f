import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mrcnn_cli.ops import conv3x3, reference
from tests.ops import contract


def operands(images=2, channels=5, outputs=7, size=(5, 4), *, channels_last=True, shortcut=True, relu=False, seed=0):
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    form = torch.channels_last if channels_last else torch.contiguous_format
    return {
        "input": normal(images, channels, *size).contiguous(memory_format=form),
        "weight": normal(outputs, channels, 3, 3) / (9 * max(channels, 1)) ** 0.5,
        "bias": normal(outputs),
        "shortcut": normal(images, outputs, *size) if shortcut else None,
        "relu": relu,
    }


CASES = {
    "channels last": {},
    "contiguous": {"channels_last": False},
    "ReLU": {"relu": True, "size": (4, 6)},
    "one pixel": {"size": (1, 1), "channels": 3},
    "more outputs than a panel": {"images": 1, "channels": 18, "outputs": 37, "size": (3, 3)},
    "a row": {"images": 1, "channels": 2, "outputs": 2, "size": (1, 9)},
}
OPERATOR = contract.Operator(
    function=conv3x3,
    reference=reference.conv3x3,
    cases={name: lambda options=options: operands(**options) for name, options in CASES.items()},
    values=("input", "weight", "bias", "shortcut"),
    tolerance={torch.float64: 1e-13, torch.float32: 5e-6, torch.float16: 1e-2, torch.bfloat16: 8e-2},
    differentiable=("input", "weight", "bias", "shortcut"),
)
every_case = pytest.mark.parametrize("case", CASES)


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_it_equals_the_loop(case, dtype):
    contract.equals_the_loop(OPERATOR, case, dtype)


@pytest.mark.parametrize("case", ["channels last", "ReLU", "a row"])
def test_its_gradients_and_their_gradients_are_right(case):
    contract.has_right_gradients(OPERATOR, case)


@every_case
def test_it_passes_opcheck(case):
    contract.passes_opcheck(OPERATOR, case)


def test_it_compiles_into_one_graph():
    contract.compiles_whole(OPERATOR, "channels last")


@pytest.mark.parametrize("size", [(9, 11), (40, 50)])  # fewer blocks of tiles than threads, and more
def test_any_number_of_threads_gives_the_same_bits(size):
    options = {"channels": 40, "outputs": 70, "size": size}
    operator = contract.Operator(conv3x3, reference.conv3x3, {"": lambda: operands(**options)}, OPERATOR.values)
    contract.same_bits_for_any_number_of_threads(operator, "", torch.float32)


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(0, 3),
    channels=st.integers(0, 40),
    outputs=st.integers(0, 70),
    size=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    channels_last=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_is_pytorchs_convolution_and_has_its_gradients(images, channels, outputs, size, channels_last, relu, seed):
    given = operands(images, channels, outputs, size, channels_last=channels_last, relu=relu, seed=seed)
    tensors = {name: value for name, value in given.items() if name != "relu"}
    ours = {name: value.float().requires_grad_() for name, value in tensors.items()}
    result = conv3x3(**ours, relu=relu)
    if not (images and channels and outputs and all(size)):  # PyTorch refuses some of these
        expected = tensors["bias"].float()[:, None, None] + ours["shortcut"]
        torch.testing.assert_close(result, expected.relu() if relu else expected)
        return
    theirs = {name: value.float().double().requires_grad_() for name, value in tensors.items()}
    expected = functional.conv2d(theirs["input"], theirs["weight"], theirs["bias"], padding=1) + theirs["shortcut"]
    if relu:  # where the two round to different sides of zero, no gradient
        expected = expected * (result > 0)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(seed))
    result.backward(weights)
    expected.backward(weights.double())
    for name, leaf in ours.items():
        scale = max(float(theirs[name].grad.abs().max()), 1.0)
        torch.testing.assert_close(leaf.grad.double(), theirs[name].grad, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("channels", [64, 256])
def test_its_rounding_is_no_larger_than_it_says(channels):
    random = torch.Generator().manual_seed(0)
    input, weight = (
        torch.randn(1, channels, 24, 31, generator=random),
        torch.randn(64, channels, 3, 3, generator=random),
    )
    exact = functional.conv2d(input.double(), weight.double(), padding=1)
    magnitudes = functional.conv2d(input.double().abs(), weight.double().abs(), padding=1)
    assert float(((conv3x3(input, weight) - exact).abs() / magnitudes).max()) < 1e-6


def test_a_nan_stays_one_and_reaches_its_tiles_alone():
    input = torch.ones(1, 32, 12, 12)
    input[0, 3, 5, 6] = torch.nan
    result = conv3x3(input, torch.ones(32, 32, 3, 3), relu=True)
    assert result[0, :, 4:7, 5:8].isnan().all()
    assert not result[0, :, :, :4].isnan().any()
    assert not result[0, :, :4].isnan().any()
    assert not result[0, :, :, 8:].isnan().any()
    assert not result[0, :, 8:].isnan().any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.ones(3, 4, 4)}, r"conv3x3: input must be \[N, C, H, W\], got \[3, 4, 4\]"),
        ({"weight": torch.ones(7, 4, 3, 3)}, r"conv3x3: weight must be \[C_out, 5, 3, 3\], got \[7, 4, 3, 3\]"),
        ({"bias": torch.ones(6)}, r"conv3x3: bias must be \[7\], got \[6\]"),
        ({"shortcut": torch.ones(2, 7, 5, 5)}, r"conv3x3: shortcut must be \[2, 7, 5, 4\], got \[2, 7, 5, 5\]"),
        ({"weight": torch.ones(7, 5, 3, 3).half()}, "conv3x3: weight, bias and shortcut must be on the CPU and of the"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    contract.refuses(OPERATOR, "channels last", changes, message)


def test_autocast_converts_it():
    with torch.autocast("cpu", torch.bfloat16):
        assert conv3x3(torch.ones(1, 32, 4, 4), torch.ones(8, 32, 3, 3)).dtype == torch.bfloat16
