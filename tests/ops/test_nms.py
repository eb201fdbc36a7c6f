import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import batched_nms, nms, nms_sorted, reference
from tests.ops import contract

# A box, and the overlap (intersection over union) of boxes moved by one pixel is exactly 1/3.
PAIR = [[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0]]


def some_boxes(count, seed=0, clusters=8):
    """Boxes that crowd around a few places, so that many overlap by any amount."""
    random = torch.Generator().manual_seed(seed)
    center = (torch.rand(clusters, 2, generator=random) * 200)[torch.randint(clusters, (count,), generator=random)]
    center = center + torch.randn(count, 2, generator=random) * 8
    size = torch.exp(torch.randn(count, 2, generator=random) * 0.4 + 3)
    return torch.cat([center - size / 2, center + size / 2], 1).double()


def some_scores(count, seed=1, distinct=None):
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed)).double()
    return (scores * distinct).floor() / distinct if distinct else scores


def arguments(count, threshold, distinct=None, groups=None):
    result = {
        "boxes": some_boxes(count),
        "scores": some_scores(count, distinct=distinct),
        "iou_threshold": threshold,
    }
    if groups:
        result["idxs"] = torch.randint(-3, groups, (count,), generator=torch.Generator().manual_seed(2))
    return lambda: result


SINGLE = contract.Operator(
    function=nms,
    reference=reference.nms,
    cases={
        "one box": arguments(1, 0.5),
        "nine boxes": arguments(9, 0.3),
        "63 boxes": arguments(63, 0.5),
        "64 boxes": arguments(64, 0.5),
        "65 boxes, equal scores": arguments(65, 0.5, distinct=4),
        "300 boxes": arguments(300, 0.5),
        "300 boxes, threshold 0": arguments(300, 0.0),
        "300 boxes, threshold 1": arguments(300, 1.0),
    },
    values=("boxes", "scores"),
    same_type=False,
)
BATCHED = contract.Operator(
    function=batched_nms,
    reference=reference.batched_nms,
    cases={
        "one box": arguments(1, 0.5, groups=1),
        "400 boxes of 9 groups": arguments(400, 0.5, groups=6),
        "400 boxes of 203 groups, equal scores": arguments(400, 0.4, distinct=5, groups=200),
    },
    values=("boxes", "scores"),
    same_type=False,
)
BOTH = [(operator, case) for operator in (SINGLE, BATCHED) for case in operator.cases]
every_case = pytest.mark.parametrize(
    ("operator", "case"), BOTH, ids=[f"{op.function.__name__}: {case}" for op, case in BOTH]
)


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_it_keeps_the_boxes_of_the_loop(operator, case, dtype):
    contract.equals_the_loop(operator, case, dtype)


@every_case
def test_opcheck_passes(operator, case):
    contract.passes_opcheck(operator, case)


@every_case
def test_the_number_of_threads_changes_nothing(operator, case):
    contract.same_bits_for_any_number_of_threads(operator, case, torch.float32)


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu(operator, case, dtype):
    contract.cuda_equals_cpu(operator, case, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1000, 4096, 20000])
