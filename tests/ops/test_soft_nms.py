import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import batched_nms, nms, reference, soft_nms, soft_nms_scores
from tests.ops import contract
from tests.ops.test_nms import some_boxes, some_scores

METHODS = ("linear", "gaussian", "hard")


def arguments(count, groups=None, **rest):
    result = {"boxes": some_boxes(count, clusters=count // 12 + 1), "scores": some_scores(count), **rest}
    if groups:
        result["idxs"] = torch.randint(-3, groups, (count,), generator=torch.Generator().manual_seed(2))
    return lambda: result


CASES = {
    "one box": arguments(1),
    "9 boxes, gaussian": arguments(9, method="gaussian"),
    "130 boxes, linear": arguments(130),
    "130 boxes, gaussian": arguments(130, method="gaussian", sigma=0.3),
    "130 boxes, hard": arguments(130, method="hard", iou_threshold=0.5),
    "130 boxes, threshold 0": arguments(130, iou_threshold=0.0, score_threshold=0.0),
    "200 boxes of 9 groups, linear": arguments(200, groups=6, score_threshold=0.2),
    "200 boxes of 60 groups, gaussian": arguments(200, groups=57, method="gaussian"),
}
# A tolerance of a float64 loop that sees the rounded numbers; the result is rounded once more to half precision.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def operator_of(function, loop, values):
    return contract.Operator(function=function, reference=loop, cases=CASES, values=values, tolerance=TOLERANCE)


SCORES = operator_of(soft_nms_scores, reference.soft_nms_scores, ("scores",))
every_case = pytest.mark.parametrize("case", CASES)


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_it_leaves_the_scores_of_the_loop(case, dtype):
    contract.equals_the_loop(SCORES, case, dtype)


@every_case
def test_it_picks_in_the_order_of_the_loop(case):
    picked, scores = soft_nms(**CASES[case]())
    expected, expected_scores = reference.soft_nms(**CASES[case]())
    assert torch.equal(picked, expected)
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", ["one box", "130 boxes, linear", "200 boxes of 60 groups, gaussian"])
def test_opcheck_passes(case):
    contract.passes_opcheck(SCORES, case)


@pytest.mark.parametrize("case", ["130 boxes, gaussian", "200 boxes of 9 groups, linear"])
def test_the_shape_preserving_form_compiles_whole(case):
    contract.compiles_whole(SCORES, case)


def test_the_number_of_threads_changes_nothing():
    big = {"many": arguments(5000, groups=40)}
    operator = contract.Operator(soft_nms_scores, reference.soft_nms_scores, big, ("scores",))
    contract.same_bits_for_any_number_of_threads(operator, "many", torch.float32)


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu_to_the_bit(case, dtype):
    on_cpu, on_cuda = SCORES.arguments(case, dtype), SCORES.arguments(case, dtype, "cuda")
    assert torch.equal(soft_nms_scores(**on_cuda).cpu(), soft_nms_scores(**on_cpu))


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [None, 80])
def test_cuda_equals_cpu_for_many_boxes(groups):
    given_ = arguments(5000, groups=groups)()
    for method in METHODS:
        on_cuda = {
            name: value.float().cuda() if value.is_floating_point() else value.cuda() for name, value in given_.items()
        }
        on_cpu = {name: value.cpu() for name, value in on_cuda.items()}
        for result, expected in zip(soft_nms(**on_cuda, method=method), soft_nms(**on_cpu, method=method), strict=True):
            assert torch.equal(result.cpu(), expected)


def test_picks_that_wait_have_the_same_bits_as_picks_that_decay_all_at_once():
    # The kernel looks at a box only when it might be next; the paper lowers all scores after every pick.
    boxes, scores = some_boxes(300, clusters=9).float(), some_scores(300).float()
    low = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    sides = (torch.minimum(boxes[:, None, 2:], boxes[:, 2:]) - low).clamp(min=0)
    intersection, area = sides.prod(-1), (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    overlap = intersection / (area[:, None] + area - intersection)
    factor = torch.where(overlap > torch.tensor(0.3).nextafter(torch.tensor(0.0)), 1 - overlap, 1.0)
    live, expected = scores.clone(), torch.zeros_like(scores)
    while live.max() >= 0.05:
        best = int(live.argmax())
        expected[best] = live[best]
        live = live * factor[best]
        live[best] = 0
        live[live < 0.05] = 0
    assert torch.equal(soft_nms_scores(boxes, scores, 0.3, score_threshold=0.05), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_is_nms(dtype):
    boxes, scores = some_boxes(700).to(dtype), some_scores(700, distinct=200).to(dtype) + 0.01
    picked, left = soft_nms(boxes, scores, 0.4, "hard")
    assert torch.equal(picked, nms(boxes, scores, 0.4))
    assert torch.equal(left, scores[picked])
    idxs = torch.arange(700) % 7
    assert torch.equal(soft_nms(boxes, scores, 0.4, "hard", idxs=idxs)[0], batched_nms(boxes, scores, idxs, 0.4))


def test_two_boxes_lose_what_the_paper_says():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]], dtype=torch.float64)  # a third of their union is shared
    scores = torch.tensor([0.5, 0.9], dtype=torch.float64)
    picked, left = soft_nms(boxes, scores, 0.3, "linear")
    assert picked.tolist() == [1, 0]
    assert left.tolist() == pytest.approx([0.9, 0.5 * 2 / 3])
    assert soft_nms(boxes, scores, 0.4, "linear")[1].tolist() == [0.9, 0.5]
    assert soft_nms(boxes, scores, 0.4, "gaussian", sigma=0.25)[1].tolist() == pytest.approx(
        [0.9, 0.5 * math.exp(-(1 / 9) / 0.25)], rel=1e-15
    )
    assert soft_nms(boxes, scores, 0.3, "linear", score_threshold=0.34)[0].tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponential_is_right_to_the_last_bits(dtype):
    # Two boxes that share all but a little; sigma sweeps the exponent from 0 to where nothing is left.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 9]], dtype=dtype)
    scores = torch.tensor([1.0, 0.999], dtype=dtype)
    for exponent in torch.logspace(-6, math.log10(80), 300).tolist():
        left = soft_nms_scores(boxes, scores, method="gaussian", sigma=0.81 / exponent, score_threshold=0.0)
        exact = scores[1].item() * math.exp(-(float(torch.tensor(0.9, dtype=dtype)) ** 2) / (0.81 / exponent))
        assert left[1].item() == pytest.approx(exact, rel=(4 + exponent) * torch.finfo(dtype).eps)


