import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli import ops
from mrcnn_cli.ops import (
    box_coverage,
    box_iou,
    generalized_box_iou,
    generalized_box_iou_loss,
    paired_box_iou,
    paired_generalized_box_iou,
    reference,
)
from tests.ops import contract

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def some_boxes(count, seed=0, extent=50.0):
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random, dtype=torch.float64) * extent
    return torch.cat([corner, corner + torch.rand(count, 2, generator=random, dtype=torch.float64) * 30 + 1], 1)


def operator(name, cases, first="boxes1", second="boxes2"):
    return contract.Operator(
        function=getattr(ops, name),
        reference=getattr(reference, name),
        cases={
            f"{one} and {other} boxes": lambda one=one, other=other: {
                first: some_boxes(one, 1),
                second: some_boxes(other, 2),
            }
            for one, other in cases
        },
        values=(first, second),
        tolerance=TOLERANCE,
        differentiable=(first, second),
    )


PAIRWISE = ((1, 1), (5, 3), (7, 20), (40, 33))
PAIRED = ((1, 1), (9, 9), (300, 300))
OPERATORS = [
    operator("box_iou", PAIRWISE),
    operator("generalized_box_iou", PAIRWISE),
    operator("box_coverage", PAIRWISE, "boxes", "regions"),
    operator("paired_box_iou", PAIRED),
    operator("paired_generalized_box_iou", PAIRED),
    operator("generalized_box_iou_loss", PAIRED),
]
CASES = [(operator, case) for operator in OPERATORS for case in operator.cases]
every_case = pytest.mark.parametrize(
    ("operator", "case"), CASES, ids=[f"{op.function.__name__}: {case}" for op, case in CASES]
)
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=[op.function.__name__ for op in OPERATORS])


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_overlaps_equal_the_loop(operator, case, dtype):
    contract.equals_the_loop(operator, case, dtype)


@every_operator
def test_gradients_are_right_and_so_are_theirs(operator):
    contract.has_right_gradients(operator, list(operator.cases)[1])


@every_operator
def test_opcheck_passes(operator):
    contract.passes_opcheck(operator, list(operator.cases)[1], differentiable_boxes=True)


@every_operator
def test_it_compiles_whole(operator):
    contract.compiles_whole(operator, list(operator.cases)[1])


@every_case
def test_the_number_of_threads_changes_nothing(operator, case):
    contract.same_bits_for_any_number_of_threads(operator, case, torch.float32)


@pytest.mark.parametrize("function", [box_iou, generalized_box_iou])
def test_the_number_of_threads_changes_nothing_for_many_boxes(function):
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            boxes1, boxes2 = some_boxes(700, 1).float().requires_grad_(), some_boxes(500, 2).float().requires_grad_()
            overlaps = function(boxes1, boxes2)
            results.append((overlaps, *torch.autograd.grad(overlaps.pow(2).sum(), (boxes1, boxes2))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu(operator, case, dtype):
    contract.cuda_equals_cpu(operator, case, dtype)


ODD = st.sampled_from([0.0, 1.0, 2.0, 3.0, 7.0, -2.0, math.nan])
ODD_BOXES = st.lists(st.tuples(ODD, ODD, ODD, ODD), max_size=20)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(ODD_BOXES, ODD_BOXES)
def test_nan_inverted_and_empty_boxes_are_measured_as_the_loop_measures_them(a, b):
    boxes1, boxes2 = (torch.tensor(rows, dtype=torch.float64).reshape(-1, 4) for rows in (a, b))
    for function in (box_iou, generalized_box_iou, box_coverage):
        expected = getattr(reference, function.__name__)(boxes1, boxes2)
        for dtype in contract.DTYPES:
            tolerance = TOLERANCE[dtype] * max(1.0, expected.nan_to_num(0).abs().max().item() if a and b else 0.0)
            result = function(boxes1.to(dtype), boxes2.to(dtype))
            torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance, equal_nan=True)


def test_boxes_without_area_overlap_nothing_and_have_no_gradient():
    empty = torch.tensor([[3.0, 3, 3, 3]]).requires_grad_()
    for function in (box_iou, generalized_box_iou, box_coverage):
        value = function(empty, empty.detach())
        assert value.tolist() == [[0.0]]
        assert torch.autograd.grad(value, empty)[0].tolist() == [[0.0] * 4]


def test_a_nan_shows():
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(9, 1)
    for coordinate in range(4):
        broken = boxes.clone()
        broken[4, coordinate] = math.nan
        for function in (paired_box_iou, paired_generalized_box_iou, generalized_box_iou_loss):
            for result in (function(broken, boxes), function(boxes, broken)):
                assert result.isnan().nonzero()[:, 0].tolist() == [4]
        assert box_iou(boxes, broken).isnan().any(0).nonzero()[:, 0].tolist() == [4]


def test_infinite_boxes_give_what_torchvision_gives():
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    inf = math.inf
    boxes = torch.tensor([[0.0, 0, inf, inf], [-inf, 0, 5, 5], [0, 0, inf, 5], [0, 0, 5, 5], [inf, 0, inf, 5]])
    for function in (box_iou, generalized_box_iou):
        expected = getattr(torchvision.ops, function.__name__)(boxes, boxes)
        torch.testing.assert_close(function(boxes, boxes), expected, rtol=0, atol=0, equal_nan=True)


def test_coverage_is_the_share_of_the_box_itself():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [3.0, 3.0, 3.0, 9.0]])
    assert box_coverage(boxes, torch.tensor([[5.0, 0.0, 100.0, 10.0]])).tolist() == [[0.5], [0.0]]


