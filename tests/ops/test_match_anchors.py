import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import grid_anchors, match_anchors, reference
from tests.ops import contract


def boxes_on_a_grid(count, seed, extent=12):
    """Whole-number boxes, so that ties and exact thresholds happen and float32 equals float64."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, extent, (count, 2), generator=random)
    return torch.cat([corner, corner + torch.randint(1, 9, (count, 2), generator=random)], 1).double()


def boxes_at_random(count, seed, height=400, width=544):
    random = torch.Generator().manual_seed(seed)
    center = torch.rand(count, 2, generator=random) * torch.tensor([float(width), float(height)])
    size = torch.exp(torch.randn(count, 2, generator=random) * 0.7 + 4)
    return torch.cat([center - size / 2, center + size / 2], 1)


def anchors_of_a_pyramid(height=400, width=544):
    levels = ((32, 8), (64, 16), (128, 32), (256, 64))
    grids = [
        ((size,), (0.5, 1, 2), (math.ceil(height / stride), math.ceil(width / stride)), stride)
        for size, stride in levels
    ]
    return torch.cat([grid_anchors(*grid) for grid in grids])


def arguments(anchors, boxes, low, high, allow_low_quality, crowds=0, extent=12):
    return lambda: {
        "anchors": boxes_on_a_grid(anchors, 1, extent),
        "boxes": boxes_on_a_grid(boxes, 2, extent),
        "low": low,
        "high": high,
        "allow_low_quality": allow_low_quality,
        "ignore": boxes_on_a_grid(crowds, 3, extent) if crowds else None,
    }


MATCHING = contract.Operator(
    function=match_anchors,
    reference=reference.match_anchors,
    cases={
        "one of each": arguments(1, 1, 0.25, 0.5, True),
        "exact thresholds": arguments(60, 7, 0.25, 0.5, False),
        "exact thresholds, low quality": arguments(60, 7, 0.25, 0.5, True),
        "one threshold, crowds": arguments(63, 9, 0.5, 0.5, False, 4),
        "64 anchors, crowds, low quality": arguments(64, 17, 0.25, 0.5, True, 9),
        "65 anchors": arguments(65, 8, 0.25, 0.75, True),
        "far apart, low quality": arguments(300, 12, 0.3, 0.7, True, 5, extent=100),
        "thresholds of 0": arguments(70, 5, 0.0, 0.0, True),
        "thresholds of 1": arguments(70, 5, 1.0, 1.0, True),
        "more than every overlap": arguments(70, 5, 0.3, 2.0, True),
        "no objects": arguments(40, 0, 0.3, 0.7, True, 3),
        "no anchors": arguments(0, 5, 0.3, 0.7, True, 3),
        "nothing at all": arguments(0, 0, 0.3, 0.7, True),
    },
    values=("anchors", "boxes", "ignore"),
    same_type=False,
)
every_case = pytest.mark.parametrize("case", MATCHING.cases)


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_matches_equal_the_loop(case, dtype):
    contract.equals_the_loop(MATCHING, case, dtype)


@pytest.mark.parametrize("seed", range(20))
def test_matches_equal_the_loop_with_other_ties(seed):
    anchors, boxes = boxes_on_a_grid(60, seed), boxes_on_a_grid(7, 100 + seed)
    for crowds in (None, boxes_on_a_grid(3, 200 + seed)):
        for allow_low_quality in (False, True):
            rest = (0.25, 0.5, allow_low_quality, crowds)
            assert torch.equal(match_anchors(anchors, boxes, *rest), reference.match_anchors(anchors, boxes, *rest))


ODD = st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 9.0, -2.0, math.nan, math.inf, -math.inf])
SOME_ODD_BOXES = st.lists(st.tuples(ODD, ODD, ODD, ODD), max_size=9)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(SOME_ODD_BOXES, SOME_ODD_BOXES, SOME_ODD_BOXES, st.booleans(), st.sampled_from(contract.DTYPES))
def test_nan_infinite_inverted_and_empty_boxes_match_as_the_loop_matches_them(a, b, c, allow_low_quality, dtype):
    anchors, boxes, crowds = (torch.tensor(rows, dtype=dtype).reshape(-1, 4) for rows in (a, b, c))
    rest = (0.25, 0.5, allow_low_quality, crowds)
    assert torch.equal(match_anchors(anchors, boxes, *rest), reference.match_anchors(anchors, boxes, *rest))


@every_case
def test_opcheck_passes(case):
    contract.passes_opcheck(MATCHING, case)


def test_it_compiles_whole():
    contract.compiles_whole(MATCHING, "64 anchors, crowds, low quality")


@every_case
def test_the_number_of_threads_changes_nothing(case):
    contract.same_bits_for_any_number_of_threads(MATCHING, case, torch.float32)


def test_the_number_of_threads_changes_nothing_for_many_anchors():
    anchors, boxes, crowds = anchors_of_a_pyramid(), boxes_at_random(900, 5), boxes_at_random(4, 6)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(match_anchors(anchors, boxes, 0.3, 0.7, True, crowds))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)
    assert {-1, -2} < set(results[0].tolist())


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu(case, dtype):
    contract.cuda_equals_cpu(MATCHING, case, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("objects", [1, 20, 2000])
def test_cuda_matches_many_anchors_as_the_cpu_does(objects):
    arguments = [anchors_of_a_pyramid(), boxes_at_random(objects, objects), boxes_at_random(4, 1)]
    for allow_low_quality in (False, True):
        wanted = match_anchors(*arguments[:2], 0.3, 0.7, allow_low_quality, arguments[2])
        anchors, boxes, crowds = (argument.cuda() for argument in arguments)
        assert torch.equal(match_anchors(anchors, boxes, 0.3, 0.7, allow_low_quality, crowds).cpu(), wanted)


def test_without_objects_every_anchor_is_background():
    assert match_anchors(boxes_on_a_grid(5, 0), torch.zeros(0, 4), 0.3, 0.7, True).tolist() == [-1] * 5


def test_without_anchors_there_is_nothing_to_match():
    matched = match_anchors(torch.zeros(0, 4), boxes_on_a_grid(3, 0), 0.3, 0.7, True)
    assert (matched.shape, matched.dtype) == ((0,), torch.int64)


def test_the_first_of_equal_objects_is_matched():
    anchor = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    boxes = torch.tensor([[9.0, 9.0, 10.0, 10.0], [0.0, 0.0, 4.0, 2.0], [0.0, 2.0, 4.0, 4.0], [0.0, 0.0, 2.0, 4.0]])
    assert match_anchors(anchor, boxes, 0.3, 0.5).tolist() == [1]
    assert match_anchors(anchor.repeat(200, 1), boxes, 0.3, 0.5).tolist() == [1] * 200


def test_an_anchor_that_ties_for_one_object_keeps_its_own_best_object():
    # Anchor 0 is the best that object 1 finds (1/3), but lies better on object 0 (1/2).
    anchors = torch.tensor([[0.0, 0.0, 2.0, 2.0], [50.0, 50.0, 52.0, 52.0]])
    boxes = torch.tensor([[0.0, 0.0, 2.0, 4.0], [0.0, 0.0, 2.0, 6.0], [50.0, 50.0, 52.0, 52.0]])
    assert match_anchors(anchors, boxes, 0.3, 0.7, True).tolist() == [0, 2]
    assert match_anchors(anchors, boxes, 0.3, 0.7, False).tolist() == [-2, 2]


def test_an_object_that_overlaps_no_anchor_ties_with_all_of_them():
    anchors, boxes = torch.tensor([[0.0, 0, 2, 2], [5, 5, 7, 7]]), torch.tensor([[0.0, 0, 2, 2], [90, 90, 95, 95]])
    assert match_anchors(anchors, boxes, 0.3, 0.7, True).tolist() == [0, 0]
    assert match_anchors(anchors, boxes[:1], 0.3, 0.7, True).tolist() == [0, -1]


def test_background_in_a_crowd_is_ignored_but_objects_are_not():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0], [4.0, 0.0, 14.0, 10.0]])
    objects, crowd = torch.tensor([[50.0, 50.0, 60.0, 60.0]]), torch.tensor([[0.0, 0.0, 10.0, 60.0]])
    crowd_over_all = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    assert match_anchors(anchors, objects, 0.5, 0.5, ignore=crowd).tolist() == [-2, 0, -1]
    assert match_anchors(anchors, objects, 0.5, 0.5, ignore=crowd_over_all).tolist() == [-2, 0, -2]


def test_a_nan_anchor_is_background_and_a_nan_object_takes_no_part():
    anchors = torch.tensor([[0.0, 0, 4, 4], [20, 20, 24, 24]]).repeat(50, 1)
    boxes = torch.tensor([[math.nan, 0, 4, 4], [0, 0, 4, 4]])
    for allow_low_quality in (False, True):
        assert match_anchors(anchors, boxes, 0.3, 0.7, allow_low_quality).tolist() == [1, -1] * 50
    for coordinate in range(4):
        anchors[0, coordinate] = math.nan
        assert match_anchors(anchors, boxes[1:], 0.3, 0.7, True).tolist() == [-1, -1] + [0, -1] * 49
        anchors[0] = anchors[2]
    assert match_anchors(anchors, boxes[:1].repeat(3, 1), 0.0, 0.0, True).tolist() == [-1] * 100


def test_thresholds_are_rounded_to_the_type_of_the_overlaps():
    # The overlap is 3/10, which is above 0.3 in float32 as the overlap itself is, and 0.3 in both.
    anchor, box = torch.tensor([[0.0, 0, 10, 3]]), torch.tensor([[0.0, 0, 10, 10]])
    for dtype in (torch.float32, torch.float64):
        assert match_anchors(anchor.to(dtype), box.to(dtype), 0.3, 0.3).tolist() == [0]
    assert match_anchors(anchor.double(), box.double(), 0.3, math.nextafter(0.3, 1)).tolist() == [-2]
    assert match_anchors(anchor, box, 0.3, math.nextafter(0.3, 1)).tolist() == [0]


def test_half_precision_boxes_are_compared_in_float32():
    # The areas are beyond float16's 65504.
    boxes = torch.tensor([[0.0, 0, 1000, 1000], [0.0, 0, 1000, 990]], dtype=torch.float16)
    assert match_anchors(boxes, boxes[1:], 0.98, 0.995).tolist() == [-2, 0]


def test_types_may_differ_and_any_strides_are_taken():
    anchors, boxes, crowds = boxes_on_a_grid(90, 0), boxes_on_a_grid(8, 1), boxes_on_a_grid(3, 2)
    wanted = match_anchors(anchors, boxes, 0.3, 0.7, True, crowds)
    assert torch.equal(match_anchors(anchors.float(), boxes, 0.3, 0.7, True, crowds.bfloat16()), wanted)
    turned = [boxes.T.contiguous().T for boxes in (anchors.float(), boxes.float(), crowds.float())]
    assert not turned[0].is_contiguous()
    assert torch.equal(match_anchors(*turned[:2], 0.3, 0.7, True, turned[2]), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchors": torch.zeros(9, 5)}, r"match_anchors: anchors must be \[N, 4\], got \[9, 5\]"),
        ({"boxes": torch.zeros(4)}, r"match_anchors: boxes must be \[N, 4\], got \[4\]"),
        ({"boxes": torch.zeros(9, 4).int()}, "match_anchors: boxes must be floating point, got Int"),
        ({"ignore": torch.zeros(2, 3)}, r"match_anchors: ignore must be \[N, 4\], got \[2, 3\]"),
        ({"low": 0.8}, "match_anchors: low must be a number that is not above high, got 0.8 and 0.5"),
        ({"high": math.nan}, "match_anchors: low must be a number that is not above high, got 0.25 and nan"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    contract.refuses(MATCHING, "exact thresholds", changes, message)


@pytest.mark.parametrize("allow_low_quality", [False, True])
@pytest.mark.parametrize("objects", [1, 20, 300])
def test_matches_equal_those_of_torchvision(objects, allow_low_quality):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    matcher = torchvision.models.detection._utils.Matcher(0.7, 0.3, allow_low_quality_matches=allow_low_quality)
    anchors = anchors_of_a_pyramid()
    for dtype in (torch.float32, torch.float64):
        for seed in range(3):
            boxes = boxes_at_random(objects, seed).to(dtype)
            expected = matcher(torchvision.ops.box_iou(boxes, anchors.to(dtype)))
            assert torch.equal(match_anchors(anchors.to(dtype), boxes, 0.3, 0.7, allow_low_quality), expected)


@pytest.mark.parametrize("seed", range(30))
def test_matches_equal_those_of_torchvision_with_many_ties(seed):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    anchors, boxes = boxes_on_a_grid(500, seed).float(), boxes_on_a_grid(12, 100 + seed).float()
    for low, high in ((0.25, 0.5), (0.5, 0.5), (0.2, 0.75)):
        for allow_low_quality in (False, True):
            matcher = torchvision.models.detection._utils.Matcher(high, low, allow_low_quality)
            expected = matcher(torchvision.ops.box_iou(boxes, anchors))
            assert torch.equal(match_anchors(anchors, boxes, low, high, allow_low_quality), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")
def test_the_matrix_of_all_overlaps_is_never_built():
    # As a matrix, 217 413 anchors and 5000 objects would take 4.3 GB.
    program = """
import torch
from mrcnn_cli.engine.memory import peak_memory_mb
from mrcnn_cli.ops import match_anchors
from tests.ops.test_match_anchors import anchors_of_a_pyramid, boxes_at_random
anchors = anchors_of_a_pyramid().repeat(16, 1)[:217413].contiguous()
boxes = boxes_at_random(5000, 0)
match_anchors(anchors, boxes[:1], 0.3, 0.7, True)
before = peak_memory_mb()
match_anchors(anchors, boxes, 0.3, 0.7, True)
print(len(anchors), peak_memory_mb() - before)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    anchors, megabytes = result.stdout.split()
    assert int(anchors) == 217_413
    assert float(megabytes) < 64