def test_equal_scores_are_picked_in_their_order():
    apart = torch.tensor([[i * 10.0, 0.0, i * 10.0 + 5, 5.0] for i in range(5)])
    assert soft_nms(apart, torch.tensor([0.5, 0.7, 0.5, 0.7, 0.5]))[0].tolist() == [1, 3, 0, 2, 4]


def test_scores_that_are_nan_low_or_negative_are_dropped():
    apart = torch.tensor([[i * 10.0, 0.0, i * 10.0 + 5, 5.0] for i in range(6)])
    scores = torch.tensor([math.nan, 0.0, -1.0, 0.0005, 0.4, math.inf])
    assert soft_nms(apart, scores)[0].tolist() == [5, 4]
    assert soft_nms(apart, scores, score_threshold=0.0)[0].tolist() == [5, 4, 3]


@pytest.mark.parametrize("method", METHODS)
def test_odd_boxes_are_treated_as_the_loop_treats_them(method):
    inf, nan = math.inf, math.nan
    boxes = torch.tensor(
        [
            [5.0, 5, 5, 5],
            [5.0, 5, 5, 5],
            [9.0, 9, 2, 2],
            [0.0, 0, 10, 10],
            [0.0, 0, 10, 10.5],
            [0.0, nan, 10, 10],
            [0.0, 0, inf, inf],
            [-inf, -inf, inf, inf],
            [-inf, 0, 0, 5],
        ]
    )
    scores = torch.linspace(0.9, 0.1, 9)
    for boxes_, scores_ in ((boxes, scores), (boxes.double(), scores.double())):
        left = soft_nms_scores(boxes_, scores_, method=method)
        expected = reference.soft_nms_scores(boxes_, scores_, method=method)
        torch.testing.assert_close(left.double(), expected, rtol=0, atol=1e-6)


