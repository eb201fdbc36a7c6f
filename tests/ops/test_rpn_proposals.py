import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import (
    clip_boxes,
    decode,
    grid_anchors,
    nms_sorted,
    reference,
    rpn_candidates,
    rpn_proposals,
    rpn_proposals_padded,
)
from tests.ops import contract

RATIOS = (0.5, 1.0, 2.0)


def maps(shapes, images=2, anchors=3, seed=0, distinct=None):
    """Logits and deltas of levels; `distinct`: so few different logits that many are equal."""
    random = torch.Generator().manual_seed(seed)
    logits, deltas = [], []
    for height, width in shapes:
        logit = torch.randn(images, anchors, height, width, generator=random, dtype=torch.float64)
        logits.append((logit * distinct).round() / distinct if distinct else logit)
        deltas.append(torch.randn(images, 4 * anchors, height, width, generator=random, dtype=torch.float64) * 0.4)
    return {"logits": logits, "deltas": deltas}


PYRAMID = {
    "image_sizes": [(96, 110), (80, 128)],
    "sizes": [(16.0,), (32.0,), (64.0,)],
    "ratios": RATIOS,
    "strides": (8, 16, (32.0, 30.5)),
}
SHAPES = [(12, 16), (6, 8), (3, 4)]


def arguments(inputs, **options):
    return lambda: {**inputs, **PYRAMID, **options}


CASES = {
    "a pyramid": arguments(maps(SHAPES), pre_nms_top_n=60),
    "everything chosen": arguments(maps(SHAPES, seed=1), pre_nms_top_n=10_000),
    "equal logits": arguments(maps(SHAPES, seed=2, distinct=3), pre_nms_top_n=100),
    "one logit for all": arguments(maps(SHAPES, seed=3, distinct=1e-9), pre_nms_top_n=50),
    "one chosen": arguments(maps(SHAPES, seed=4), pre_nms_top_n=1),
    "weights, clamp, offset, rounded": arguments(
        maps(SHAPES, seed=5),
        pre_nms_top_n=40,
        weights=(2.0, 3.0, 0.5, 0.25),
        clamp=1.0,
        offset=0.5,
        rounded=True,
        min_size=9.0,
    ),
    "two sizes a cell": arguments(
        maps(SHAPES[:2], seed=6, anchors=4), sizes=[(16.0, 24.0), (32.0, 50.0)], ratios=(0.7, 1.4), strides=(8, 16)
    ),
    "a map large enough to be sampled": arguments(
        maps([(70, 61)], images=1, seed=7), image_sizes=[(280, 244)], sizes=[(20.0,)], strides=(4,), pre_nms_top_n=90
    ),
    "large, equal logits": arguments(
        maps([(61, 70)], images=1, seed=8, distinct=2),
        image_sizes=[(244, 280)],
        sizes=[(20.0,)],
        strides=(4,),
        pre_nms_top_n=90,
    ),
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-4, torch.bfloat16: 2e-4}


def joined(candidates):
    boxes, logits, groups = candidates
    return torch.cat([boxes, logits[..., None], groups[..., None].to(boxes.dtype)], -1)


CANDIDATES = contract.Operator(
    function=lambda **arguments: joined(rpn_candidates(**arguments)),
    reference=lambda **arguments: joined(reference.rpn_candidates(**arguments)),
    cases=CASES,
    values=("logits", "deltas"),
    tolerance=TOLERANCE,
    same_type=False,
)
every_case = pytest.mark.parametrize("case", CASES)
every_type = pytest.mark.parametrize("dtype", contract.DTYPES)


def assert_same_proposals(results, expected, atol):
    for result, wanted in zip(results, expected, strict=True):  # boxes, logits
        for here, there in zip(result, wanted, strict=True):  # images
            assert here.shape == there.shape
            torch.testing.assert_close(here.double().cpu(), there.double().cpu(), rtol=0, atol=atol)


@every_case
@every_type
def test_candidates_equal_the_loop(case, dtype):
    contract.equals_the_loop(CANDIDATES, case, dtype)


