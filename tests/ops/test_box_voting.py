import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import batched_nms, box_voting, nms, reference
from tests.ops import contract
from tests.ops.test_nms import some_boxes, some_scores

METHODS = ("ID", "TEMP_AVG", "AVG", "IOU_AVG", "GENERALIZED_AVG", "QUASI_SUM")


def arguments(count, groups=None, **rest):
    boxes, scores = some_boxes(count, clusters=count // 25 + 1), some_scores(count)
    result = {"boxes": boxes, "scores": scores, "keep": nms(boxes, scores, 0.5), **rest}
    if groups:
        result["idxs"] = torch.randint(-3, groups, (count,), generator=torch.Generator().manual_seed(2))
        result["keep"] = batched_nms(boxes, scores, result["idxs"], 0.5)
    return lambda: result


CASES = {
    "one box": arguments(1),
    "9 boxes": arguments(9, iou_threshold=0.1),
    "200 boxes": arguments(200, iou_threshold=0.4),
    "200 boxes of 9 groups": arguments(200, groups=6, iou_threshold=0.3, method="IOU_AVG"),
    "200 boxes of 200 groups": arguments(200, groups=2000, iou_threshold=0.3, method="AVG"),
    **{method: arguments(100, iou_threshold=0.3, method=method, beta=0.7) for method in METHODS[1:]},
}


def of_one_result(function):
    """The two results as one [K, 5], which is what the contract compares; hundreds of pixels become about one."""

    def joined(**arguments):
        boxes, scores = function(**arguments)
        return torch.cat([boxes / 256, scores[:, None].to(boxes.dtype)], 1)

    return joined


OPERATOR = contract.Operator(
    function=of_one_result(box_voting),
    reference=of_one_result(reference.box_voting),
    cases=CASES,
    values=("boxes", "scores"),
    tolerance={torch.float64: 1e-14, torch.float32: 2e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3},
)
every_case = pytest.mark.parametrize("case", CASES)


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_it_equals_the_loop(case, dtype):
    contract.equals_the_loop(OPERATOR, case, dtype)


@pytest.mark.parametrize("case", ["one box", "200 boxes of 9 groups"])
def test_opcheck_passes(case):
    contract.passes_opcheck(OPERATOR, case)


def test_it_compiles_whole():
    contract.compiles_whole(OPERATOR, "200 boxes of 9 groups")


@pytest.mark.parametrize("groups", [None, 40])
def test_the_number_of_threads_changes_nothing(groups):
    big = {"many": arguments(5000, groups=groups, iou_threshold=0.3, method="GENERALIZED_AVG", beta=2.0)}
    operator = contract.Operator(OPERATOR.function, OPERATOR.reference, big, ("boxes", "scores"))
    contract.same_bits_for_any_number_of_threads(operator, "many", torch.float32)


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu(case, dtype):
    contract.cuda_equals_cpu(OPERATOR, case, dtype)


@pytest.mark.gpu
def test_on_a_gpu_a_kept_index_of_no_box_gives_nan():
    boxes, scores, keep = torch.tensor([[0.0, 0, 9, 9]]).cuda(), torch.ones(1).cuda(), torch.tensor([0, 1, -1]).cuda()
    voted, left = box_voting(boxes, scores, keep)
    assert voted.isnan().all(1).tolist() == left.isnan().tolist() == [False, True, True]


def test_two_boxes_give_what_the_paper_and_detectron_say():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [50, 50, 60, 60]], dtype=torch.float64)  # two share a third
    scores = torch.tensor([0.6, 0.2, 0.9], dtype=torch.float64)
    keep = torch.tensor([0])
    expected = {
        "ID": 0.6,
        "AVG": 0.4,
        "IOU_AVG": (0.6 + 0.2 / 3) / (1 + 1 / 3),
        "GENERALIZED_AVG": math.sqrt((0.36 + 0.04) / 2),
        "QUASI_SUM": 0.8 / 2**2,
        "TEMP_AVG": (0.6**0.5 / (0.6**0.5 + 0.4**0.5) + 0.2**0.5 / (0.2**0.5 + 0.8**0.5)) / 2,
    }
    for method, score in expected.items():
        voted, left = box_voting(boxes, scores, keep, 0.3, method, 2.0)
        assert voted[0].tolist() == pytest.approx([0.25, 0, 2.25, 2])
        assert left[0].item() == pytest.approx(score)
    alone, left = box_voting(boxes, scores, keep, 0.5)
    assert alone[0].tolist() == boxes[0].tolist()
    assert left[0].item() == 0.6


