"""What the mask head should answer: objects' masks cut to RoIs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from mrcnn_cli import _C

# Sampling points looked up at a time: bounds the memory of large boxes with adaptive sampling.
POINTS_AT_A_TIME = 1 << 21


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

    Polygons are scaled to the grid and rasterised by pycocotools, as Detectron2 does. Run-length encodings are sampled
    as RoIAlign would sample the full mask, straight from the runs.

    Args:
        polygons_or_rles: N objects: a list of polygons [x1, y1, x2, y2, ...], or a COCO run-length encoding with
            compressed (bytes, str) or plain (list) counts.
        boxes: [N, 4] in pixels of the network's input.
        size: rows and columns of a target.
        matrix: [2, 3] from the pixels of the encodings and polygons to those of `boxes`; None: they are the same.
        sampling_ratio: points per bin and axis of run-length encodings; 0: as many as the bin has pixels.
        aligned: the half-pixel shift of RoIAlign, for run-length encodings.
        threshold: from which mean of the points a bin belongs to the mask; None: the mean itself is the target.
            Polygons give 0 or 1 in any case.

    Returns:
        [N, size, size] float32 on the device of `boxes`.

    Raises:
        ValueError: `boxes` does not fit the objects, or an encoding is malformed.
    """
    if boxes.shape != (len(polygons_or_rles), 4):
        raise ValueError(
            f"mask_targets: boxes must be [{len(polygons_or_rles)}, 4] as there are objects, got {list(boxes.shape)}"
        )
    affine = np.eye(2, 3) if matrix is None else matrix.double().cpu().numpy()
    cut = boxes.detach().cpu()
    targets = torch.zeros((len(cut), size, size))
    encoded = [i for i, segmentation in enumerate(polygons_or_rles) if isinstance(segmentation, dict)]
    for i, segmentation in enumerate(polygons_or_rles):
        if not isinstance(segmentation, dict):
            targets[i] = torch.from_numpy(_rasterize(segmentation, cut[i].double().numpy(), size, affine))
    if encoded:
        sampled = _sample([polygons_or_rles[i] for i in encoded], cut[encoded], size, affine, sampling_ratio, aligned)
        targets[encoded] = sampled if threshold is None else (sampled >= threshold).float()
    return targets.to(boxes.device)


def _rasterize(polygons: Sequence[Sequence[float]], box: np.ndarray, size: int, affine: np.ndarray) -> np.ndarray:
    """Polygons moved and scaled to a box, filled as pycocotools fills them."""
    scale = size / np.maximum(box[2:] - box[:2], 0.1)  # sides below 0.1 px count as 0.1, as in Detectron2
    moved = []
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        points = points @ affine[:, :2].T + affine[:, 2]
        moved.append(((points - box[:2]) * scale).reshape(-1).tolist())
    merged = coco_mask.merge(coco_mask.frPyObjects(moved, size, size))
    return coco_mask.decode(merged).astype(np.float32)


def _sample(
    encodings: list[dict[str, Any]],
    boxes: Tensor,
    size: int,
    affine: np.ndarray,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign of run-length encoded masks: [N, size, size] means of the sampling points of each bin."""
    masks = _RunLengths(encodings)
    start = boxes[:, :2].double() - (0.5 if aligned else 0.0)
    extent = boxes[:, 2:].double() - boxes[:, :2].double()
    if not aligned:
        extent = extent.clamp(min=1.0)
    points = torch.full_like(extent, float(sampling_ratio)) if sampling_ratio > 0 else (extent / size).ceil()
    points = points.clamp(min=0).to(torch.int64)
    inverse = np.linalg.inv(np.vstack([affine, [0.0, 0.0, 1.0]]))[:2]
    shift = 0.5 if aligned else 0.0
    result = torch.zeros((len(boxes), size, size))
    for per_x, per_y in {tuple(pair) for pair in points.tolist()}:
        if per_x == 0 or per_y == 0:  # an empty box
            continue
        members = ((points[:, 0] == per_x) & (points[:, 1] == per_y)).nonzero()[:, 0]
        for group in members.split(max(POINTS_AT_A_TIME // (size * size * per_x * per_y), 1)):
            steps_x = (torch.arange(size * per_x, dtype=torch.float64) + 0.5) / (size * per_x)
            steps_y = (torch.arange(size * per_y, dtype=torch.float64) + 0.5) / (size * per_y)
            x = (start[group, 0, None] + steps_x * extent[group, 0, None])[:, None, :] + shift
            y = (start[group, 1, None] + steps_y * extent[group, 1, None])[:, :, None] + shift
            source_x = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2] - shift
            source_y = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2] - shift
            value = masks.bilinear(group, source_y, source_x)
            value = value.view(len(group), size, per_y, size, per_x).mean((2, 4))
            result[group] = value.float()
    return result


class _RunLengths:
    """Random access to pixels of run-length encoded masks: one sorted list of run ends, searched by bisection.

    Every mask gets a range of its own in one line of positions, so that all look-ups are one call.
    """

    def __init__(self, encodings: list[dict[str, Any]]):
        slots: dict[int, int] = {}  # several RoIs may ask for the same object
        self.slot = torch.tensor([slots.setdefault(id(e), len(slots)) for e in encodings])
        unique = list({id(e): e for e in encodings}.values())
        runs = [_runs(encoding) for encoding in unique]
        sizes = torch.tensor([encoding["size"] for encoding in unique], dtype=torch.int64)
        for run, (height, width) in zip(runs, sizes.tolist(), strict=True):
            if run.sum() != height * width:
                raise ValueError(f"mask_targets: run lengths of a {height} x {width} mask add up to {run.sum()} pixels")
        areas = sizes.prod(1)
        self.height, self.width = sizes.unbind(1)
        self.origin = areas.cumsum(0) - areas
        lengths = torch.tensor([len(run) for run in runs])
        self.first_run = lengths.cumsum(0) - lengths
        self.ends = torch.from_numpy(np.concatenate(runs)).cumsum(0)

    def bilinear(self, objects: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """RoIAlign's interpolation: zero beyond one pixel outside, clamped within. objects [P]; y, x [P, h, w]."""
        slot = self.slot[objects][:, None, None]
        height, width = self.height[slot], self.width[slot]
        inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
        y, x = y.clamp(min=0), x.clamp(min=0)
        top, left = torch.minimum(y.long(), height - 1), torch.minimum(x.long(), width - 1)
        bottom, right = torch.minimum(top + 1, height - 1), torch.minimum(left + 1, width - 1)
        down, across = torch.where(top == bottom, 0.0, y - top), torch.where(left == right, 0.0, x - left)
        value = (1 - down) * ((1 - across) * self._pixel(slot, top, left) + across * self._pixel(slot, top, right))
        value += down * ((1 - across) * self._pixel(slot, bottom, left) + across * self._pixel(slot, bottom, right))
        return value * inside

    def _pixel(self, slot: Tensor, row: Tensor, column: Tensor) -> Tensor:
        position = self.origin[slot] + column * self.height[slot] + row  # COCO runs go down the columns
        run = torch.searchsorted(self.ends, position, right=True)
        return (run - self.first_run[slot]) % 2  # runs alternate: outside, inside, outside, ...


def _runs(encoding: dict[str, Any]) -> np.ndarray:
    counts = encoding["counts"]
    if isinstance(counts, list):
        return np.asarray(counts, dtype=np.int64)
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    return np.frombuffer(_C.rle_counts(text), dtype=np.uint32).astype(np.int64)
