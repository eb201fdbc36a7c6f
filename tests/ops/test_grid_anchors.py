import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrcnn_cli.ops import grid_anchors, reference
from tests.ops import contract


def arguments(**options):
    return lambda: {"sizes": (16.0, 40.0), "ratios": (0.5, 1.0, 2.0), "grid": (3, 5), "stride": 8, **options}


OPERATOR = contract.Operator(
    function=grid_anchors,
    reference=reference.grid_anchors,
    cases={
        "plain": arguments(),
        "one cell": arguments(grid=(1, 1), sizes=(32.0,), ratios=(1.0,)),
        "two strides": arguments(stride=(16.0, 4.5)),
        "half a stride off": arguments(offset=0.5),
        "rounded": arguments(rounded=True, sizes=(15.0, 33.0)),
        "wide": arguments(grid=(70, 90), stride=(4, 4)),
    },
    values=(),
    same_type=False,
)
every_case = pytest.mark.parametrize("case", OPERATOR.cases)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_equals_the_loop(case, dtype):
    arguments = OPERATOR.cases[case]()
    expected = reference.grid_anchors(**arguments)
    anchors = grid_anchors(**arguments, dtype=dtype)
    assert anchors.dtype == dtype
    torch.testing.assert_close(anchors.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@every_case
def test_opcheck_passes(case):
    contract.passes_opcheck(OPERATOR, case)


@every_case
def test_the_number_of_threads_changes_no_bit(case):
    contract.same_bits_for_any_number_of_threads(OPERATOR, case, torch.float32)


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cuda_equals_cpu(case, dtype):
    arguments = {**OPERATOR.cases[case](), "dtype": dtype}
    assert torch.equal(grid_anchors(**arguments, device="cuda").cpu(), grid_anchors(**arguments))


def test_it_compiles_whole():
    def anchors(map):
        return grid_anchors((16.0, 32.0), (0.5, 1.0), (map.shape[2], map.shape[3]), 8, device=map.device)

    torch.compiler.reset()
    compiled = torch.compile(anchors, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((4, 5), (6, 7)):
        assert torch.equal(compiled(torch.zeros(1, 1, *size)), anchors(torch.zeros(1, 1, *size)))


def test_sizes_run_slower_than_ratios_and_columns_faster_than_rows():
    anchors = grid_anchors((8.0, 16.0), (1.0, 4.0), (2, 3), 10)
    assert anchors.shape == (2 * 3 * 4, 4)
    first_cell = [[-4, -4, 4, 4], [-2, -8, 2, 8], [-8, -8, 8, 8], [-4, -16, 4, 16]]
    assert anchors[:4].tolist() == first_cell
    assert anchors[4].tolist() == [6, -4, 14, 4]  # one cell to the right
    assert anchors[12].tolist() == [-4, 6, 4, 14]  # one row down


def test_areas_and_ratios_are_what_was_asked_for():
    sizes, ratios = (20.0, 50.0), (0.3, 1.0, 3.0)
    anchors = grid_anchors(sizes, ratios, (1, 1), 1, dtype=torch.float64)
    widths, heights = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    for i, (size, ratio) in enumerate((size, ratio) for size in sizes for ratio in ratios):
        assert (heights[i] / widths[i]).item() == pytest.approx(ratio)
        assert math.sqrt(widths[i] * heights[i]) == pytest.approx(size)


STRIDES = st.integers(1, 64) | st.floats(0.25, 64)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    grid=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    stride=STRIDES | st.tuples(STRIDES, STRIDES),
    sizes=st.lists(st.floats(1, 600), max_size=4),
    ratios=st.lists(st.floats(0.1, 10), max_size=4),
    rounded=st.booleans(),
    offset=st.sampled_from([0.0, 0.5, -1.25]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_any_grid_and_stride_equals_the_loop(grid, stride, sizes, ratios, rounded, offset, dtype):
    expected = reference.grid_anchors(sizes, ratios, grid, stride, rounded=rounded, offset=offset)
    anchors = grid_anchors(sizes, ratios, grid, stride, rounded=rounded, offset=offset, dtype=dtype)
    assert anchors.shape == (grid[0] * grid[1] * len(sizes) * len(ratios), 4)
    # a corner near zero is the difference of numbers as large as the anchor
    torch.testing.assert_close(anchors.double(), expected, rtol=0, atol=2000 * torch.finfo(dtype).eps)


def test_as_many_base_anchors_as_allowed_are_all_placed():
    sizes = [float(side) for side in range(1, 65)]
    anchors = grid_anchors(sizes, (1.0,), (2, 3), 10)
    assert torch.equal(anchors.double(), reference.grid_anchors(sizes, (1.0,), (2, 3), 10))


def test_whole_and_fractional_strides_of_one_value_place_the_same():
    arguments = {"sizes": (16.0,), "ratios": (1.0, 2.0), "grid": (3, 4)}
    expected = grid_anchors(**arguments, stride=8)
    for stride in (8.0, (8, 8), (8.0, 8), [8, 8.0]):
        assert torch.equal(grid_anchors(**arguments, stride=stride), expected)


def test_an_empty_grid_and_no_base_anchors_give_nothing():
    for options in ({"grid": (0, 5)}, {"grid": (5, 0)}, {"sizes": ()}, {"ratios": ()}):
        assert grid_anchors(**{**OPERATOR.cases["plain"](), **options}).shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (16.0, 0.0)}, "grid_anchors: sizes and ratios must be positive, got .*0.0"),
        ({"ratios": (-1.0,)}, "grid_anchors: sizes and ratios must be positive, got .*-1.0"),
        ({"grid": (-1, 4)}, "grid_anchors: grid must not be negative, got -1 x 4"),
        ({"dtype": torch.float16}, "grid_anchors: dtype must be float32 or float64, got Half"),
        ({"sizes": [1.0] * 13, "ratios": [1.0] * 5}, "grid_anchors: at most 64 base anchors, got 65"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    contract.refuses(OPERATOR, "plain", changes, message)


def test_rounded_anchors_are_those_of_torchvision():
    anchor_utils = pytest.importorskip(
        "torchvision.models.detection.anchor_utils", reason="the oracle is not installed beside this torch"
    )
    sizes, ratios = (32.0, 45.0, 71.0), (0.5, 1.0, 2.0)
    generator = anchor_utils.AnchorGenerator((sizes,), (ratios,))
    # torchvision's ratios run slower than its sizes, and its corners are rounded
    theirs = generator.generate_anchors(sizes, ratios).reshape(3, 3, 4).transpose(0, 1).reshape(9, 4)
    ours = grid_anchors(sizes, ratios, (1, 1), 16, rounded=True)
    assert torch.equal(ours, theirs)
    moved = generator.grid_anchors([[4, 6]], [torch.tensor([[16, 8]])[0]])[0]
    ours = grid_anchors(sizes, ratios, (4, 6), (16, 8), rounded=True).reshape(24, 3, 3, 4).transpose(1, 2)
    assert torch.equal(ours.reshape(-1, 4), moved)