def test_cuda_keeps_the_same_of_many_boxes(count):
    boxes, scores = some_boxes(count, clusters=count // 20).float(), some_scores(count).float()
    for threshold in (0.3, 0.7):
        assert torch.equal(nms(boxes.cuda(), scores.cuda(), threshold).cpu(), nms(boxes, scores, threshold))


def test_the_sorted_form_compiles_whole():
    boxes, groups = some_boxes(70).float(), torch.arange(70) % 3
    for dynamic in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(nms_sorted, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        assert torch.equal(compiled(boxes, 0.5), nms_sorted(boxes, 0.5))
        assert torch.equal(compiled(boxes, 0.5, groups), nms_sorted(boxes, 0.5, groups))


def test_the_public_form_compiles_whole_where_shapes_may_follow_from_data():
    boxes, scores = some_boxes(70).float(), some_scores(70).float()
    torch.compiler.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(nms, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(boxes, scores, 0.5), nms(boxes, scores, 0.5))


def test_nothing_in_nothing_out():
    for dtype in contract.DTYPES:
        kept = nms(torch.zeros(0, 4, dtype=dtype), torch.zeros(0, dtype=dtype), 0.5)
        assert (kept.shape, kept.dtype) == ((0,), torch.int64)
    assert batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5).shape == (0,)


def test_the_threshold_itself_is_allowed():
    boxes, scores = torch.tensor(PAIR), torch.tensor([0.9, 0.8])
    third = 2.0 / 6.0
    assert nms(boxes.double(), scores.double(), third).tolist() == [0, 1]
    assert nms(boxes.double(), scores.double(), math.nextafter(third, 0)).tolist() == [0]
    # float32's third is a little above the double's, so in float32 the pair does overlap by more than it
    assert nms(boxes, scores, third).tolist() == [0]
    assert nms(boxes, scores, third + 1e-7).tolist() == [0, 1]


def test_equal_scores_keep_their_order_and_nan_comes_first():
    apart = torch.tensor([[i * 10.0, 0.0, i * 10.0 + 5, 5.0] for i in range(5)])
    assert nms(apart, torch.tensor([0.5, 0.7, 0.5, 0.7, 0.5]), 0.5).tolist() == [1, 3, 0, 2, 4]
    assert nms(apart, torch.tensor([0.5, 0.7, math.nan, 0.7, 0.5]), 0.5).tolist() == [2, 1, 3, 0, 4]


@pytest.mark.parametrize("count", [2, 40])
def test_a_box_with_nan_neither_suppresses_nor_is_suppressed(count):
    for coordinate in range(4):
        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(count, 1)
        boxes[0, coordinate] = boxes[-1, coordinate] = math.nan
        kept = nms(boxes, torch.linspace(1, 0, count), 0.5).tolist()
        assert kept == ([0, 1] if count == 2 else [0, 1, count - 1])


def test_boxes_without_area_and_inverted_and_infinite_ones_are_treated_as_the_loop_treats_them():
    inf = math.inf
    boxes = torch.tensor(
        [
            [5.0, 5, 5, 5],
            [5.0, 5, 5, 5],
            [9.0, 9, 2, 2],
            [0.0, 0, 10, 10],
            [0.0, 0, 10, 10.5],
            [0.0, 0, inf, inf],
            [-inf, -inf, inf, inf],
            [-inf, 0, 0, 5],
            [-inf, 0, 0, 5],
        ]
    )
    for scores in (torch.linspace(1, 0, 9), torch.linspace(0, 1, 9)):
        assert torch.equal(nms(boxes, scores, 0.5), reference.nms(boxes, scores, 0.5))


def test_half_precision_boxes_are_compared_in_float32():
    # The areas are beyond float16's 65504: in float16 their overlap would be NaN and both would stay.
    boxes = torch.tensor([[0.0, 0, 1000, 1000], [0.0, 0, 1000, 990]], dtype=torch.float16)
    assert nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0]


def test_groups_far_apart_in_number_and_boxes_far_out_are_kept_apart_exactly():
    boxes = torch.tensor([[1e6, 1e6, 1e6 + 8, 1e6 + 8]]).repeat(4, 1)
    idxs = torch.tensor([0, 2**62, -5, 2**62])
    assert batched_nms(boxes, torch.tensor([0.4, 0.9, 0.3, 0.8]), idxs, 0.5).tolist() == [1, 0, 2]


def test_any_strides_are_taken():
    boxes, scores = some_boxes(80).float(), some_scores(80).float()
    wide = torch.cat([boxes, boxes], 1)[:, :4]
    spread = torch.stack([scores, scores], 1)[:, 0]
    assert not wide.is_contiguous()
    assert torch.equal(nms(wide, spread, 0.5), nms(boxes, scores, 0.5))
    assert torch.equal(nms(boxes.T.contiguous().T, scores, 0.5), nms(boxes, scores, 0.5))


