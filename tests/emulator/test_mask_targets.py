import ctypes
import math

import pytest
import torch

from mrcnn_cli.ops import mask_targets
from mrcnn_cli.ops.mask_targets import both_ways
from mrcnn_cli.ops.packed_masks import pack_masks
from tests.emulator.emulation import ORDERS, array, call
from tests.ops.test_mask_targets import MATRICES, some_objects


def emulated_targets(library, objects, boxes, size, matrix, ratio, aligned, threshold):
    packed = pack_masks(objects)
    counts = [len(packed.points), len(packed.polygons) - 1, len(packed.ends), len(packed.objects), len(boxes)]
    forward, backward = (array(ctypes.c_double, numbers) for numbers in both_ways(matrix))
    targets = torch.full((len(boxes), size, size), math.nan)
    failure = call(
        library.mask_targets,
        packed.points,
        packed.polygons,
        packed.ends,
        packed.objects,
        packed.index,
        boxes.double(),
        array(ctypes.c_int64, [*counts, *packed.largest]),
        forward,
        backward,
        size,
        ratio,
        int(aligned),
        int(threshold is not None),
        float(threshold or 0),
        targets,
    )
    assert failure is None
    return targets


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize(("size", "ratio", "aligned"), [(7, 0, True), (33, 2, False)])
def test_targets_equal_the_cpus_to_the_bit(emulated, size, ratio, aligned, matrix, order):
    emulated.set_order(order, 3)
    objects, boxes = some_objects()
    matrix = MATRICES[matrix]
    for threshold in (None, 0.5):
        options = {"matrix": matrix, "sampling_ratio": ratio, "aligned": aligned, "threshold": threshold}
        expected = mask_targets(objects, boxes, size, **options)
        assert expected.any()
        targets = emulated_targets(emulated, objects, boxes, size, matrix, ratio, aligned, threshold)
        assert torch.equal(targets, expected)


def test_polygons_alone_and_masks_without_pixels_need_no_tables(emulated):
    emulated.set_order(2, 1)
    square = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]
    boxes = torch.tensor([[0.0, 0.0, 6.0, 6.0]]).repeat(2, 1)
    objects = [square, {"size": [0, 0], "counts": []}]
    targets = emulated_targets(emulated, objects, boxes, 6, None, 0, True, 0.5)
    assert targets[0].sum() == 16
    assert targets[1].sum() == 0