def test_the_threshold_itself_is_enough():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]], dtype=torch.float64)
    third = 2.0 / 6.0
    for dtype, below, above in ((torch.float64, third, math.nextafter(third, 1)), (torch.float32, third, third + 1e-7)):
        narrow, scores = boxes.to(dtype), torch.ones(2, dtype=dtype)
        assert box_voting(narrow, scores, torch.tensor([0]), below)[0][0, 0] == 0.5
        assert box_voting(narrow, scores, torch.tensor([0]), above)[0][0, 0] == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_boxes_that_overlap_nothing_and_voters_without_weight_leave_a_box_as_it_is(method):
    inf, nan = math.inf, math.nan
    boxes = torch.tensor(
        [
            [5.0, 5, 5, 5],
            [9.0, 9, 2, 2],
            [0.0, nan, 10, 10],
            [0.0, 0, inf, inf],
            [20.0, 20, 30, 30],
            [20.0, 20, 30, 29],
            [50.0, 50, 60, 60],
        ]
    )
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.0, 0.0, 0.5])
    keep = torch.arange(7)
    for boxes_, scores_ in ((boxes, scores), (boxes.double(), scores.double())):
        voted, left = box_voting(boxes_, scores_, keep, method=method)
        torch.testing.assert_close(voted, boxes_, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(left, scores_, rtol=1e-6, atol=0)
        expected = reference.box_voting(boxes_, scores_, keep, method=method)[1]
        torch.testing.assert_close(left.double(), expected, rtol=0, atol=1e-6)


def test_nothing_in_nothing_out():
    none = torch.zeros(0, dtype=torch.int64)
    for dtype in contract.DTYPES:
        for count in (0, 3):
            voted, left = box_voting(torch.zeros(count, 4, dtype=dtype), torch.zeros(count, dtype=dtype), none)
            assert (voted.shape, voted.dtype, left.shape, left.dtype) == ((0, 4), dtype, (0,), dtype)
    assert box_voting(torch.zeros(0, 4), torch.zeros(0), none, idxs=none)[0].shape == (0, 4)


def test_any_strides_and_mixed_types_are_taken():
    boxes, scores = some_boxes(80).float(), some_scores(80).float()
    keep = torch.stack([torch.arange(40), torch.zeros(40).long()], 1)[:, 0]
    expected = box_voting(boxes, scores, keep.contiguous(), 0.4)
    wide, spread = torch.cat([boxes, boxes], 1)[:, :4], torch.stack([scores, scores], 1)[:, 0]
    for result, wanted in zip(box_voting(wide, spread, keep, 0.4), expected, strict=True):
        assert torch.equal(result, wanted)
    voted, left = box_voting(boxes, scores.half(), keep, 0.4, "AVG")  # as under autocast
    assert (voted.dtype, left.dtype) == (torch.float32, torch.float16)
    assert torch.equal(voted, box_voting(boxes, scores.half().float(), keep, 0.4, "AVG")[0])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    method=st.sampled_from(METHODS),
    groups=st.integers(1, 4),
    threshold=st.sampled_from([0.01, 0.3, 0.9, 1.0]),
    beta=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_it_equals_the_loop_on_whole_pixels(count, seed, method, groups, threshold, beta):
    random = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (count, 2), generator=random).double()
    boxes = torch.cat([corner, corner + torch.randint(-1, 9, (count, 2), generator=random)], 1)
    scores = torch.randint(0, 9, (count,), generator=random).double() / 8
    keep = torch.randint(0, count, (count // 2,), generator=random)
    idxs = torch.randint(0, groups, (count,), generator=random)
    result = box_voting(boxes, scores, keep, threshold, method, beta, idxs)
    expected = reference.box_voting(boxes, scores, keep, threshold, method, beta, idxs)
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.zeros(9, 5)}, r"box_voting: boxes must be \[N, 4\], got \[9, 5\]"),
        ({"boxes": torch.zeros(9, 4).int()}, "box_voting: boxes must be floating point, got Int"),
        ({"scores": torch.zeros(8)}, r"box_voting: scores must be \[9\], got \[8\]"),
        ({"scores": torch.zeros(9).int()}, "box_voting: scores must be floating point, got Int"),
        ({"scores": torch.zeros(9, device="meta")}, "box_voting: scores must be on the device of boxes, cpu, got meta"),
        ({"keep": torch.zeros(2, 1).long()}, r"box_voting: keep must be \[K\], got \[2, 1\]"),
        ({"keep": torch.zeros(2).int()}, "box_voting: keep must be int64, got Int"),
        ({"keep": torch.tensor([0, 9])}, "box_voting: keep must hold indices from 0 to 8, got 9"),
        ({"keep": torch.tensor([-1])}, "box_voting: keep must hold indices from 0 to 8, got -1"),
        ({"iou_threshold": 0.0}, "box_voting: iou_threshold must be positive, got 0"),
        ({"iou_threshold": math.nan}, "box_voting: iou_threshold must be positive, got nan"),
        ({"beta": 0.0}, "box_voting: beta must be positive, got 0"),
        ({"method": "MAX"}, "box_voting: method must be one of ID, TEMP_AVG, .*got 'MAX'"),
        ({"idxs": torch.zeros(8).long()}, r"box_voting: groups must be \[9\], got \[8\]"),
        ({"idxs": torch.zeros(9)}, "box_voting: idxs must be whole numbers, got float32"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    with pytest.raises(RuntimeError, match=message):
        box_voting(**{**CASES["9 boxes"](), **changes})
