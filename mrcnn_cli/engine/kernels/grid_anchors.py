"""grid_anchors: checked on a small grid, raced on the five levels of a pyramid."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mrcnn_cli.engine.kernels.check import Check
from mrcnn_cli.engine.kernels.inputs import IMAGE
from mrcnn_cli.engine.kernels.race import Race, Work, torchvision
from mrcnn_cli.ops import grid_anchors, reference

RATIOS = (0.5, 1.0, 2.0)


def checks() -> Iterator[Check]:
    for rounded in (False, True):
        yield Check(
            "rounded" if rounded else "not rounded",
            lambda x, r=rounded: grid_anchors(
                (16, 40), (0.5, 1, 2), (3, 5), 8, rounded=r, dtype=x.dtype, device=x.device
            ),
            lambda x, r=rounded: reference.grid_anchors((16, 40), (0.5, 1, 2), (3, 5), 8, rounded=r),
            (torch.zeros(1, dtype=torch.float64),),
            dtypes=("float64", "float32"),
        )


def races(device: torch.device) -> Iterator[Race]:
    strides, sizes = (4, 8, 16, 32, 64), (32.0, 64.0, 128.0, 256.0, 512.0)
    grids = [(-(-IMAGE[0] // stride), -(-IMAGE[1] // stride)) for stride in strides]
    levels = list(zip(sizes, grids, strides, strict=True))

    def ours() -> list[Tensor]:
        return [
            grid_anchors((size,), RATIOS, grid, stride, rounded=True, device=device) for size, grid, stride in levels
        ]

    def plain() -> list[Tensor]:
        return [_plain_anchors(size, RATIOS, grid, stride, device) for size, grid, stride in levels]

    peers: dict[str, Work] = {"plain": plain}
    vision = torchvision()
    if vision:
        generator = vision.models.detection.anchor_utils.AnchorGenerator(
            tuple((size,) for size in sizes), (RATIOS,) * len(sizes)
        )
        generator.cell_anchors = [anchors.to(device) for anchors in generator.cell_anchors]
        steps = [[torch.tensor(stride, device=device)] * 2 for stride in strides]
        peers["torchvision"] = lambda: generator.grid_anchors([list(grid) for grid in grids], steps)
    count = sum(height * width * len(RATIOS) for height, width in grids)
    yield Race(f"5 levels of {IMAGE[0]} x {IMAGE[1]}", ours, peers, 1e-6, bytes=16 * count)


def _plain_anchors(
    size: float, ratios: Sequence[float], grid: tuple[int, int], stride: int, device: torch.device
) -> Tensor:
    ratio = torch.tensor(ratios, device=device)
    width, height = size / ratio.sqrt(), size * ratio.sqrt()
    base = (torch.stack([-width, -height, width, height], 1) / 2).round()
    y, x = torch.meshgrid(
        torch.arange(grid[0], device=device) * stride, torch.arange(grid[1], device=device) * stride, indexing="ij"
    )
    return (torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) + base).reshape(-1, 4)
