"""What the mask head should answer: objects' masks cut to RoIs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrcnn_cli.ops.packed_masks import pack_masks


def mask_targets(
    polygons_or_rles: Sequence[Any],
    boxes: Tensor,
    size: int,
    *,
    matrix: Tensor | None = None,
    sampling_ratio: int = 0,
    aligned: bool = True,
    threshold: float | None = 0.5,
) -> Tensor:
    """Each object's mask within its box, at a fixed resolution. The masks of whole images are never made.

    Polygons are scaled to the grid and filled there by the rule of pycocotools, bit for bit, as Detectron2 does.
    Run-length encodings are sampled as RoIAlign would sample the full mask, straight from the runs, in float64. For
    boxes on a GPU the objects are copied there, once each and packed, and cut there; nothing waits for the GPU.

    Args:
        polygons_or_rles: N objects: a list of polygons [x1, y1, x2, y2, ...], or a COCO run-length encoding with
            compressed (bytes, str) or plain (list) counts. The same object (`is`) is read once, however often it comes.
        boxes: [N, 4] in pixels of the network's input. One that is not finite has an empty target.
        size: rows and columns of a target, at most 4096.
        matrix: [2, 3] from the pixels of the encodings and polygons to those of `boxes`; None: they are the same.
        sampling_ratio: points per bin and axis of run-length encodings; 0: as many as the bin has pixels. At most 4096.
        aligned: the half-pixel shift of RoIAlign, for run-length encodings.
        threshold: from which mean of the points, in float32, a bin belongs to the mask; None: the mean itself is the
            target. Polygons give 0 or 1 in any case.

    Returns:
        [N, size, size] float32 on the device of `boxes`.

    Raises:
        ValueError: `boxes` does not fit the objects, an object is malformed, or the matrix cannot be inverted.
        RuntimeError: another argument does not fit.
    """
    if boxes.shape != (len(polygons_or_rles), 4):
        raise ValueError(
            f"mask_targets: boxes must be [{len(polygons_or_rles)}, 4] as there are objects, got {list(boxes.shape)}"
        )
    try:
        packed = pack_masks(polygons_or_rles)
    except ValueError as error:
        raise ValueError(f"mask_targets: {error}") from None
    forward, backward = both_ways(matrix)
    tensors = [packed.points, packed.polygons, packed.objects, packed.index, packed.ends]
    points, polygons, objects, index, ends = _moved(tensors, boxes.device)
    return torch.ops.mrcnn.mask_targets(
        points, polygons, ends, objects, index, boxes.detach(), forward, backward, size, sampling_ratio, aligned,
        threshold, *packed.largest,
    )  # fmt: skip


def both_ways(matrix: Tensor | None) -> tuple[list[float], list[float]]:
    """The six numbers of an affine matrix and of its inverse."""
    if matrix is None:
        return [1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    if matrix.shape != (2, 3):
        raise ValueError(f"mask_targets: matrix must be [2, 3], got {list(matrix.shape)}")
    numbers = matrix.double().cpu().numpy()
    try:
        inverse = np.linalg.inv(np.vstack([numbers, [0.0, 0.0, 1.0]]))[:2]
    except np.linalg.LinAlgError:
        raise ValueError(f"mask_targets: matrix cannot be inverted: {matrix.tolist()}") from None
    return numbers.flatten().tolist(), inverse.flatten().tolist()


def _moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """The tensors on a device, in one copy. Wider types must come first, so that each one lies on its boundary."""
    if device.type == "cpu":
        return tensors
    everything = torch.cat([tensor.flatten().view(torch.uint8) for tensor in tensors]).to(device, non_blocking=True)
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    parts = everything.split(sizes)
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


@torch.library.register_fake("mrcnn::mask_targets")
def _targets_shape(
    points: Tensor,
    polygons: Tensor,
    ends: Tensor,
    objects: Tensor,
    index: Tensor,
    boxes: Tensor,
    matrix: Sequence[float],
    inverse: Sequence[float],
    size: int,
    sampling_ratio: int,
    aligned: bool,
    threshold: float | None,
    tallest: int,
    widest: int,
) -> Tensor:
    return boxes.new_empty((boxes.shape[0], size, size), dtype=torch.float32)