def test_half_precision_areas_do_not_overflow():
    boxes = torch.tensor([[0.0, 0, 1000, 1000], [0, 0, 1000, 500]], dtype=torch.float16)
    assert box_iou(boxes, boxes).tolist() == [[1.0, 0.5], [0.5, 1.0]]


def test_types_may_differ_and_autocast_changes_nothing():
    boxes1, boxes2 = some_boxes(6).float(), some_boxes(6, 1).bfloat16()
    result = box_iou(boxes1, boxes2)
    assert result.dtype == torch.float32
    assert torch.equal(result, box_iou(boxes1, boxes2.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(box_iou(boxes1, boxes2), result)
        assert torch.equal(paired_box_iou(boxes1, boxes2), result.diagonal())


def test_paired_boxes_are_broadcast_and_keep_their_shape():
    boxes1, boxes2 = some_boxes(6).reshape(2, 3, 4), some_boxes(3, 1)
    result = paired_generalized_box_iou(boxes1, boxes2)
    assert result.shape == (2, 3)
    assert torch.equal(result[1, 2], generalized_box_iou(boxes1[1], boxes2)[2, 2])
    assert paired_box_iou(boxes1[0, 0], boxes2[0]).shape == ()
    assert paired_box_iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_any_strides_are_taken():
    boxes1, boxes2 = some_boxes(12).float(), some_boxes(9, 1).float()
    turned = [boxes.T.contiguous().T for boxes in (boxes1, boxes2)]
    assert torch.equal(generalized_box_iou(*turned), generalized_box_iou(boxes1, boxes2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes1": torch.zeros(3, 5)}, r"box_iou: boxes1 must be \[N, 4\], got \[3, 5\]"),
        ({"boxes2": torch.zeros(4)}, r"box_iou: boxes2 must be \[N, 4\], got \[4\]"),
        ({"boxes1": torch.zeros(3, 4).int(), "boxes2": torch.zeros(3, 4).int()}, "boxes1 must be floating .* Int"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    contract.refuses(OPERATORS[0], "5 and 3 boxes", arguments, message)


def test_wrong_paired_arguments_are_named():
    with pytest.raises(RuntimeError, match=r"paired_box_iou: boxes2 must be \[..., 4\], got \[3, 5\]"):
        paired_box_iou(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="reduction must be 'none', 'mean' or 'sum', got 'median'"):
        generalized_box_iou_loss(torch.zeros(3, 4), torch.zeros(3, 4), "median")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (17, 250), (500, 33), (0, 5), (5, 0)])
def test_overlaps_equal_torchvisions_to_the_bit(rows, columns, dtype):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    boxes1, boxes2 = some_boxes(rows, 1).to(dtype), some_boxes(columns, 2).to(dtype)
    assert torch.equal(box_iou(boxes1, boxes2), torchvision.ops.box_iou(boxes1, boxes2))
    assert torch.equal(generalized_box_iou(boxes1, boxes2), torchvision.ops.generalized_box_iou(boxes1, boxes2))


@pytest.mark.parametrize("count", [0, 1, 40])
def test_the_loss_and_its_gradients_equal_torchvisions(count):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    boxes1, boxes2 = some_boxes(count, 1), some_boxes(count, 2)
    boxes1[::3] = boxes2[::3]  # equal coordinates
    boxes1[1::3, 0] = boxes2[1::3, 0]
    assert torch.equal(
        generalized_box_iou_loss(boxes1, boxes2), torchvision.ops.generalized_box_iou_loss(boxes1, boxes2)
    )
    boxes1, boxes2 = boxes1.requires_grad_(), boxes2.requires_grad_()
    for reduction in ("mean", "sum"):
        ours = generalized_box_iou_loss(boxes1, boxes2, reduction)
        theirs = torchvision.ops.generalized_box_iou_loss(boxes1, boxes2, reduction)
        torch.testing.assert_close(ours, theirs)
        grads = (torch.autograd.grad(loss, (boxes1, boxes2)) for loss in (ours, theirs))
        for own, other in zip(*grads, strict=True):
            torch.testing.assert_close(own, other)


def test_boxes_that_only_touch_pull_at_each_other_no_more_than_boxes_apart():
    boxes = torch.tensor([[0.0, 0, 3, 3]], requires_grad=True)
    touching = torch.tensor([[3.0, 0, 6, 3], [0, 3, 3, 6], [3, 3, 6, 6]])
    [grad] = torch.autograd.grad(box_iou(boxes, touching).sum(), boxes)
    assert torch.equal(grad, torch.zeros(1, 4))


def test_equal_coordinates_share_the_gradient_as_in_torchvision():
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    corner = torch.randint(0, 5, (30, 2), generator=torch.Generator().manual_seed(0)).double()
    boxes1 = torch.cat([corner, corner + 3], 1).requires_grad_()
    boxes2 = boxes1.detach().flip(0).requires_grad_()
    weights = torch.rand(30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # Where boxes only touch, torchvision has what PyTorch's clamp has at its bound, which is another in older releases.
    first, last = boxes1[:, None, :2].maximum(boxes2[:, :2]), boxes1[:, None, 2:].minimum(boxes2[:, 2:])
    weights[(first == last).any(-1)] = 0
    for function in (box_iou, generalized_box_iou):
        other = getattr(torchvision.ops, function.__name__)
        grads = (torch.autograd.grad((f(boxes1, boxes2) * weights).sum(), (boxes1, boxes2)) for f in (function, other))
        for own, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(own, wanted)