@every_case
@every_type
def test_proposals_equal_the_loop(case, dtype):
    arguments = CANDIDATES.arguments(case, dtype)
    for options in ({"nms_threshold": 0.5}, {"nms_threshold": 0.7, "post_nms_top_n": 25}):
        boxes, logits = rpn_proposals(**arguments, **options)
        assert_same_proposals((boxes, logits), reference.rpn_proposals(**arguments, **options), 2e-4)
        assert boxes[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@every_case
def test_opcheck_passes(case):
    contract.passes_opcheck(CANDIDATES, case)


@every_case
@every_type
def test_the_number_of_threads_changes_no_bit(case, dtype):
    contract.same_bits_for_any_number_of_threads(CANDIDATES, case, dtype)


@pytest.mark.gpu
@every_case
@every_type
def test_cuda_equals_cpu(case, dtype):
    contract.cuda_equals_cpu(CANDIDATES, case, dtype)


@pytest.mark.gpu
def test_proposals_are_captured_in_a_cuda_graph():
    arguments = CANDIDATES.arguments("a pyramid", torch.float32, "cuda")
    expected = rpn_proposals_padded(**arguments)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        rpn_proposals_padded(**arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = rpn_proposals_padded(**arguments)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(here, there) for here, there in zip(result, expected, strict=True))


def test_opcheck_passes_for_the_best_of_what_is_kept():
    boxes, logits, groups = rpn_candidates(**CANDIDATES.arguments("a pyramid", torch.float32))
    keep = nms_sorted(boxes.view(-1, 4), 0.5, groups.view(-1))
    for count in (7, 10_000):
        report = torch.library.opcheck(torch.ops.mrcnn.rpn_best, (boxes, logits, keep, count))
        assert set(report.values()) == {"SUCCESS"}


def test_the_padded_form_compiles_whole():
    arguments = CANDIDATES.arguments("a pyramid", torch.float32)
    expected = rpn_proposals_padded(**arguments)
    for dynamic in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(rpn_proposals_padded, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        assert all(torch.equal(a, b) for a, b in zip(compiled(**arguments), expected, strict=True))


@every_case
def test_boxes_have_the_bits_of_decode_and_clip_boxes(case):
    arguments = CANDIDATES.arguments(case, torch.float32)
    weights = arguments.get("weights", (1.0, 1.0, 1.0, 1.0))
    clamp = {"clamp": arguments["clamp"]} if "clamp" in arguments else {}
    options = {name: arguments[name] for name in ("rounded", "offset") if name in arguments}
    boxes, logits, groups = rpn_candidates(**arguments)
    levels = len(arguments["logits"])
    for group in range(2 * levels if len(boxes) == 2 else levels):
        image, level = divmod(group, levels)
        logit, delta = arguments["logits"][level][image], arguments["deltas"][level][image]
        anchors = grid_anchors(
            arguments["sizes"][level],
            arguments["ratios"],
            tuple(logit.shape[1:]),
            arguments["strides"][level],
            **options,
        )
        flat = delta.reshape(len(logit), 4, -1).permute(2, 0, 1).reshape(-1, 4)
        all_boxes = clip_boxes(decode(flat, anchors, weights, **clamp), arguments["image_sizes"][image])
        scores = logit.permute(1, 2, 0).flatten()
        best = scores.sort(descending=True, stable=True).indices[: arguments.get("pre_nms_top_n", 1000)]
        chosen = groups[image] == group
        usable = logits[image][chosen] > -math.inf
        assert torch.equal(boxes[image][chosen][usable], all_boxes[best][usable])
        assert torch.equal(logits[image][chosen][usable], scores[best][usable])


@pytest.mark.parametrize("case", ["a pyramid", "equal logits", "a map large enough to be sampled"])
@every_type
def test_channels_last_and_any_strides_give_the_same(case, dtype):
    arguments = CANDIDATES.arguments(case, dtype)
    expected = rpn_candidates(**arguments)

    def same(change):
        changed = {name: [change(map) for map in arguments[name]] for name in ("logits", "deltas")}
        for result, wanted in zip(rpn_candidates(**{**arguments, **changed}), expected, strict=True):
            assert torch.equal(result, wanted)

    same(lambda map: map.contiguous(memory_format=torch.channels_last))
    same(lambda map: torch.cat([map, map], 0)[: len(map)])
    same(lambda map: torch.stack([map, map], 1)[:, 0])  # images apart from each other
    same(lambda map: torch.stack([map, map], -1)[..., 0])  # cells apart from each other
    same(lambda map: map.transpose(2, 3).contiguous().transpose(2, 3))


def test_equal_logits_are_taken_in_the_order_row_column_anchor_and_levels_finest_first():
    logits = [torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 1, 1)]
    deltas = [torch.zeros(1, 8, 2, 2), torch.zeros(1, 8, 1, 1)]
    for form in (torch.contiguous_format, torch.channels_last):
        boxes, _ = rpn_proposals(
            [map.contiguous(memory_format=form) for map in logits],
            [map.contiguous(memory_format=form) for map in deltas],
            [(1000, 1000)],
            [(8.0, 4.0), (100.0, 60.0)],
            (1.0,),
            (100, 500),
            pre_nms_top_n=5,
            offset=0.5,
        )
        centers = (boxes[0][:, :2] + boxes[0][:, 2:]) / 2
        sides = boxes[0][:, 2] - boxes[0][:, 0]
        assert centers.tolist() == [[50, 50], [50, 50], [150, 50], [150, 50], [50, 150], [250, 250], [250, 250]]
        assert sides.tolist() == [8, 4, 8, 4, 8, 100, 60]


def test_an_anchor_whose_logit_is_nan_is_never_chosen():
    arguments = CANDIDATES.arguments("a map large enough to be sampled", torch.float32)
    logit = arguments["logits"][0]
    expected = rpn_candidates(**arguments)[0]
    best = logit.flatten().argsort(descending=True)
    for count in (1, 50, logit.numel() - 30):
        spoilt = logit.flatten().clone()
        spoilt[best[:count]] = math.nan
        boxes, logits, _ = rpn_candidates(**{**arguments, "logits": [spoilt.view_as(logit)]})
        left = min(logit.numel() - count, 90)
        assert bool((logits[0, left:] == -math.inf).all())
        assert bool((boxes[0, left:] == 0).all())
        wanted = logit.flatten()[best[count : count + left]]
        usable = logits[0, :left] > -math.inf
        assert torch.equal(logits[0, :left][usable], wanted[usable])
        if count == 1:
            assert torch.equal(boxes[0, :50], expected[0, 1:51])


def test_infinite_logits_and_boxes_that_are_no_numbers_are_no_proposals_and_suppress_nothing():
    nothing = torch.zeros(1, 4, 1, 6)
    logits = torch.tensor([math.inf, 6.0, 5.0, 4.0, 3.0, -math.inf]).view(1, 1, 1, 6)
    deltas = nothing.clone()
    deltas[0, 0, 0, 1] = math.nan
    deltas[0, 3, 0, 2] = math.nan
    deltas[0, 2, 0, 3] = -math.inf  # no width
    boxes, scores = rpn_proposals([logits], [deltas], [(20, 500)], [(16.0,)], (1.0,), (1,), nms_threshold=0.1)
    assert scores[0].tolist() == [3.0]
    assert boxes[0].tolist() == [[0.0, 0.0, 12.0, 8.0]]


def test_wild_deltas_are_clamped_and_boxes_outside_of_the_image_are_no_proposals():
    logits = torch.tensor([3.0, 2.0, 1.0]).view(1, 1, 1, 3)
    deltas = torch.zeros(1, 4, 1, 3)
    deltas[0, 2:, 0, 0] = 1e6
    deltas[0, 0, 0, 1] = 1e6
    deltas[0, 1, 0, 2] = -1e30
    boxes, _ = rpn_proposals([logits], [deltas], [(300, 200)], [(16.0,)], (1.0,), (16,))
    assert boxes[0].tolist() == [[0, 0, 200, 300]]


def test_no_images_and_empty_maps_give_nothing():
    empty = [torch.zeros(0, 3, 4, 4)], [torch.zeros(0, 12, 4, 4)]
    assert rpn_proposals(*empty, [], [(8.0,)], RATIOS, (8,)) == ([], [])
    flat = [torch.zeros(2, 3, 0, 4), torch.zeros(2, 3, 1, 1)], [torch.zeros(2, 12, 0, 4), torch.zeros(2, 12, 1, 1)]
    boxes, logits = rpn_proposals(*flat, [(50, 50)] * 2, [(8.0,), (16.0,)], RATIOS, (8, 16))
    assert [len(box) for box in boxes] == [3, 3]
    nothing = [torch.zeros(2, 3, 4, 0)], [torch.zeros(2, 12, 4, 0)]
    boxes, logits = rpn_proposals(*nothing, [(50, 50)] * 2, [(8.0,)], RATIOS, (8,))
    assert [tuple(box.shape) for box in boxes] == [(0, 4)] * 2
    assert [tuple(logit.shape) for logit in logits] == [(0,)] * 2


def test_inputs_that_need_gradients_give_proposals_without():
    arguments = CANDIDATES.arguments("a pyramid", torch.float32)
    for map in (*arguments["logits"], *arguments["deltas"]):
        map.requires_grad_()
    boxes, logits = rpn_proposals(**arguments)
    assert not any(tensor.requires_grad for tensor in (*boxes, *logits))


def test_autocast_changes_nothing():
    arguments = CANDIDATES.arguments("a pyramid", torch.bfloat16)
    expected = rpn_proposals(**arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_proposals(rpn_proposals(**arguments), expected, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": [torch.zeros(2, 3, 5)] * 3}, r"rpn_proposals: logits\[0\] must be \[N, C, H, W\], got \[2, 3, 5\]"),
        ({"logits": [torch.zeros(2, 3, 9, 9)] * 3}, r"rpn_proposals: deltas\[0\] must be \[2, 12, 9, 9\] beside .*got"),
        (
            {"logits": [torch.zeros(2, 3, *shape).int() for shape in SHAPES]},
            r"rpn_proposals: logits\[0\] must be floating point, got Int",
        ),
        (
            {"deltas": [torch.zeros(2, 12, *shape).half() for shape in SHAPES]},
            r"rpn_proposals: deltas\[0\] must be Float as logits\[0\] is, got Half",
        ),
        ({"strides": (8, 16)}, "rpn_proposals: sizes and strides must be one per level, got 3 and 2 for 3 levels"),
        (
            {"sizes": [(8.0, 9.0)] * 3},
            r"rpn_proposals: sizes\[0\] and ratios make 6 anchors per cell, logits\[0\] has 3",
        ),
        ({"ratios": (1.0,)}, r"rpn_proposals: sizes\[0\] and ratios make 1 anchors per cell, logits\[0\] has 3"),
        ({"ratios": (0.0, 1.0, 2.0)}, "rpn_proposals: sizes and ratios must be positive, got .*0.0"),
        ({"image_sizes": [(96, 110)]}, r"rpn_proposals: image_sizes must be \(height, width\) of 2 images, got 1"),
        ({"pre_nms_top_n": 0}, "rpn_proposals: pre_nms_top_n must be positive, got 0"),
        ({"weights": (1.0, 1.0)}, "rpn_proposals: weights must be 4 numbers, got 2"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    contract.refuses(CANDIDATES, "a pyramid", changes, message)


def test_more_levels_or_proposals_than_make_sense_are_refused():
    many = maps([(1, 1)] * 9)
    options = {"image_sizes": [(9, 9)] * 2, "sizes": [(8.0,)] * 9, "ratios": RATIOS, "strides": (8,) * 9}
    with pytest.raises(RuntimeError, match="rpn_proposals: between 1 and 8 levels, got 9"):
        rpn_candidates(**many, **options)
    with pytest.raises(RuntimeError, match="rpn_proposals: post_nms_top_n must be positive, got 0"):
        rpn_proposals(**CANDIDATES.arguments("a pyramid", torch.float32), post_nms_top_n=0)
    with pytest.raises(RuntimeError, match="rpn_proposals: at most 64 anchors per cell, got 65"):
        rpn_candidates([torch.zeros(1, 65, 1, 1)], [torch.zeros(1, 260, 1, 1)], [(9, 9)], [(8.0,) * 65], (1.0,), (8,))


NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.25, 3.0, 100.0, -100.0, math.inf, -math.inf, math.nan])


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_shapes_strides_types_and_values_equal_the_loop(data):
    images = data.draw(st.integers(0, 3))
    shapes = data.draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=3))
    dtype = data.draw(st.sampled_from(contract.DTYPES))
    inputs = maps(shapes, images, anchors=2, seed=data.draw(st.integers(0, 99)))
    for map in (*inputs["logits"], *inputs["deltas"]):
        if map.numel():
            for _ in range(data.draw(st.integers(0, 4))):
                map.view(-1)[data.draw(st.integers(0, map.numel() - 1))] = data.draw(NUMBERS)
    form = data.draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    given = {name: [map.to(dtype).contiguous(memory_format=form) for map in inputs[name]] for name in inputs}
    options = {
        "image_sizes": data.draw(
            st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=images, max_size=images)
        ),
        "sizes": [(8.0 * (level + 1),) for level in range(len(shapes))],
        "ratios": (0.5, 2.0),
        "strides": [data.draw(st.sampled_from([4, 7.5, (6, 9)])) for _ in shapes],
        "pre_nms_top_n": data.draw(st.sampled_from([1, 5, 1000])),
        "offset": data.draw(st.sampled_from([0.0, 0.5])),
    }
    result, expected = rpn_candidates(**given, **options), reference.rpn_candidates(**given, **options)
    for here, there in zip(result, expected, strict=True):
        torch.testing.assert_close(here.to(there.dtype), there, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("size", [(800, 1088), (320, 448)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_proposals_of_an_image_are_those_of_torchvision(size, channels_last):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detection = pytest.importorskip(
            "torchvision.models.detection", reason="the oracle is not installed beside this torch"
        )
    sizes = [(side,) for side in (32, 64, 128, 256, 512)]
    grids = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32, 64)]
    inputs = maps(grids, seed=11)
    form = torch.channels_last if channels_last else torch.contiguous_format
    logits = [map.float().contiguous(memory_format=form) for map in inputs["logits"]]
    deltas = [map.float().contiguous(memory_format=form) for map in inputs["deltas"]]
    image_sizes = [size, (size[0] - 30, size[1] - 100)]
    theirs = detection.rpn.RegionProposalNetwork(
        detection.anchor_utils.AnchorGenerator(sizes, (RATIOS,) * 5),
        lambda features: (logits, deltas),
        *(0.7, 0.3, 256, 0.5),
        {"training": 2000, "testing": 1000},
        {"training": 2000, "testing": 1000},
        0.7,
    ).eval()
    images = detection.image_list.ImageList(torch.zeros(2, 3, *size), image_sizes)
    expected, _ = theirs(images, {str(level): map for level, map in enumerate(logits)})
    # torchvision takes the cells' distances from the sizes of image and map
    strides = [(size[0] // height, size[1] // width) for height, width in grids]
    boxes, _ = rpn_proposals(logits, deltas, image_sizes, sizes, RATIOS, strides, rounded=True)
    for here, there in zip(boxes, expected, strict=True):
        assert len(here) == len(there) > 500
        distance = (here[:, None] - there).abs().amax(2)  # sigmoids that round to one value change their order
        assert distance.amin(0).max() < 1e-3
        assert distance.amin(1).max() < 1e-3
