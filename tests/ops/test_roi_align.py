import math

import pytest
import torch

from mrcnn_cli.ops import multilevel_roi_align, reference, roi_align
from tests.ops import contract

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SCALES = [0.25, 0.125, 0.0625]


def some_boxes(count, images, low, high, seed=0):
    """[count, 5] boxes from `low` to `high`, some reaching outside of the image, with sides of 4 to 100 pixels."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*size):
        return torch.rand(*size, generator=random, dtype=torch.float64)

    corner = low + (high - low) * uniform(count, 2)
    image = torch.arange(count).double()[:, None] % images
    return torch.cat([image, corner, corner + 4 + 96 * uniform(count, 2)], 1)


def some_map(*size, seed=1, channels_last=False):
    map = torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return map.to(memory_format=torch.channels_last) if channels_last else map


def single(channels=5, channels_last=False, size=(11, 14), boxes=6, **options):
    arguments = {
        "input": some_map(2, channels, *size, channels_last=channels_last),
        "boxes": some_boxes(boxes, 2, -20, 70),
        "output_size": (3, 2),
        "spatial_scale": 0.25,
    }
    return lambda: {**arguments, **options}


def pyramid(channels=5, channels_last=False, sizes=((20, 23), (10, 12), (5, 6)), boxes=9, **options):
    arguments = {
        "features": [some_map(2, channels, *size, seed=i, channels_last=channels_last) for i, size in enumerate(sizes)],
        "boxes": some_boxes(boxes, 2, -10, 70),
        "output_size": (2, 3),
        "spatial_scales": SCALES,
        "canonical_size": 40.0,
        "canonical_level": 3,
    }
    return lambda: {**arguments, **options}


ROI_ALIGN = contract.Operator(
    function=roi_align,
    reference=reference.roi_align,
    cases={
        "adaptive": single(),
        "adaptive, channels last": single(channels_last=True),
        "sampling 2, aligned": single(sampling_ratio=2, aligned=True),
        "sampling 2, aligned, channels last": single(sampling_ratio=2, aligned=True, channels_last=True),
        "105 channels, channels last": single(105, True, sampling_ratio=1, output_size=(1, 2)),
        "105 channels": single(105, sampling_ratio=1, output_size=(1, 2)),
    },
    values=("input",),
    tolerance=TOLERANCE,
    differentiable=("input",),
)
MULTILEVEL = contract.Operator(
    function=multilevel_roi_align,
    reference=reference.multilevel_roi_align,
    cases={
        "adaptive": pyramid(),
        "adaptive, aligned, channels last": pyramid(aligned=True, channels_last=True),
        "sampling 2": pyramid(sampling_ratio=2),
        "sampling 2, channels last": pyramid(sampling_ratio=2, channels_last=True),
        "70 channels, channels last": pyramid(70, True, sampling_ratio=2, output_size=(1, 1)),
    },
    values=("features",),
    tolerance=TOLERANCE,
    differentiable=("features",),
)
BOTH = [(ROI_ALIGN, case) for case in ROI_ALIGN.cases] + [(MULTILEVEL, case) for case in MULTILEVEL.cases]
every_case = pytest.mark.parametrize(
    ("operator", "case"), BOTH, ids=[f"{op.function.__name__}: {case}" for op, case in BOTH]
)
# Numerical gradients ask for one evaluation per number, so these maps are small.
TINY = {"channels": 2, "sizes": ((7, 9), (4, 5), (2, 3)), "boxes": 5, "canonical_size": 30.0}
GRADIENTS = contract.Operator(
    function=multilevel_roi_align,
    reference=reference.multilevel_roi_align,
    cases={
        f"{options}, channels last: {channels_last}": pyramid(channels_last=channels_last, **TINY, **options)
        for channels_last in (False, True)
        for options in ({}, {"sampling_ratio": 2, "aligned": True})
    },
    values=("features",),
    differentiable=("features",),
)


@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_it_equals_the_loop(operator, case, dtype):
    contract.equals_the_loop(operator, case, dtype)


@pytest.mark.parametrize("case", GRADIENTS.cases)
def test_its_gradients_are_right(case):
    contract.has_right_gradients(GRADIENTS, case)


@pytest.mark.parametrize("case", GRADIENTS.cases)
def test_opcheck_passes(case):
    contract.passes_opcheck(GRADIENTS, case)


@pytest.mark.parametrize("case", ["adaptive", "adaptive, aligned, channels last"])
def test_it_compiles_whole(case):
    contract.compiles_whole(MULTILEVEL, case)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(operator, case, dtype):
    contract.same_bits_for_any_number_of_threads(operator, case, dtype)


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_cuda_equals_cpu(operator, case, dtype):
    contract.cuda_equals_cpu(operator, case, dtype)


@pytest.mark.gpu
def test_cuda_gradients_are_right():
    for case in GRADIENTS.cases:
        contract.has_right_gradients(GRADIENTS, case, "cuda")


@pytest.mark.gpu
def test_cuda_gradients_have_the_same_bits_every_time():
    arguments = MULTILEVEL.arguments("70 channels, channels last", torch.float32, "cuda")
    for map in arguments["features"]:
        map.requires_grad_()
    runs = []
    for _ in range(3):
        result = multilevel_roi_align(**arguments)
        runs.append(torch.autograd.grad(result, arguments["features"], torch.ones_like(result)))
    for run in runs[1:]:
        assert all(torch.equal(grad, first) for grad, first in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 8, 37, 64, 100])
def test_half_precision_and_both_memory_formats_have_the_same_gradients(dtype, channels):
    boxes = some_boxes(12, 2, -10, 70).float()
    map = some_map(2, channels, 16, 18).to(dtype)
    weights = some_map(12, channels, 3, 3, seed=5).to(dtype)
    grads = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        leaf = map.clone(memory_format=memory_format).requires_grad_()
        roi_align(leaf, boxes, 3, 0.25).backward(weights)
        grads.append(leaf.grad)
    leaf = map.double().requires_grad_()
    reference.roi_align(leaf, boxes, (3, 3), 0.25).backward(weights.double())
    for grad in grads:
        assert grad.dtype == dtype
        # float32 sums rounded once: half a unit in the last place of the largest values, beside float32's own error
        torch.testing.assert_close(grad.double(), leaf.grad, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_the_result_and_the_gradient_keep_the_memory_format():
    boxes = some_boxes(4, 2, 0, 40).float()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        map = some_map(2, 6, 12, 9).float().to(memory_format=memory_format).requires_grad_()
        result = roi_align(map, boxes, 3, 0.25)
        result.sum().backward()
        assert result.is_contiguous(memory_format=memory_format)
        assert map.grad.is_contiguous(memory_format=memory_format)


def test_any_strides_are_taken():
    wide = some_map(2, 10, 12, 18).float()
    boxes = some_boxes(5, 2, 0, 40).float()
    sliced = wide.permute(0, 2, 3, 1)[:, :, :, :4].transpose(1, 3)
    for map in (wide[:, ::2], wide[..., 1::2], wide.transpose(2, 3), sliced):
        assert not map.is_contiguous()
        torch.testing.assert_close(
            roi_align(map, boxes, (2, 3), 0.25), roi_align(map.contiguous(), boxes, (2, 3), 0.25), rtol=0, atol=1e-5
        )
    strided_boxes = torch.cat([boxes, boxes], 1)[:, :5]
    assert torch.equal(roi_align(wide, strided_boxes, 2), roi_align(wide, boxes, 2))


def test_maps_of_one_pixel_and_one_channel_work_in_every_format():
    boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
    for map in (torch.full((1, 3, 1, 1), 2.0), torch.full((1, 1, 5, 5), 2.0), torch.full((1, 1, 1, 9), 2.0)):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            result = roi_align(map.to(memory_format=memory_format), boxes, 2, 0.125)
            assert torch.equal(result, torch.full_like(result, 2.0))


def test_a_list_of_boxes_per_image_means_the_same_as_rows_with_an_index():
    map = some_map(2, 3, 12, 12).float()
    boxes = some_boxes(6, 2, 0, 30).float()
    rows = boxes[boxes[:, 0].argsort(stable=True)]
    lists = [rows[rows[:, 0] == image, 1:] for image in range(2)]
    assert torch.equal(roi_align(map, lists, 3, 0.25), roi_align(map, rows, 3, 0.25))


def test_half_precision_boxes_in_a_list_keep_their_image():
    # float16 can't count past 2048 and bfloat16 not past 256: the index must not go through them
    map = torch.arange(300.0).reshape(300, 1, 1, 1)
    boxes = [torch.tensor([[0, 0, 1, 1]], dtype=torch.bfloat16) for _ in range(300)]
    assert torch.equal(roi_align(map, boxes, 1).flatten(), torch.arange(300.0))


def test_no_boxes_give_an_empty_result_and_a_zero_gradient():
    for memory_format in (torch.contiguous_format, torch.channels_last):
        map = some_map(2, 3, 6, 6).float().to(memory_format=memory_format).requires_grad_()
        result = roi_align(map, torch.zeros(0, 5), 7)
        assert result.shape == (0, 3, 7, 7)
        result.sum().backward()
        assert torch.equal(map.grad, torch.zeros_like(map))
    assert roi_align(torch.zeros(2, 3, 6, 6), [torch.zeros(0, 4)] * 2, 7).shape == (0, 3, 7, 7)
    assert roi_align(torch.zeros(0, 3, 6, 6), [], 7).shape == (0, 3, 7, 7)
    assert roi_align(torch.zeros(1, 0, 6, 6), torch.zeros(2, 5), 7).shape == (2, 0, 7, 7)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(0, 6), (6, 0), (0, 0)])
def test_a_map_without_pixels_gives_zeros(channels_last, size):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    map = torch.zeros(1, 3, *size).to(memory_format=memory_format).requires_grad_()
    # samples up to a pixel outside of a map count as its border, which is not there
    result = roi_align(map, torch.tensor([[0, -0.9, -0.9, 0.1, 0.1], [0, 1, 1, 4, 4]]), 2)
    assert torch.equal(result, torch.zeros(2, 3, 2, 2))
    result.sum().backward()
    assert map.grad.shape == map.shape


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_odd_boxes_stay_finite_and_agree_with_the_loop(channels_last, sampling_ratio, aligned):
    inf, nan = math.inf, math.nan
    boxes = [
        [3, 3, 3, 3],  # no area
        [8, 9, 3, 2],  # inverted
        [-500, -500, -400, -400],  # outside of the image
        [-30, -30, 90, 90],  # larger than the image
        [0, 0, 0.001, 60],
        [nan, 0, 5, 5],
        [0, 0, nan, 5],
        [0, 0, inf, 5],
        [-inf, -inf, inf, inf],
        [inf, inf, inf, inf],
    ]
    rois = torch.tensor([[0, *box] for box in boxes], dtype=torch.float32)
    map = some_map(1, 4, 13, 15, channels_last=channels_last).float().requires_grad_()
    result = roi_align(map, rois, (3, 2), 0.25, sampling_ratio, aligned)
    expected = reference.roi_align(map, rois, (3, 2), 0.25, sampling_ratio, aligned)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=3e-5)
    result.sum().backward()
    assert map.grad.isfinite().all()


def test_boxes_far_larger_than_their_map_take_no_time_for_what_lies_outside():
    # Millions of samples per bin and axis, of which a few lie on the map: walking through them all would take hours.
    rois = torch.tensor(
        [[0, -1e8, -1e8, 1e8, 1e8], [0, -1e9, 2, 1e9, 3], [0, 1e30, 0, 2e30, 5], [0, -2e38, 0, 2e38, 5]]
    )
    map = torch.ones(1, 2, 10, 10, requires_grad=True)
    result = roi_align(map, rois, 7)
    assert result.isfinite().all()
    # what a bin sees of the map is nothing beside its size
    assert result.abs().max() < 1e-5
    result.sum().backward()
    assert map.grad.isfinite().all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("extent", [100.0, 1000.0])
def test_bins_of_any_width_are_sampled_in_full(channels_last, extent):
    # A map that rises by one per pixel: the mean over a bin is the middle of the bin, however wide it is.
    width = 1200
    map = torch.arange(width, dtype=torch.float64).expand(1, 3, 8, width)
    map = map.to(memory_format=torch.channels_last) if channels_last else map.contiguous()
    result = roi_align(map, torch.tensor([[0, 10.0, 1.0, 10.0 + extent, 5.0]], dtype=torch.float64), (2, 4))
    expected = 10 + extent * (torch.arange(4, dtype=torch.float64) + 0.5) / 4
    torch.testing.assert_close(result, expected.expand(1, 3, 2, 4))


def test_levels_follow_the_papers_formula():
    # Each map holds its own number, so the result says which one was taken.
    features = [torch.full((1, 1, 40, 40), float(level)) for level in range(4)]
    sizes = [1, 111.9, 112, 223.9, 224, 447.9, 448, 2000]
    boxes = torch.tensor([[0, 0, 0, size, size] for size in sizes])
    result = multilevel_roi_align(features, boxes, 1, [1 / 4, 1 / 8, 1 / 16, 1 / 32], sampling_ratio=1)
    sampled_at = [result[i, 0, 0, 0].item() for i in range(len(sizes))]
    assert sampled_at == [0, 0, 1, 1, 2, 2, 3, 3]
    no_size = torch.tensor([[0, 5.0, 5.0, 5.0, 5.0], [0, 9.0, 9.0, 5.0, 20.0]])
    assert multilevel_roi_align(features, no_size, 1, [1 / 4, 1 / 8, 1 / 16, 1 / 32]).abs().max() == 0


def test_levels_start_where_the_first_map_says():
    features = [torch.full((1, 1, 40, 40), float(level)) for level in range(2)]
    boxes = torch.tensor([[0, 0, 0, size, size] for size in (60.0, 200.0, 230.0, 500.0)])
    result = multilevel_roi_align(features, boxes, 1, [1 / 16, 1 / 32], sampling_ratio=1)
    assert result.flatten().tolist() == [0, 0, 0, 1]


def test_autocast_leaves_the_features_type_and_the_boxes_precision_alone():
    map = some_map(1, 3, 20, 20).bfloat16()
    boxes = torch.tensor([[0, 101.3, 57.7, 300.9, 250.1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = roi_align(map, boxes, 4, 1 / 16)
        mixed = multilevel_roi_align([map, map.float()[:, :, ::2, ::2]], boxes, 4, [1 / 16, 1 / 32])
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, roi_align(map, boxes, 4, 1 / 16))
    assert mixed.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": torch.zeros(3, 4, 5)}, r"roi_align: features\[0\] must be \[N, C, H, W\], got \[3, 4, 5\]"),
        ({"input": torch.zeros(1, 1, 2, 2, dtype=torch.int32)}, "roi_align: features must be floating point, got Int"),
        ({"boxes": torch.zeros(3, 4)}, r"roi_align: boxes must be \[R, 5\].*got \[3, 4\]"),
        ({"boxes": torch.zeros(3, 5).int()}, "roi_align: boxes must be floating point, got Int"),
        ({"boxes": torch.tensor([[2.0, 0, 0, 1, 1]])}, r"roi_align: boxes\[0\] lies on image 2, .* hold 2"),
        ({"boxes": torch.tensor([[-1.0, 0, 0, 1, 1]])}, r"roi_align: boxes\[0\] lies on image -1"),
        ({"boxes": torch.tensor([[math.nan, 0, 0, 1, 1]])}, r"roi_align: boxes\[0\] lies on image nan"),
        ({"boxes": [torch.zeros(3, 4)]}, r"roi_align: boxes must be one \[R, 4\] per image, got 1 for 2"),
        ({"boxes": [torch.zeros(3, 4), torch.zeros(3, 5)]}, r"roi_align: boxes\[1\] must be \[R, 4\], got \[3, 5\]"),
        ({"boxes": torch.zeros(3, 4, 5)}, r"roi_align: boxes must be \[R, 5\].*got \[3, 4, 5\]"),
        ({"input": torch.zeros(0, 1, 2, 2), "boxes": torch.zeros(1, 5)}, r"boxes\[0\] lies on image 0, .* hold 0"),
        ({"output_size": (0, 2)}, "roi_align: output_size must be positive and below 32768, got 0 x 2"),
        ({"output_size": (3, -1)}, "roi_align: output_size must be positive and below 32768, got 3 x -1"),
        ({"output_size": 40000}, "roi_align: output_size must be positive and below 32768, got 40000 x 40000"),
        ({"sampling_ratio": 1 << 24}, "roi_align: sampling_ratio is too large: 16777216"),
        ({"spatial_scale": 0.0}, "roi_align: spatial_scale must be positive, got 0"),
        ({"spatial_scale": -0.25}, "roi_align: spatial_scale must be positive, got -0.25"),
        ({"spatial_scale": math.inf}, "roi_align: spatial_scale must be positive, got inf"),
        ({"spatial_scale": math.nan}, "roi_align: spatial_scale must be positive, got nan"),
    ],
)
def test_a_wrong_argument_is_named(changes, message):
    contract.refuses(ROI_ALIGN, "adaptive", changes, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": []}, "roi_align: features must hold at least one map"),
        ({"spatial_scales": [0.25]}, "roi_align: one spatial_scale per feature map, got 1 for 3"),
        ({"canonical_size": 0.0}, "roi_align: canonical_size must be positive, got 0"),
        (
            {"features": [torch.zeros(2, 5, 4, 4)] * 9, "spatial_scales": [0.25] * 9},
            "roi_align: between 1 and 8 feature maps, got 9",
        ),
        (
            {"features": [torch.zeros(2, 5, 4, 4), torch.zeros(2, 5, 4), torch.zeros(2, 5, 1, 1)]},
            r"roi_align: features\[1\] must be \[N, C, H, W\], got \[2, 5, 4\]",
        ),
        (
            {"features": [torch.zeros(2, 5, 4, 4), torch.zeros(2, 6, 2, 2), torch.zeros(2, 5, 1, 1)]},
            r"roi_align: features\[1\] must have the images and channels.*got \[2, 6, 2, 2\]",
        ),
    ],
)
def test_a_wrong_pyramid_is_named(changes, message):
    contract.refuses(MULTILEVEL, "adaptive", changes, message)


def backward(**changes):
    arguments = {"grad": torch.zeros(4, 2, 3, 3), "rois": torch.zeros(4, 5), "images": 1, "heights": [5], "widths": [6]}
    arguments |= {"spatial_scales": [0.5], "sampling_ratio": 2, "aligned": False, "canonical_size": 224.0}
    arguments |= {"canonical_level": 4, "channels_last": False}
    return torch.ops.mrcnn.roi_align_backward(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad": torch.zeros(4, 2, 3)}, r"roi_align_backward: grad must be \[R, C, h, w\] .* got \[4, 2, 3\]"),
        ({"grad": torch.zeros(4, 2, 3, 3).int()}, "roi_align_backward: grad must be .* floating point"),
        ({"rois": torch.zeros(3, 5)}, r"roi_align_backward: grad must hold 3 regions, got \[4, 2, 3, 3\]"),
        ({"heights": [5, 3]}, "roi_align_backward: one height and width per spatial_scale"),
        ({"heights": [-5]}, "roi_align_backward: sizes must not be negative, got 1 images of -5 x 6"),
        ({"images": -1}, "roi_align_backward: sizes must not be negative, got -1 images of 5 x 6"),
        ({"rois": torch.ones(4, 5)}, r"roi_align: boxes\[0\] lies on image 1, but the features hold 1"),
    ],
)
def test_a_wrong_argument_of_the_gradient_is_named(changes, message):
    assert [map.shape for map in backward()] == [(1, 2, 5, 6)]
    with pytest.raises(RuntimeError, match=message):
        backward(**changes)


@pytest.mark.gpu
def test_boxes_and_features_on_two_devices_are_refused():
    map, boxes = some_map(1, 3, 8, 8).float(), torch.zeros(2, 5)
    for one, other in ((map.cuda(), boxes), (map, boxes.cuda())):
        with pytest.raises(RuntimeError, match="roi_align: boxes must be on the device of the input"):
            roi_align(one, other, 2)
    with pytest.raises(RuntimeError, match=r"roi_align: features\[1\] must be on the device of features\[0\]"):
        multilevel_roi_align([map.cuda(), map], boxes.cuda(), 2, [0.5, 0.25])


@pytest.mark.gpu
def test_the_atomic_gradient_that_benchmarks_compare_with_is_the_same():
    maps = [some_map(2, 8, 40 >> level, 44 >> level, seed=level).float().cuda() for level in range(2)]
    maps = [map.to(memory_format=torch.channels_last).requires_grad_() for map in maps]
    boxes = some_boxes(30, 2, 0, 120).float().cuda()
    result = multilevel_roi_align(maps, boxes, 7, [0.25, 0.125], 2)
    weights = torch.randn_like(result)
    sizes = ([map.shape[2] for map in maps], [map.shape[3] for map in maps])
    added = torch.ops.mrcnn.roi_align_backward_atomic(weights, boxes, 2, *sizes, [0.25, 0.125], 2, False, 224.0, 4)
    for grad, other in zip(torch.autograd.grad(result, maps, weights), added, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_agrees_with_torchvision(aligned, sampling_ratio, channels_last):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    map = some_map(2, 35, 40, 50, channels_last=channels_last).float().requires_grad_()
    boxes = some_boxes(60, 2, -40, 180).float()
    oracle_map = map.detach().contiguous().requires_grad_()
    result = roi_align(map, boxes, (7, 5), 0.25, sampling_ratio, aligned)
    expected = torchvision.ops.roi_align(oracle_map, boxes, (7, 5), 0.25, sampling_ratio, aligned)
    # The geometry is the same to the bit; only the order of the sums differs.
    torch.testing.assert_close(result, expected, rtol=0, atol=3e-6)
    weights = some_map(60, 35, 7, 5, seed=9).float()
    result.backward(weights)
    expected.backward(weights)
    torch.testing.assert_close(map.grad, oracle_map.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_pyramid_agrees_with_torchvision(channels_last):
    torchvision = pytest.importorskip("torchvision", reason="the oracle is not installed beside this torch")
    features = [some_map(2, 16, 64 >> i, 80 >> i, seed=i, channels_last=channels_last).float() for i in range(4)]
    random = torch.Generator().manual_seed(4)
    corner = torch.rand(200, 2, generator=random) * 250
    boxes = torch.cat([corner, corner + torch.rand(200, 2, generator=random) ** 3 * 600 + 2], 1)
    oracle = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    named = {str(i): map for i, map in enumerate(features)}
    expected = oracle(named, [boxes[:120], boxes[120:]], [(256, 320), (256, 320)])
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    result = multilevel_roi_align(features, [boxes[:120], boxes[120:]], 7, scales, sampling_ratio=2)
    torch.testing.assert_close(result, expected, rtol=0, atol=3e-6)
