import ctypes
import math

import torch

from mrcnn_cli.ops import grid_anchors
from tests.emulator.emulation import array, call


def test_grid_anchors_equal_the_cpus_to_the_bit(emulated):
    emulated.set_order(0, 1)
    height, width, sizes, ratios = 7, 45, (16.0, 40.0), (0.5, 1.0, 2.0)
    base = grid_anchors(sizes, ratios, (1, 1), 1, dtype=torch.float64)
    anchors = torch.full((height * width * len(base), 4), math.nan)
    failure = call(
        emulated.grid_anchors_float,
        array(ctypes.c_double, base.flatten().tolist()),
        len(base),
        height,
        width,
        16.0,
        4.5,
        0.5,
        anchors,
    )
    assert failure is None
    assert torch.equal(anchors, grid_anchors(sizes, ratios, (height, width), (16.0, 4.5), offset=0.5))
