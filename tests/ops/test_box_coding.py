import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import clip_boxes, decode, encode, reference
from tests.ops import contract

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def some_boxes(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random, dtype=torch.float64) * 4
    return torch.cat([corner, corner + torch.rand(count, 2, generator=random, dtype=torch.float64) * 3 + 1], 1)


def some_deltas(*shape, seed=0):
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 0.2}
ENCODE = contract.Operator(
    function=encode,
    reference=reference.encode,
    cases={
        "one box": lambda: {"boxes": some_boxes(1, 1), "anchors": some_boxes(1, 2)},
        "nine boxes": lambda: {"boxes": some_boxes(9, 1), "anchors": some_boxes(9, 2), "weights": WEIGHTS},
        "300 boxes": lambda: {"boxes": some_boxes(300, 1), "anchors": some_boxes(300, 2), "weights": (1, 2, 3, 4)},
    },
    values=("boxes", "anchors"),
    tolerance=TOLERANCE,
    differentiable=("boxes", "anchors"),
)
DECODE = contract.Operator(
    function=decode,
    reference=reference.decode,
    cases={
        "one box": lambda: {"deltas": some_deltas(1), "anchors": some_boxes(1, 2)},
        "nine boxes": lambda: {"deltas": some_deltas(9), "anchors": some_boxes(9, 2), "weights": WEIGHTS},
        "300 boxes": lambda: {"deltas": some_deltas(300), "anchors": some_boxes(300, 2), "weights": (4, 2, 3, 4)},
    },
    values=("deltas", "anchors"),
    tolerance={**TOLERANCE, torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.6},
    differentiable=("deltas", "anchors"),
)
CLIP = contract.Operator(
    function=clip_boxes,
    reference=reference.clip_boxes,
    cases={f"{count} boxes": lambda count=count: {"boxes": 3 * some_deltas(count), "size": (3, 4)} for count in (1, 9)},
    values=("boxes",),
    tolerance={dtype: 0.0 for dtype in contract.DTYPES},
    differentiable=("boxes",),
)
CASES = [(operator, case) for operator in (ENCODE, DECODE, CLIP) for case in operator.cases]
every_case = pytest.mark.parametrize(
    ("operator", "case"), CASES, ids=[f"{op.function.__name__}: {case}" for op, case in CASES]
)
every_operator = pytest.mark.parametrize("operator", [ENCODE, DECODE, CLIP], ids=["encode", "decode", "clip_boxes"])


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_results_equal_the_loop(operator, case, dtype):
    contract.equals_the_loop(operator, case, dtype)


@every_operator
def test_gradients_are_right_and_so_are_theirs(operator):
    contract.has_right_gradients(operator, list(operator.cases)[1])


@every_operator
def test_it_compiles_whole(operator):
    contract.compiles_whole(operator, list(operator.cases)[1])


@every_operator
def test_opcheck_passes(operator):
    contract.passes_opcheck(operator, list(operator.cases)[1], differentiable_boxes=True)


@every_case
def test_the_number_of_threads_changes_nothing(operator, case):
    contract.same_bits_for_any_number_of_threads(operator, case, torch.float32)


def test_the_number_of_threads_changes_nothing_for_many_boxes():
    before, results = torch.get_num_threads(), []
    boxes, anchors = some_boxes(40_000, 1).float(), some_boxes(40_000, 2).float()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            anchor = anchors[:20_000].clone().requires_grad_()
            decoded = decode(some_deltas(3, 20_000, 2).float(), anchor[:, None])
            results.append((encode(boxes, anchors, WEIGHTS), decoded, *torch.autograd.grad(decoded.sum(), anchor)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu(operator, case, dtype):
    contract.cuda_equals_cpu(operator, case, dtype)


def test_encode_follows_the_papers_formula():
    box, anchor = [10.0, 20.0, 50.0, 100.0], [0.0, 10.0, 30.0, 50.0]
    width, height, anchor_width, anchor_height = 40.0, 80.0, 30.0, 40.0
    expected = [
        10 * (30.0 - 15.0) / anchor_width,
        10 * (60.0 - 30.0) / anchor_height,
        5 * math.log(width / anchor_width),
        5 * math.log(height / anchor_height),
    ]
    deltas = encode(torch.tensor([box]), torch.tensor([anchor]), WEIGHTS)
    torch.testing.assert_close(deltas, torch.tensor([expected]))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), WEIGHTS])
