import ctypes
import math
import shutil

import pytest
import torch

from mrcnn_cli.ops import multilevel_roi_align
from tests.emulator.emulation import FOLDER, ORDERS, ROOT, array, compiled, objects_of, pointer

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
SCALES = [1 / 4, 1 / 8, 1 / 16]
SIZES = [(24, 29), (12, 15), (6, 8)]
ATOMIC = 2  # the gradient that benchmarks compare with
CANONICAL = {"canonical_size": 50.0, "canonical_level": 3}


def some_boxes(count, seed=0, extent=200.0):
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * extent
    return torch.cat([corner, corner + torch.rand(count, 2, generator=random) * 60 + 1], 1)


def run_roi_align(library, maps, rois, pooled, ratio, aligned, *, backward):
    """Runs the launcher on channels-last memory; fills `pooled`, or the maps from it."""
    assert all(map.is_contiguous(memory_format=torch.channels_last) for map in (*maps, pooled))
    library.roi_align.restype = ctypes.c_char_p
    return library.roi_align(
        int(backward),
        TYPES[pooled.dtype],
        len(maps),
        array(ctypes.c_void_p, [map.data_ptr() for map in maps]),
        array(ctypes.c_int, [map.shape[2] for map in maps]),
        array(ctypes.c_int, [map.shape[3] for map in maps]),
        array(ctypes.c_double, SCALES),
        ctypes.c_int64(maps[0].shape[0]),
        ctypes.c_int64(maps[0].shape[1]),
        pointer(rois),
        ctypes.c_int64(len(rois)),
        pointer(pooled),
        pooled.shape[2],
        pooled.shape[3],
        ratio,
        int(aligned),
        ctypes.c_double(CANONICAL["canonical_size"]),
        CANONICAL["canonical_level"],
    )


def a_pyramid(channels, dtype):
    random = torch.Generator().manual_seed(channels)
    maps = [torch.randn(2, channels, *size, generator=random).to(dtype) for size in SIZES]
    return [map.to(memory_format=torch.channels_last) for map in maps]


def some_rois(count, dtype):
    """Boxes on two images, in no order; some reach outside, two are odd, one needs more taps than a table holds."""
    boxes = some_boxes(count, seed=5, extent=90.0) - 15
    boxes[1] = torch.tensor([10.0, 10, 10, 10])
    boxes[2] = torch.tensor([40.0, 30, 20, 10])
    boxes[3] = torch.tensor([-400.0, -300, 700, 800])
    rois = torch.cat([torch.arange(count)[:, None] % 2, boxes], 1)
    return rois.to(torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("ratio", "aligned"), [(0, False), (2, True)])
@pytest.mark.parametrize(
    ("dtype", "channels", "size"),
    [
        (torch.float32, 128, (3, 2)),
        (torch.float32, 132, (2, 2)),
        (torch.float32, 7, (2, 3)),
        (torch.float64, 5, (2, 2)),
        (torch.float16, 24, (2, 2)),
        (torch.bfloat16, 264, (1, 2)),
    ],
)
def test_roi_align_equals_the_cpu(emulated, dtype, channels, size, ratio, aligned, order):
    emulated.set_order(order, 11)
    maps = [map.requires_grad_() for map in a_pyramid(channels, dtype)]
    rois = some_rois(14, dtype)
    expected = multilevel_roi_align(maps, rois, size, SCALES, ratio, aligned, **CANONICAL)
    pooled = torch.full_like(expected, math.nan)
    assert run_roi_align(emulated, maps, rois, pooled, ratio, aligned, backward=False) is None
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(pooled, expected, rtol=rounding, atol=max(1e-12, 8 * rounding))

    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    weights = weights.contiguous(memory_format=torch.channels_last)
    grads = torch.autograd.grad(expected, maps, weights)
    gathered = [torch.full_like(map, math.nan) for map in maps]  # every pixel must be written
    assert run_roi_align(emulated, gathered, rois, weights, ratio, aligned, backward=True) is None
    for result, wanted in zip(gathered, grads, strict=True):
        torch.testing.assert_close(result, wanted, rtol=rounding, atol=max(1e-12, 16 * rounding))
    if dtype == torch.float32:
        added = [torch.zeros_like(map) for map in maps]
        assert run_roi_align(emulated, added, rois, weights, ratio, aligned, backward=ATOMIC) is None
        for result, wanted in zip(added, grads, strict=True):
            torch.testing.assert_close(result, wanted, rtol=rounding, atol=16 * rounding)


