import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import deform_conv2d, reference
from tests.ops import contract

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def out_sizes(size, kernel, stride, padding, dilation):
    return [(size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]


def operands(
    channels=4,
    out_channels=6,
    groups=1,
    offset_groups=1,
    *,
    images=2,
    size=(6, 7),
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    version=2,
    channels_last=False,
    scale=1.5,
    seed=0,
):
    """Arguments of the operator in float64; version 1 has neither mask nor bias."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    out = out_sizes(size, kernel, stride, padding, dilation)
    points = offset_groups * kernel[0] * kernel[1]
    input = normal(images, channels, *size)
    arguments = {
        "input": input.to(memory_format=torch.channels_last) if channels_last else input,
        # float32 holds them, so that no type moves a point over a pixel's border
        "offset": (normal(images, 2 * points, *out) * scale).float().double(),
        "weight": normal(out_channels, channels // groups, *kernel) / math.sqrt(channels * kernel[0] * kernel[1]),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }
    if version == 2:
        arguments["mask"] = torch.rand(images, points, *out, generator=random, dtype=torch.float64).float().double()
        arguments["bias"] = normal(out_channels)
    return arguments


def operator(version, cases):
    second = ("bias", "mask") if version == 2 else ()
    return contract.Operator(
        function=deform_conv2d,
        reference=reference.deform_conv2d,
        cases={
            f"v{version}, {name}": lambda options=options: operands(version=version, **options)
            for name, options in cases.items()
        },
        values=("input", "weight", *second[:1]),
        tolerance=TOLERANCE,
        differentiable=("input", "offset", "weight", *second),
    )


CASES = {
    "contiguous": {},
    "channels last": {"channels_last": True},
    "groups": {"channels": 6, "groups": 2, "offset_groups": 3, "size": (5, 4)},
    "stride, dilation, channels last": {
        "kernel": (3, 2),
        "stride": (2, 1),
        "padding": (2, 1),
        "dilation": (1, 2),
        "channels_last": True,
    },
    "37 channels": {"channels": 37, "images": 1, "size": (3, 4), "kernel": (1, 2), "padding": (0, 0)},
}
V1, V2 = operator(1, CASES), operator(2, CASES)
BOTH = [(V1, case) for case in V1.cases] + [(V2, case) for case in V2.cases]
every_case = pytest.mark.parametrize(("operator", "case"), BOTH, ids=[case for _, case in BOTH])
# Numerical gradients ask for one evaluation per number, so these maps are small.
TINY = {
    "contiguous": {"channels": 2, "out_channels": 2, "size": (4, 3), "kernel": (2, 2)},
    "groups, channels last": {
        "channels": 4,
        "out_channels": 4,
        "groups": 2,
        "offset_groups": 2,
        "size": (3, 4),
        "kernel": (2, 1),
        "stride": (1, 2),
        "channels_last": True,
    },
}
GRADIENTS = [(operator(version, TINY), f"v{version}, {name}") for version in (1, 2) for name in TINY]
tiny_cases = pytest.mark.parametrize(("operator", "case"), GRADIENTS, ids=[case for _, case in GRADIENTS])
formats = pytest.mark.parametrize("channels_last", [False, True])


def leaves_of(arguments, dtype=torch.float32):
    """The arguments with tensors of `dtype` that get gradients, and these tensors by name."""
    leaves = {
        name: value.detach().to(dtype, copy=True).requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, torch.Tensor)
    }
    return {**arguments, **leaves}, leaves


def result_and_gradients(function, arguments):
    arguments, leaves = leaves_of(arguments, arguments["input"].dtype)
    result = function(**arguments)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).reshape(result.shape)
    gradients = torch.autograd.grad(result, list(leaves.values()), weights)
    return {"result": result.detach(), **dict(zip(leaves, gradients, strict=True))}


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_it_equals_the_loop(operator, case, dtype):
    contract.equals_the_loop(operator, case, dtype)


def has_right_gradients(operator, case, device="cpu"):
    arguments = operator.arguments(case, torch.float64, device)
    names = list(operator.differentiable)
    tensors = [arguments[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(lambda *t: deform_conv2d(**arguments | dict(zip(names, t, strict=True))), tensors)


@tiny_cases
def test_its_gradients_are_right(operator, case):
    has_right_gradients(operator, case)


@tiny_cases
@pytest.mark.parametrize("wanted", ["input", "offset", "weight", "bias", "mask"])
def test_each_gradient_alone_is_the_one_among_all(operator, case, wanted):
    if wanted not in operator.differentiable:
        pytest.skip("v1 has neither mask nor bias")
    arguments = operator.arguments(case, torch.float64)
    expected = result_and_gradients(deform_conv2d, arguments)[wanted]
    alone = {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    alone[wanted] = alone[wanted].clone().requires_grad_()
    result = deform_conv2d(**alone)
    weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).reshape(result.shape)
    (gradient,) = torch.autograd.grad(result, [alone[wanted]], weights)
    assert torch.equal(gradient, expected)


# torch's own checker reads .grad of copies that it made
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@tiny_cases
def test_opcheck_passes(operator, case):
    arguments = operator.arguments(case, torch.float32)
    names = ("input", "offset", "weight", "bias", "mask")
    values = [arguments.get(name) for name in names]
    geometry = [list(arguments[name]) for name in ("stride", "padding", "dilation")]
    result = deform_conv2d(**arguments)
    forward = [None if value is None else value.requires_grad_() for value in values]
    report = torch.library.opcheck(torch.ops.mrcnn.deform_conv2d.default, (*forward, *geometry))
    assert set(report.values()) == {"SUCCESS"}, report
    input, offset, weight, _, mask = [None if value is None else value.detach() for value in values]
    for wanted in ((True, True, True, True), (False, True, False, False), (True, False, True, False)):
        report = torch.library.opcheck(
            torch.ops.mrcnn.deform_conv2d_backward.default,
            (torch.ones_like(result), input, offset, weight, mask, *geometry, *wanted),
        )
        assert set(report.values()) == {"SUCCESS"}, report


@pytest.mark.parametrize(("operator", "case"), [(V1, "v1, contiguous"), (V2, "v2, stride, dilation, channels last")])
def test_it_compiles_whole(operator, case):
    contract.compiles_whole(operator, case)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(operator, case, dtype):
    contract.same_bits_for_any_number_of_threads(operator, case, dtype)


@formats
@pytest.mark.parametrize(("images", "size"), [(1, (5, 5)), (1, (40, 33)), (3, (17, 19))])
def test_many_channels_have_the_same_bits_for_any_number_of_threads_every_time(channels_last, images, size):
    # so large that BLAS would divide the products among threads
    arguments = operands(160, 192, images=images, size=size, channels_last=channels_last)
    arguments = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = result_and_gradients(deform_conv2d, arguments)
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            for name, value in result_and_gradients(deform_conv2d, arguments).items():
                assert torch.equal(value, expected[name]), (name, count)
            with torch.inference_mode():
                assert torch.equal(deform_conv2d(**arguments), expected["result"])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu(operator, case, dtype):
    contract.cuda_equals_cpu(operator, case, dtype)


@pytest.mark.gpu
def test_cuda_gradients_are_right():
    for operator, case in GRADIENTS:
        has_right_gradients(operator, case, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_has_the_same_bits_every_time(dtype):
    arguments = operands(64, 48, groups=2, size=(40, 37))
    runs = []
    for _ in range(3):
        moved = {k: v.to("cuda", dtype) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        given, leaves = leaves_of(moved, dtype)
        result = deform_conv2d(**given)
        runs.append([result, *torch.autograd.grad(result, list(leaves.values()), torch.ones_like(result))])
    for run in runs[1:]:
        assert all(torch.equal(value, first) for value, first in zip(run, runs[0], strict=True))


@pytest.mark.gpu
def test_cuda_works_through_images_that_do_not_fit_its_columns_in_parts():
    # 9 * 512 * 4 bytes of columns for each pixel: 14563 pixels fit into 256 MB, the second size takes two parts
    for images, size in ((3, (90, 90)), (1, (130, 120))):
        arguments = operands(512, 8, images=images, size=size)
        arguments = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        expected = result_and_gradients(deform_conv2d, arguments)
        moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        given, leaves = leaves_of(moved)
        result = deform_conv2d(**given)
        weights = torch.linspace(-1, 1, result.numel()).reshape(result.shape).cuda()
        gradients = torch.autograd.grad(result, list(leaves.values()), weights)
        found = {"result": result, **dict(zip(leaves, gradients, strict=True))}
        for name, value in found.items():
            size_of = max(expected[name].abs().max().item(), 1.0)
            torch.testing.assert_close(value.cpu(), expected[name], rtol=0, atol=1e-4 * size_of)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@formats
def test_half_precision_gradients_are_those_of_float32_rounded_once(dtype, channels_last):
    arguments = operands(37, 16, channels_last=channels_last)
    rounded = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    found = result_and_gradients(deform_conv2d, rounded)
    wide = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in rounded.items()}
    given, leaves = leaves_of(wide)
    result = deform_conv2d(**given)
    # the same gradient of the output, as it is in half precision
    weights = torch.linspace(-1, 1, result.numel(), dtype=dtype).reshape(result.shape).float()
    expected = torch.autograd.grad(result, list(leaves.values()), weights)
    assert torch.equal(found["result"], result.to(dtype))
    for name, gradient in zip(leaves, expected, strict=True):
        assert torch.equal(found[name], gradient.to(dtype)), name


@formats
def test_everything_keeps_its_memory_format(channels_last):
    form = torch.channels_last if channels_last else torch.contiguous_format
    arguments, leaves = leaves_of(operands(channels_last=channels_last))
    arguments["weight"] = arguments["weight"].detach().contiguous(memory_format=form).requires_grad_()
    leaves["weight"] = arguments["weight"]
    result = deform_conv2d(**arguments)
    result.sum().backward()
    assert result.is_contiguous(memory_format=form)
    assert leaves["input"].grad.is_contiguous(memory_format=form)
    assert leaves["weight"].grad.is_contiguous(memory_format=form)


def test_any_strides_are_taken():
    arguments, _ = leaves_of(operands())
    expected = result_and_gradients(deform_conv2d, {k: _detached(v) for k, v in arguments.items()})
    strided = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            wide = torch.stack([value.detach(), torch.full_like(value, math.nan)], -1)
            strided[name] = wide[..., 0]
            assert not strided[name].is_contiguous()
        else:
            strided[name] = value
    found = deform_conv2d(**strided)
    assert torch.equal(found, expected["result"])
    # a gradient of the output that is one number, seen everywhere
    given, leaves = leaves_of({k: _detached(v) for k, v in arguments.items()})
    summed = torch.autograd.grad(deform_conv2d(**given).sum(), list(leaves.values()))
    ones = torch.autograd.grad(deform_conv2d(**given), list(leaves.values()), torch.ones_like(found))
    assert all(torch.equal(a, b) for a, b in zip(summed, ones, strict=True))


def _detached(value):
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def test_offsets_of_zero_make_a_convolution():
    arguments = operands(6, 4, groups=2, kernel=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), scale=0)
    arguments["mask"] = torch.ones_like(arguments["mask"])
    expected = torch.nn.functional.conv2d(
        arguments["input"], arguments["weight"], arguments["bias"], (2, 1), (1, 2), (1, 2), 2
    )
    torch.testing.assert_close(deform_conv2d(**arguments), expected)


def test_one_number_stands_for_both_axes():
    arguments = operands(kernel=(2, 2), stride=(2, 2), padding=(1, 1), dilation=(2, 2))
    single = {**arguments, "stride": 2, "padding": 1, "dilation": 2}
    assert torch.equal(deform_conv2d(**single), deform_conv2d(**arguments))


def test_no_images_give_empty_results_and_gradients_of_zero():
    for channels_last in (False, True):
        arguments, leaves = leaves_of(operands(images=0, channels_last=channels_last))
        result = deform_conv2d(**arguments)
        assert result.shape == (0, 6, 6, 7)
        result.sum().backward()
        for name in ("input", "offset", "mask"):
            assert leaves[name].grad.shape == leaves[name].shape
        assert not leaves["weight"].grad.any()
        assert not leaves["bias"].grad.any()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 6)])
@formats
def test_maps_smaller_than_the_window_work_where_padding_makes_room(size, channels_last):
    arguments = operands(size=size, kernel=(5, 3), padding=(2, 1), channels_last=channels_last)
    torch.testing.assert_close(deform_conv2d(**arguments), reference.deform_conv2d(**arguments))


@formats
@pytest.mark.parametrize("far", [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e6, -7.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_points_far_away_or_nowhere_count_as_zeros_and_get_no_gradient(far, axis, channels_last):
    arguments = operands(channels_last=channels_last)
    arguments["offset"][:, axis::2][:, 2] = far * (8 if far == -7.0 else 1)
    found = result_and_gradients(deform_conv2d, arguments)
    without = {**arguments, "mask": arguments["mask"].clone(), "offset": arguments["offset"].clone()}
    without["offset"][:, axis::2][:, 2] = 0
    without["mask"][:, 2] = 0
    expected = result_and_gradients(deform_conv2d, without)
    for name in ("result", "input", "weight", "bias"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-13)
    assert not found["offset"][:, 4:6].any()
    assert not found["mask"][:, 2].any()


def test_a_nan_in_the_input_reaches_its_neighbours_alone():
    arguments = operands(images=1, size=(9, 9), kernel=(1, 1), padding=(0, 0), scale=0.2)
    arguments["input"][0, 0, 4, 4] = math.nan
    result = deform_conv2d(**arguments)
    touched = result.isnan().any(1)[0]
    assert touched[4, 4]
    touched[3:6, 3:6] = False
    assert not touched.any()
    # outside of the map nothing is read, so nothing spreads from the corner that stands in for it
    arguments["input"][0, 0, 4, 4] = 0
    arguments["input"][0, 0, 0, 0] = math.inf
    arguments["offset"][:] = 0
    arguments["offset"][0, :, 8, 8] = 0.5
    assert deform_conv2d(**arguments)[0, :, 8, 8].isfinite().all()


def torchvision_agrees(arguments, dtype):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    theirs = torchvision.ops.deform_conv2d
    typed = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    found, expected = result_and_gradients(deform_conv2d, typed), result_and_gradients(theirs, typed)
    # what the docstring says, with the magnitudes of what is added bounded from above
    bound = {torch.float64: 1e-13, torch.float32: 1e-5}[dtype]
    for name, value in found.items():
        size = max([1.0, *expected[name].abs().flatten().tolist()])
        torch.testing.assert_close(value, expected[name], rtol=0, atol=bound * size, msg=lambda m, n=name: f"{n}: {m}")


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torchvision_agrees(operator, case, dtype):
    torchvision_agrees(operator.cases[case](), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torchvision_agrees_on_many_channels(dtype):
    torchvision_agrees(operands(136, 64, groups=2, size=(18, 21)), dtype)


@pytest.mark.parametrize("shift", [0.0, 1.0, -1.0])
def test_torchvision_agrees_where_points_lie_on_pixels_and_borders(shift):
    # Offsets of zero are what a layer starts with; there the value has a kink and the slope is that to the right.
    arguments = operands(scale=0)
    arguments["offset"] += shift
    torchvision_agrees(arguments, torch.float64)


@st.composite
def any_call(draw):
    groups, offset_groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    size, padding = [], []
    for axis in range(2):
        window = dilation[axis] * (kernel[axis] - 1) + 1
        size.append(draw(st.integers(1, 6)))
        padding.append(draw(st.integers(max(0, (window - size[axis] + 1) // 2), 3)))
    return operands(
        channels=groups * offset_groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 3)),
        groups=groups,
        offset_groups=offset_groups,
        images=draw(st.integers(0, 2)),
        size=size,
        kernel=kernel,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
        version=draw(st.sampled_from([1, 2])),
        channels_last=draw(st.booleans()),
        scale=draw(st.sampled_from([0.0, 1.0, 5.0, 1e4])),
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(any_call(), st.sampled_from(contract.DTYPES))
def test_any_call_equals_the_loop(arguments, dtype):
    other = torch.float64 if dtype == torch.float64 else torch.float32
    given = {
        name: value.to(dtype if name in ("input", "weight", "bias") else other)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in arguments.items()
    }
    result = deform_conv2d(**given)
    expected = reference.deform_conv2d(**given)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(any_call())
def test_gradients_of_any_call_are_torchvisions(arguments):
    torchvision_agrees(arguments, torch.float64)


def test_autocast_brings_all_but_the_points_to_its_type():
    arguments, _ = leaves_of(operands())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = deform_conv2d(**arguments)
        mixed = deform_conv2d(**{**arguments, "input": arguments["input"].bfloat16()})
        result.sum().backward()
    narrow = {k: v.bfloat16() if k in ("input", "weight", "bias") else v for k, v in arguments.items()}
    expected = deform_conv2d(**narrow)
    assert result.dtype == mixed.dtype == torch.bfloat16
    assert torch.equal(result, expected)
    assert torch.equal(mixed, expected)
    assert arguments["weight"].grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert deform_conv2d(**operands()).dtype == torch.float64


def test_a_gradient_of_the_gradient_is_refused():
    arguments, leaves = leaves_of(operands())
    (gradient,) = torch.autograd.grad(deform_conv2d(**arguments).sum(), [leaves["input"]], create_graph=True)
    with pytest.raises(RuntimeError, match="deform_conv2d: its gradient can't be differentiated again"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.zeros(4, 6, 7)}, r"input must be \[N, C, H, W\], got \[4, 6, 7\]"),
        ({"input": torch.zeros(2, 4, 6, 7).int()}, "input must be floating point, got Int"),
        ({"input": torch.zeros(2, 5, 6, 7)}, r"weight must be for a divisor of the 5 channels.*got \[6, 4, 3, 3\]"),
        ({"weight": torch.zeros(6, 4, 3)}, r"weight must be \[out_channels, C / groups.*got \[6, 4, 3\]"),
        ({"weight": torch.zeros(6, 0, 3, 3)}, r"weight must be \[out_channels, C / groups.*got \[6, 0, 3, 3\]"),
        ({"weight": torch.zeros(5, 2, 3, 3)}, r"weight must hold a multiple of its 2 groups, got \[5, 2, 3, 3\]"),
        ({"weight": torch.zeros(6, 4, 3, 3).double()}, "weight must be Float as input is, got Double"),
        ({"bias": torch.zeros(5)}, r"bias must be \[6\], got \[5\]"),
        ({"bias": torch.zeros(6).half()}, "bias must be Float as input is, got Half"),
        ({"offset": torch.zeros(2, 17, 6, 7)}, r"offset must be \[2, offset_groups \* 18, 6, 7\], got \[2, 17, 6, 7\]"),
        ({"offset": torch.zeros(2, 0, 6, 7)}, r"offset must be .*, got \[2, 0, 6, 7\]"),
        ({"offset": torch.zeros(2, 18, 5, 7)}, r"offset must be .*, got \[2, 18, 5, 7\]"),
        ({"offset": torch.zeros(1, 18, 6, 7)}, r"offset must be .*, got \[1, 18, 6, 7\]"),
        ({"offset": torch.zeros(2, 54, 6, 7)}, "offset must be for a number of groups that divides the 4 channels"),
        ({"offset": torch.zeros(2, 18, 6, 7).long()}, "offset must be floating point, got Long"),
        ({"mask": torch.zeros(2, 18, 6, 7)}, r"mask must be \[2, 9, 6, 7\], got \[2, 18, 6, 7\]"),
        ({"mask": torch.zeros(2, 9, 6, 7).bool()}, "mask must be floating point, got Bool"),
        ({"stride": (0, 1)}, "stride must be at least 1, got 0, 1"),
        ({"stride": (1, 1, 1)}, r"stride must be \(height, width\), got 3 numbers"),
        ({"padding": (1, -1)}, "padding must be at least 0, got 1, -1"),
        ({"dilation": (1, 0)}, "dilation must be at least 1, got 1, 0"),
        (
            {"padding": (0, 0), "dilation": (3, 1)},
            "as large as the window, .*; its height is 6 but the window's 7",
        ),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    contract.refuses(V2, "v2, contiguous", changes, "deform_conv2d: .*" + message)


def test_a_gradient_of_the_wrong_shape_is_named():
    given = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in operands().items()}
    with pytest.raises(RuntimeError, match=r"deform_conv2d_backward: grad must be \[2, 6, 6, 7\], got \[2, 6, 6, 1\]"):
        torch.ops.mrcnn.deform_conv2d_backward(
            torch.zeros(2, 6, 6, 1), given["input"], given["offset"], given["weight"], None, [1, 1], [1, 1], [1, 1],
            True, True, True, True,
        )  # fmt: skip