def test_decode_undoes_encode(weights):
    boxes, anchors = some_boxes(50, 1), some_boxes(50, 2)
    torch.testing.assert_close(decode(encode(boxes, anchors, weights), anchors, weights), boxes)


def test_decode_clamps_wild_sizes_from_above_only():
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    wide = decode(torch.tensor([[0.0, 0.0, 50.0, 0.0]]), anchor)
    assert (wide[0, 2] - wide[0, 0]).item() == pytest.approx(1000.0)
    narrow = decode(torch.tensor([[0.0, 0.0, -50.0, 0.0]]), anchor)
    assert 0 <= (narrow[0, 2] - narrow[0, 0]).item() < 1e-6


def test_a_clamped_size_has_no_gradient():
    deltas = torch.tensor([[0.0, 0.0, 9.0, 1.0]], dtype=torch.float64).requires_grad_()
    grad = torch.autograd.grad(decode(deltas, some_boxes(1), clamp=2.0)[0, 2:].sum(), deltas)[0]
    assert grad[0, 2] == 0
    assert grad[0, 3] != 0


def by_formula(deltas, anchors, weights, clamp):
    """The same in PyTorch's own operators."""
    deltas = deltas / deltas.new_tensor(weights)
    size = anchors[..., 2:] - anchors[..., :2]
    center = anchors[..., :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * size * torch.exp(deltas[..., 2:].clamp(max=clamp))
    return torch.cat([center - half, center + half], -1)


SIZES = st.sampled_from([0, 1, 1, 2, 3])


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.lists(st.tuples(SIZES, st.sampled_from(["both", "deltas", "anchors"])), max_size=4), st.integers(0, 4))
def test_decode_broadcasts_as_pytorch_does_with_its_bits_and_gradients(dimensions, missing):
    full = [size for size, _ in dimensions]
    deltas = some_deltas(*[1 if which == "anchors" else size for size, which in dimensions])
    anchors = [1 if which == "deltas" else size for size, which in dimensions]
    while missing > 0 and anchors and anchors[0] == 1:
        anchors, missing = anchors[1:], missing - 1
    boxes = some_boxes(math.prod(anchors), 3).reshape(*anchors, 4)
    for dtype in (torch.float64, torch.float32):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (deltas, boxes)]
        result, expected = decode(*inputs, WEIGHTS, 2.0), by_formula(*inputs, WEIGHTS, 2.0)
        assert list(result.shape) == [*full, 4]
        assert torch.equal(result, expected)
        if dtype == torch.float64 and result.numel():
            weights = torch.linspace(-1, 1, result.numel(), dtype=dtype).reshape(result.shape)
            grads = [torch.autograd.grad((boxes * weights).sum(), inputs) for boxes in (result, expected)]
            for own, wanted in zip(*grads, strict=True):
                torch.testing.assert_close(own, wanted)


def test_encode_broadcasts():
    boxes, anchors = some_boxes(3, 1), some_boxes(3, 2)
    every = encode(boxes[:, None], anchors)
    assert every.shape == (3, 3, 4)
    assert torch.equal(every[1], encode(boxes[1:2].expand(3, 4), anchors))


def test_clip_keeps_boxes_inside_of_the_image():
    boxes = torch.tensor([[-5.0, 3.0, 20.0, 300.0], [1.0, 2.0, 3.0, 4.0]])
    assert clip_boxes(boxes, (100, 10)).tolist() == [[0.0, 3.0, 10.0, 100.0], [1.0, 2.0, 3.0, 4.0]]
    assert torch.equal(clip_boxes(boxes.reshape(2, 1, 4), (100, 10))[:, 0], clip_boxes(boxes, (100, 10)))