def test_more_regions_than_one_round_of_a_block_are_gathered_in_their_order(emulated):
    maps = [map.requires_grad_() for map in a_pyramid(4, torch.float32)]
    rois = some_rois(600, torch.float32)
    expected = multilevel_roi_align(maps, rois, 1, SCALES, 1, **CANONICAL)
    weights = torch.ones_like(expected)
    grads = torch.autograd.grad(expected, maps, weights)
    runs = []
    for order in ORDERS:
        emulated.set_order(order, 2)
        gathered = [torch.full_like(map, math.nan) for map in maps]
        assert run_roi_align(emulated, gathered, rois, weights, 1, False, backward=True) is None
        runs.append(gathered)
    for result, wanted in zip(runs[0], grads, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_a_region_of_no_image_gives_zeros_and_no_gradient(emulated):
    emulated.set_order(0, 1)
    maps = a_pyramid(4, torch.float32)
    rois = torch.tensor([[2.0, 0, 0, 30, 30], [-1, 0, 0, 30, 30], [math.nan, 0, 0, 30, 30], [1, math.nan, 0, 5, 5]])
    pooled = torch.full((4, 4, 2, 2), math.nan).to(memory_format=torch.channels_last)
    assert run_roi_align(emulated, maps, rois, pooled, 2, False, backward=False) is None
    assert torch.equal(pooled, torch.zeros_like(pooled))
    gathered = [torch.full_like(map, math.nan) for map in maps]
    weights = torch.ones_like(pooled)
    assert run_roi_align(emulated, gathered, rois, weights, 2, False, backward=True) is None
    assert all(torch.equal(map, torch.zeros_like(map)) for map in gathered)


def test_no_regions_give_a_zero_gradient(emulated):
    emulated.set_order(0, 1)
    gathered = [torch.full_like(map, math.nan) for map in a_pyramid(4, torch.float32)]
    weights = torch.zeros(0, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    assert run_roi_align(emulated, gathered, torch.zeros(0, 5), weights, 2, False, backward=True) is None
    assert all(torch.equal(map, torch.zeros_like(map)) for map in gathered)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_emulated_half_precision_rounds_as_pytorch_does(emulated, dtype):
    # All 65536 numbers go out as they came in, through float32 and back: one sample in the middle of a pixel.
    bits = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    map = bits.view(dtype).reshape(1, 8, 64, 128).contiguous(memory_format=torch.channels_last)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(128.0), indexing="ij")
    corner = torch.stack([x, y], -1).reshape(-1, 2)
    rois = torch.cat([torch.zeros(len(corner), 1), corner * 4 - 2, corner * 4 + 2], 1)
    pooled = torch.zeros(len(corner), 8, 1, 1, dtype=dtype).contiguous(memory_format=torch.channels_last)
    scale_one = [map, map, map]
    assert run_roi_align(emulated, scale_one, rois, pooled, 1, False, backward=False) is None
    expected = map.permute(0, 2, 3, 1).reshape(-1, 8)
    same = pooled.reshape(-1, 8) == expected
    assert bool((same | expected.isnan()).all())
    assert torch.equal(pooled.reshape(-1, 8).isnan(), expected.isnan())


def crowded(dtype=torch.float32):
    """A call whose tiles are reached by more regions than one group of weights holds, and what it must give."""
    maps = [map.requires_grad_() for map in a_pyramid(8, dtype)]
    rois = some_rois(60, dtype)
    expected = multilevel_roi_align(maps, rois, (3, 2), SCALES, 2, **CANONICAL)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    weights = weights.contiguous(memory_format=torch.channels_last)
    return rois, [map.detach() for map in maps], expected, weights, torch.autograd.grad(expected, maps, weights)


def is_right(library, call, order):
    """Whether the kernels give what the CPU gives and the emulator has no complaint."""
    library.set_order(order, 5)
    rois, maps, expected, weights, grads = call
    pooled, gathered = torch.full_like(expected, math.nan), [torch.full_like(map, math.nan) for map in maps]
    for failure in (
        run_roi_align(library, maps, rois, pooled, 2, False, backward=False),
        run_roi_align(library, gathered, rois, weights, 2, False, backward=True),
    ):
        if failure is not None:
            assert failure.startswith(b"emulator:") or b"mask" in failure
            return False
    pairs = [(pooled, expected), *zip(gathered, grads, strict=True)]
    return all(torch.allclose(result, wanted, rtol=1e-5, atol=1e-5) for result, wanted in pairs)


# Each of these is a mistake that a hand could make: text of a kernel and what takes its place.
BARRIER = "__syncthreads();"
FAULTS = {
    "no barrier before the weights' geometry is read": ("roi_align_device.h", BARRIER, 0, ""),
    "no barrier before the taps are read": ("roi_align_device.h", BARRIER, 1, ""),
    "no barrier before the counts of warps are read": ("roi_align_cuda.cu", BARRIER, 0, ""),
    "no barrier before the found regions are read": ("roi_align_cuda.cu", BARRIER, 1, ""),
    "no barrier before the weights are read": ("roi_align_cuda.cu", BARRIER, 2, ""),
    "no barrier before the weights are overwritten": ("roi_align_cuda.cu", BARRIER, 3, ""),
    "a mask without the last lane": ("roi_align_cuda.cu", "kAllLanes = 0xffffffffu", 0, "kAllLanes = 0x7fffffffu"),
    "a tile one pixel too narrow": ("roi_align_cuda.cu", "first_x, kTileWidth)", 0, "first_x + 3, 1)"),
    "a band one pixel too low": ("roi_align_cuda.cu", "kTileHeight, kTileHeight);", 0, "kTileHeight + 3, 1);"),
    "too few bins": ("roi_align_cuda.cu", "bins_over(region.rows, first_y, kTileHeight)", 0, "{0, 1}"),
}


@pytest.fixture(scope="module")
def without_faults(tmp_path_factory):
    """What the faulty kernels are linked with."""
    sources = [FOLDER / "roi_align.cpp", FOLDER / "sanitized.cpp", FOLDER / "faults.cu"]
    sources.append(ROOT / "csrc" / "roi_align" / "roi_align_atomic_cuda.cu")
    return objects_of(tmp_path_factory.mktemp("without_faults"), ["-shared"], sources)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_fault_planted_in_the_kernels_is_found(tmp_path, without_faults, fault):
    for file in ("portable.h", "cuda_launch.h", "roi_align"):
        source = ROOT / "csrc" / file
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / file)
    if fault is not None:
        file, text, place, instead = FAULTS[fault]
        parts = (tmp_path / "roi_align" / file).read_text().split(text)
        assert len(parts) > place + 1, f"{file} has changed: there is no such text any more"
        parts[place : place + 2] = [parts[place] + instead + parts[place + 1]]
        (tmp_path / "roi_align" / file).write_text(text.join(parts))
    kernels = [tmp_path / "roi_align" / "roi_align_cuda.cu"]
    library = ctypes.CDLL(str(compiled(tmp_path, ["-shared"], "faulty.so", kernels, without_faults)))
    call = crowded()
    found = [not is_right(library, call, order) for order in ORDERS]
    assert any(found) if fault is not None else not any(found)