def test_nothing_in_nothing_out():
    for dtype in contract.DTYPES:
        picked, left = soft_nms(torch.zeros(0, 4, dtype=dtype), torch.zeros(0, dtype=dtype))
        assert (picked.shape, picked.dtype, left.shape, left.dtype) == ((0,), torch.int64, (0,), dtype)
    empty = torch.zeros(0, dtype=torch.int64)
    assert soft_nms_scores(torch.zeros(0, 4), torch.zeros(0), idxs=empty).shape == (0,)


def test_any_strides_and_mixed_types_are_taken():
    boxes, scores = some_boxes(80).float(), some_scores(80).float()
    wide, spread = torch.cat([boxes, boxes], 1)[:, :4], torch.stack([scores, scores], 1)[:, 0]
    assert torch.equal(soft_nms_scores(wide, spread), soft_nms_scores(boxes, scores))
    # half-precision scores beside float32 boxes, as under autocast; float64 scores are kept
    half = scores.half()
    assert torch.equal(soft_nms_scores(boxes, half), soft_nms_scores(boxes, half.float()).half())
    assert soft_nms_scores(boxes, scores.double()).dtype == torch.float64


def test_the_arguments_are_not_written_to_and_get_no_gradient():
    boxes, scores = some_boxes(50).float(), some_scores(50).float().requires_grad_()
    before = scores.detach().clone()
    assert not soft_nms(boxes, scores)[1].requires_grad
    assert torch.equal(scores.detach(), before)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    count=st.integers(0, 40),
    seed=st.integers(0, 2**31),
    method=st.sampled_from(METHODS),
    groups=st.integers(1, 4),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    score_threshold=st.sampled_from([0.0, 0.001, 0.3]),
)
def test_it_equals_the_loop_on_whole_pixels(count, seed, method, groups, threshold, score_threshold):
    random = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (count, 2), generator=random).double()
    boxes = torch.cat([corner, corner + torch.randint(-1, 9, (count, 2), generator=random)], 1)
    scores = torch.randint(0, 9, (count,), generator=random).double() / 8
    idxs = torch.randint(0, groups, (count,), generator=random)
    rest = {"method": method, "score_threshold": score_threshold, "idxs": idxs}
    picked, left = soft_nms(boxes, scores, threshold, **rest)
    # Rounding differs where the products do; scores that come as close as that may change places.
    assert torch.equal(left, left.sort(descending=True).values)
    torch.testing.assert_close(
        soft_nms_scores(boxes, scores, threshold, **rest),
        reference.soft_nms_scores(boxes, scores, threshold, **rest),
        rtol=0,
        atol=1e-12,
    )
    assert torch.equal(picked.sort().values, (soft_nms_scores(boxes, scores, threshold, **rest) > 0).nonzero()[:, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.zeros(9, 5)}, r"soft_nms: boxes must be \[N, 4\], got \[9, 5\]"),
        ({"boxes": torch.zeros(9, 4).int()}, "soft_nms: boxes must be floating point, got Int"),
        ({"scores": torch.zeros(8)}, r"soft_nms: scores must be \[9\], got \[8\]"),
        ({"scores": torch.zeros(9).int()}, "soft_nms: scores must be floating point, got Int"),
        ({"scores": torch.zeros(9, device="meta")}, "soft_nms: scores must be on the device of boxes, cpu, got meta"),
        ({"method": "soft"}, "soft_nms: method must be one of hard, linear, gaussian, got 'soft'"),
        ({"iou_threshold": -0.1}, "soft_nms: iou_threshold must not be negative, got -0.1"),
        ({"iou_threshold": math.nan}, "soft_nms: iou_threshold must not be negative, got nan"),
        ({"sigma": 0.0}, "soft_nms: sigma must be positive, got 0"),
        ({"score_threshold": -1.0}, "soft_nms: score_threshold must not be negative, got -1"),
        ({"idxs": torch.zeros(8).long()}, r"soft_nms: groups must be \[9\], got \[8\]"),
        ({"idxs": torch.zeros(9)}, "soft_nms: idxs must be whole numbers, got float32"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    for function in (soft_nms_scores, soft_nms):
        operator = operator_of(functools.partial(function), None, ("scores",))
        contract.refuses(operator, "9 boxes, gaussian", changes, message)