def test_nan_and_infinite_numbers_go_through_as_in_pytorch():
    odd = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 3.0])
    rows = torch.cartesian_prod(odd, odd, odd, odd)
    anchors = torch.tensor([[0.0, 0, 4, 8]]).expand(len(rows), 4)
    clipped = torch.stack([rows[:, i].clamp(0, (4, 2)[i % 2]) for i in range(4)], 1)
    for result, expected in (
        (clip_boxes(rows, (2, 4)), clipped),
        (decode(rows, anchors), by_formula(rows, anchors, (1, 1, 1, 1), math.log(1000 / 16))),
    ):
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    deltas = encode(torch.tensor([[1.0, 1, 1, 3], [3, 3, 1, 1]]), anchors[:2])
    assert deltas[0, 2] == -math.inf
    assert deltas[1, 2:].isnan().all()


def test_nothing_in_nothing_out():
    nothing = torch.zeros(0, 4)
    for result in (encode(nothing, nothing), decode(nothing, nothing), clip_boxes(nothing, (5, 5))):
        assert result.shape == (0, 4)
    assert decode(torch.zeros(0, 80, 4), torch.zeros(0, 1, 4)).shape == (0, 80, 4)
    assert decode(torch.zeros(3, 0, 4), torch.zeros(3, 1, 4)).shape == (3, 0, 4)
    assert encode(nothing, nothing.half()).dtype == torch.float32


def test_half_precision_is_computed_in_float32_and_rounded_once():
    deltas, anchors = some_deltas(40), some_boxes(40)
    for dtype in (torch.float16, torch.bfloat16):
        low = (deltas.to(dtype), anchors.to(dtype))
        assert torch.equal(decode(*low), decode(low[0].float(), low[1].float()).to(dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(decode(*low), decode(low[0].float(), low[1].float()).to(dtype))
            assert decode(low[0], anchors.float()).dtype == torch.float32


def test_any_strides_are_taken():
    boxes, anchors = some_boxes(12, 1), some_boxes(12, 2)
    turned = [values.T.contiguous().T for values in (boxes, anchors)]
    assert torch.equal(encode(*turned), encode(boxes, anchors))
    assert torch.equal(decode(*turned), decode(boxes, anchors))
    assert torch.equal(clip_boxes(turned[0], (3, 3)), clip_boxes(boxes, (3, 3)))


@pytest.mark.parametrize(
    ("operator", "changes", "message"),
    [
        (ENCODE, {"boxes": torch.zeros(9, 5)}, r"encode: boxes must be \[..., 4\], got \[9, 5\]"),
        (ENCODE, {"anchors": torch.zeros(())}, r"encode: anchors must be \[..., 4\], got \[\]"),
        (ENCODE, {"weights": (1, 1)}, "encode: weights must be 4 numbers, got 2"),
        (DECODE, {"deltas": torch.zeros(9, 3)}, r"decode: deltas must be \[..., 4\], got \[9, 3\]"),
        (DECODE, {"weights": (1,)}, "decode: weights must be 4 numbers, got 1"),
        (DECODE, {"anchors": torch.zeros(8, 4)}, "[Bb]roadcast|[Ss]hape mismatch"),
        (
            DECODE,
            {"deltas": torch.zeros(9, 4).int(), "anchors": torch.zeros(9, 4).int()},
            "decode: deltas must be floating point, got Int",
        ),
        (CLIP, {"boxes": torch.zeros(3)}, r"clip_boxes: boxes must be \[..., 4\], got \[3\]"),
    ],
)
def test_a_wrong_argument_is_named(operator, changes, message):
    contract.refuses(operator, list(operator.cases)[1], changes, message)


def test_it_agrees_with_torchvision():
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    coder = torchvision.models.detection._utils.BoxCoder(WEIGHTS)
    for dtype in (torch.float32, torch.float64):
        boxes, anchors = some_boxes(5000, 1).to(dtype), some_boxes(5000, 2).to(dtype)
        deltas = (3 * some_deltas(5000)).to(dtype)
        assert torch.equal(decode(deltas, anchors, WEIGHTS), coder.decode_single(deltas, anchors))
        ours, theirs = encode(boxes, anchors, WEIGHTS), coder.encode_single(boxes, anchors)
        assert torch.equal(ours[:, 2:], theirs[:, 2:])
        # A few roundings of coordinates up to 8, by anchors of at least 1, times the weight of 10
        assert (ours - theirs).abs().max() <= 4 * torch.finfo(dtype).eps * 8 * 10
        size = torchvision.ops.clip_boxes_to_image(boxes, (3, 5))
        assert torch.equal(clip_boxes(boxes, (3, 5)), size)