@pytest.mark.parametrize(
    ("operator", "changes", "message"),
    [
        (SINGLE, {"boxes": torch.zeros(9, 5)}, r"nms: boxes must be \[N, 4\], got \[9, 5\]"),
        (SINGLE, {"boxes": torch.zeros(9, 4).int()}, "nms: boxes must be floating point, got Int"),
        (SINGLE, {"scores": torch.zeros(8)}, r"nms: scores must be \[9\], got \[8\]"),
        (SINGLE, {"scores": torch.zeros(9, 1)}, r"nms: scores must be \[9\], got \[9, 1\]"),
        (SINGLE, {"scores": torch.zeros(9).int()}, "nms: scores must be floating point, got Int"),
        (SINGLE, {"scores": torch.zeros(9, device="meta")}, "nms: scores must be on the device of boxes"),
        (SINGLE, {"iou_threshold": math.nan}, "nms: iou_threshold must be a number, got NaN"),
    ],
)
def test_a_wrong_argument_is_named(operator, changes, message):
    contract.refuses(operator, "nine boxes", changes, message)


def test_wrong_groups_are_named():
    contract.refuses(
        BATCHED, "one box", {"idxs": torch.zeros(2).long()}, r"batched_nms: idxs must be \[1\] .*got \[2\]"
    )
    contract.refuses(BATCHED, "one box", {"idxs": torch.zeros(1)}, "batched_nms: idxs must be .*got .* float32")
    with pytest.raises(RuntimeError, match=r"nms: groups must be \[3\], got \[2\]"):
        nms_sorted(torch.zeros(3, 4), 0.5, torch.zeros(2).long())
    with pytest.raises(RuntimeError, match="nms: groups must be int64, got Int"):
        nms_sorted(torch.zeros(3, 4), 0.5, torch.zeros(3).int())


def crowds(name, count):
    """Boxes for the grid that finds neighbours: what makes its cells useless, or its bounds tight."""
    random = torch.Generator().manual_seed(len(name))
    boxes = some_boxes(count, clusters=count // 40)
    size = boxes[:, 2:] - boxes[:, :2]
    if name == "far out":
        boxes = boxes + torch.randint(-3, 4, (count, 2), generator=random).repeat(1, 2) * 1e6
    elif name == "thin":
        stretch = torch.exp(torch.randn(count, 1, generator=random) * 3)
        boxes[:, 2:] = boxes[:, :2] + torch.cat([size[:, :1] * stretch, size[:, 1:] / stretch], 1)
    elif name == "of all sizes":
        boxes = boxes * 2.0 ** torch.randint(-40, 40, (count, 1), generator=random)
    elif name == "in one place":
        boxes = boxes[:1] + torch.randn(count, 4, generator=random) * size[:1].repeat(1, 2) * 0.1
    elif name == "on whole pixels":
        boxes = boxes.round()
    elif name == "odd":
        odd = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30, 0.0, -50.0]).double()
        where = torch.rand(count, 4, generator=random) < 0.1
        boxes = torch.where(where, odd[torch.randint(0, 8, (count, 4), generator=random)], boxes)
    return boxes


