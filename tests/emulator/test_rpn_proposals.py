import ctypes
import math

import pytest
import torch

from mrcnn_cli.ops import nms_sorted, rpn_candidates
from mrcnn_cli.ops.box_coding import LOG_MAX_SCALE
from mrcnn_cli.ops.grid_anchors import base_corners, both_strides
from tests.emulator.emulation import ORDERS, array, call, pointer
from tests.emulator.test_roi_align import TYPES
from tests.ops.test_rpn_proposals import CANDIDATES


def emulated_candidates(library, arguments):
    """The kernels' answer, in buffers full of NaN: every place must be written."""
    logits, deltas = arguments["logits"], arguments["deltas"]
    channels_last = not logits[0].is_contiguous()
    images, top = len(logits[0]), arguments.get("pre_nms_top_n", 1000)
    total = sum(min(top, map[0].numel()) for map in logits)
    dtype = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
    boxes, scores = torch.full((images, total, 4), math.nan, dtype=dtype), torch.full((images, total), math.nan)
    scores, groups = scores.to(dtype), torch.full((images, total), -7)
    corners = [
        corner
        for sizes in arguments["sizes"]
        for corner in base_corners(sizes, arguments["ratios"], arguments.get("rounded", False), "")
    ]
    failure = call(
        library.rpn_candidates,
        TYPES[logits[0].dtype],
        len(logits),
        images,
        array(ctypes.c_void_p, [pointer(map).value for map in logits]),
        array(ctypes.c_void_p, [pointer(map).value for map in deltas]),
        array(ctypes.c_int64, [side for map in logits for side in map.shape[1:]]),
        array(ctypes.c_double, [side for stride in arguments["strides"] for side in both_strides(stride)]),
        array(ctypes.c_double, corners),
        float(arguments.get("offset", 0.0)),
        channels_last,
        array(ctypes.c_int64, [side for size in arguments["image_sizes"] for side in size]),
        top,
        array(ctypes.c_double, arguments.get("weights", (1.0, 1.0, 1.0, 1.0))),
        float(arguments.get("clamp", LOG_MAX_SCALE)),
        float(arguments.get("min_size", 1e-3)),
        boxes,
        scores,
        groups,
    )
    assert failure is None, failure
    return boxes, scores, groups


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CANDIDATES.cases)
def test_candidates_equal_the_cpus(emulated, case, dtype, order):
    emulated.set_order(order, 5)
    arguments = CANDIDATES.arguments(case, dtype)
    logits, deltas = arguments["logits"][0], arguments["deltas"][0]
    logits.view(-1)[:3] = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
    deltas.view(-1)[5:7] = torch.tensor([math.nan, math.inf], dtype=dtype)
    if order % 2:
        for name in ("logits", "deltas"):
            arguments[name] = [map.contiguous(memory_format=torch.channels_last) for map in arguments[name]]
    boxes, scores, groups = emulated_candidates(emulated, arguments)
    expected_boxes, expected_scores, expected_groups = rpn_candidates(**arguments)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(groups, expected_groups)
    # exp() of the C library and PyTorch's differ in the last bit
    torch.testing.assert_close(boxes, expected_boxes, rtol=0, atol=1e-9 if dtype == torch.float64 else 2e-4)


@pytest.mark.parametrize("count", [1, 30, 1000])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", ["a pyramid", "equal logits", "everything chosen"])
def test_the_best_equal_the_cpus_to_the_bit(emulated, case, order, count):
    emulated.set_order(order, 5)
    for dtype in (torch.float32, torch.float64):
        boxes, logits, groups = rpn_candidates(**CANDIDATES.arguments(case, dtype))
        keep = nms_sorted(boxes.view(-1, 4), 0.3, groups.view(-1))
        expected = torch.ops.mrcnn.rpn_best(boxes, logits, keep, count)
        result = [torch.full_like(tensor, math.nan) for tensor in expected]
        images, total = logits.shape
        failure = call(
            emulated.rpn_best,
            dtype == torch.float64,
            boxes,
            logits,
            keep,
            images,
            total,
            expected[1].shape[1],
            *result,
        )
        assert failure is None, failure
        assert all(torch.equal(here, there) for here, there in zip(result, expected, strict=True))
