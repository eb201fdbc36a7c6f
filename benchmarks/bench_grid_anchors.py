"""Anchors on a grid, beside torchvision's AnchorGenerator, whose base anchors are made beforehand."""

import torch
from side_by_side import Case, Work, main
from torchvision.models.detection.anchor_utils import AnchorGenerator

from mrcnn_cli.ops import grid_anchors

RATIOS = (0.5, 1.0, 2.0)


def levels(name: str, sizes: tuple[tuple[float, ...], ...], strides: tuple[int, ...], image: tuple[int, int]) -> Case:
    grids = [(-(-image[0] // stride), -(-image[1] // stride)) for stride in strides]

    def make(device: torch.device) -> tuple[Work, Work]:
        generator = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
        # Its ratios run slower than its sizes: the base anchors are put into our order.
        generator.cell_anchors = [
            base.reshape(len(RATIOS), len(of_level), 4).transpose(0, 1).reshape(-1, 4).to(device)
            for base, of_level in zip(generator.cell_anchors, sizes, strict=True)
        ]
        their_strides = [[torch.tensor(stride, device=device)] * 2 for stride in strides]

        def ours() -> list[torch.Tensor]:
            return [
                grid_anchors(of_level, RATIOS, grid, stride, rounded=True, device=device)
                for of_level, grid, stride in zip(sizes, grids, strides, strict=True)
            ]

        return ours, lambda: generator.grid_anchors([list(grid) for grid in grids], their_strides)

    return Case(name, make)


CASES = [
    levels(
        "pyramid, 5 levels of 800 x 1088",
        ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
        (4, 8, 16, 32, 64),
        (800, 1088),
    ),
    levels("single map, 15 anchors a cell, stride 16", ((32.0, 64.0, 128.0, 256.0, 512.0),), (16,), (800, 1088)),
]

if __name__ == "__main__":
    main(__doc__.splitlines()[0], CASES)