@pytest.mark.parametrize("name", ["far out", "thin", "of all sizes", "in one place", "on whole pixels", "odd"])
@pytest.mark.parametrize(
    ("dtype", "threshold"),
    [(torch.float32, 0.45), (torch.float32, 0.5), (torch.float32, 0.8), (torch.float32, 1.0), (torch.float64, 0.6)],
)
def test_the_grid_keeps_what_comparing_all_keeps(name, dtype, threshold):
    count = 2500
    boxes, scores = crowds(name, count).to(dtype), some_scores(count, distinct=500).to(dtype)
    # each box against all better ones at once, in the type of the boxes and with the operations of torchvision
    order = scores.sort(descending=True, stable=True).indices
    low, high = boxes[order, None, :2].maximum(boxes[order, :2]), boxes[order, None, 2:].minimum(boxes[order, 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    area = (boxes[order, 2:] - boxes[order, :2]).prod(-1)
    suppresses = ((overlap / (area[:, None] + area - overlap)).double() > threshold).numpy()
    gone = torch.zeros(count, dtype=torch.bool).numpy()
    for i in range(count):
        if not gone[i]:
            gone[i + 1 :] |= suppresses[i, i + 1 :]
    assert torch.equal(nms(boxes, scores, threshold), order[~torch.from_numpy(gone)])


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    count=st.integers(0, 60),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(contract.DTYPES),
    threshold=st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 0.8, 1.0, 2.0]),
    groups=st.sampled_from([1, 2, 7]),
    step=st.integers(1, 2),
)
def test_what_stays_overlaps_nothing_better_and_what_goes_does(count, seed, dtype, threshold, groups, step):
    random = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 12, (count, 2), generator=random)
    boxes = torch.cat([corner, corner + torch.randint(-1, 9, (count, 2), generator=random)], 1)  # some are inverted
    scores = torch.randint(0, 9, (count,), generator=random) / 8
    idxs = torch.randint(0, groups, (count,), generator=random)
    kept = batched_nms(
        boxes.to(dtype).repeat_interleave(step, 0)[::step],
        scores.to(dtype).repeat_interleave(step, 0)[::step],
        idxs.repeat_interleave(step, 0)[::step],
        threshold,
    ).tolist()
    compared_in = torch.float64 if dtype == torch.float64 else torch.float32
    stay: list[int] = []
    for box in sorted(range(count), key=lambda box: (-scores[box].item(), box)):
        others = [other for other in stay if idxs[other] == idxs[box]]
        overlaps = [float(exact_overlap(boxes[other], boxes[box])) for other in others]
        if not (torch.tensor(overlaps, dtype=compared_in).double() > threshold).any():
            stay.append(box)
    assert kept == stay


def exact_overlap(one, other):
    """Intersection over union as fractions; 0 where the union is no area, as nothing is greater than NaN."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = one.tolist(), other.tolist()
    shared = max(min(x2, u2) - max(x1, u1), 0) * max(min(y2, v2) - max(y1, v1), 0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    return Fraction(shared, union) if union else Fraction(0)


@pytest.mark.parametrize("groups", [[0, 1], [0, 2**62], [-(2**63), 2**63 - 1], [-5, 100_000]])
def test_groups_of_any_number_are_told_apart(groups):
    boxes, scores = some_boxes(500).float(), some_scores(500, distinct=40).float()
    which = torch.arange(500) % len(groups)
    kept = batched_nms(boxes, scores, torch.tensor(groups)[which], 0.5)
    assert torch.equal(kept, batched_nms(boxes, scores, which, 0.5))
    assert torch.equal(kept, reference.batched_nms(boxes, scores, which, 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [40, 1000, 5000])
def test_the_order_is_that_of_a_stable_sort(count, dtype):
    random = torch.Generator().manual_seed(count)
    odd = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40, 1.0], dtype=dtype)
    scores = torch.where(
        torch.rand(count, generator=random) < 0.3,
        odd[torch.randint(0, 8, (count,), generator=random)],
        torch.randn(count, generator=random, dtype=dtype),
    )
    apart = torch.arange(count, dtype=dtype)[:, None] * 10 + torch.tensor([0, 0, 5, 5], dtype=dtype)
    assert torch.equal(nms(apart, scores, 0.5), scores.sort(descending=True, stable=True).indices)


def test_a_threshold_below_zero_leaves_one_box_of_those_with_an_area():
    boxes, scores = some_boxes(30).float(), some_scores(30).float()
    assert nms(boxes, scores, -0.5).tolist() == [int(scores.argmax())]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("count", [7, 1000, 5000])
def test_it_keeps_the_boxes_that_torchvision_keeps(count, threshold):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    boxes = some_boxes(count, seed=count, clusters=count // 20 + 1).float()
    scores = some_scores(count, distinct=300).float()
    assert torch.equal(nms(boxes, scores, threshold), torchvision.ops.nms(boxes, scores, threshold))
    idxs = torch.randint(0, 5, (count,), generator=torch.Generator().manual_seed(3))
    groups = [(idxs == i).nonzero()[:, 0] for i in range(5)]
    kept = torch.cat([group[torchvision.ops.nms(boxes[group], scores[group], threshold)] for group in groups])
    expected = kept[scores[kept].sort(descending=True, stable=True).indices]
    result = batched_nms(boxes, scores, idxs, threshold)
    assert torch.equal(result.sort().values, expected.sort().values)
    assert torch.equal(scores[result], scores[expected])
