"""Objects' polygons and run-length encodings as a few flat tensors, which a kernel on any device can read."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrcnn_cli.ops.run_lengths import check_total, mask_size, packed_lengths

POLYGONS = -1  # instead of a height


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class PackedMasks:
    """Masks of N objects, each different one of them once.

    Attributes:
        index: [N] int64, for each object its place among the G different ones.
        points: [P, 2] float64, x and y of the corners of all polygons.
        polygons: [Q + 1] int64, polygon q has the points polygons[q] up to polygons[q + 1].
        ends: [E] int32, the pixels where the runs of all encodings end, each counted within its own mask.
        objects: [G, 4] int64 first, last, height, width. An encoding has the runs `first` up to `last`; an object made
            of polygons has the polygons `first` up to `last`, and -1 for its height.
        largest: height and width that no encoding exceeds.
    """

    index: Tensor
    points: Tensor
    polygons: Tensor
    ends: Tensor
    objects: Tensor
    largest: tuple[int, int]


def pack_masks(segmentations: Sequence[Any]) -> PackedMasks:
    """Packs objects, each a list of polygons [x1, y1, x2, y2, ...] or a COCO run-length encoding with compressed
    (bytes, str) or plain (list) counts. The same object (`is`) is packed once, however often it comes.

    Raises:
        ValueError: an object is malformed; the message says which one and how.
    """
    numbers, polygons = array("d"), [0]
    runs: list[bytes] = []
    objects: list[tuple[int, int, int, int]] = []
    slots: dict[int, int] = {}
    named = []  # where each different object came first
    index = []
    count = 0  # of runs
    for number, segmentation in enumerate(segmentations):
        index.append(slots.setdefault(id(segmentation), len(objects)))
        if index[-1] < len(objects):
            continue
        named.append(number)
        try:
            if isinstance(segmentation, dict):
                height, width = mask_size(segmentation)
                lengths = _lengths(segmentation)
                runs.append(lengths)
                objects.append((count, count + len(lengths) // 4, height, width))
                count += len(lengths) // 4
            else:
                first = len(polygons) - 1
                _append(segmentation, numbers, polygons)
                objects.append((first, len(polygons) - 1, POLYGONS, 0))
        except ValueError as error:
            raise ValueError(f"object {number}: {error}") from None
    points = np.frombuffer(numbers, np.float64).reshape(-1, 2)
    table = np.array(objects, np.int64).reshape(-1, 4)
    for row in np.flatnonzero(~np.isfinite(points).all(1)):
        polygon = np.searchsorted(polygons, row, side="right") - 1
        slot = np.flatnonzero((table[:, 2] == POLYGONS) & (table[:, 0] <= polygon))[-1]
        raise ValueError(f"object {named[slot]}: a polygon has a coordinate that is not finite")
    encoded = table[:, 2] != POLYGONS
    return PackedMasks(
        torch.tensor(index, dtype=torch.int64),
        torch.from_numpy(points.copy()),
        torch.tensor(polygons),
        torch.from_numpy(_ends(b"".join(runs), table[encoded], np.array(named, np.int64)[encoded])),
        torch.from_numpy(table),
        (int(table[:, 2].max(initial=0)), int(table[:, 3].max(initial=0))),
    )


def _lengths(encoding: dict[str, Any]) -> bytes:
    if "counts" not in encoding:
        raise ValueError("the run-length encoding has no counts")
    return packed_lengths(encoding["counts"])


def _append(polygons: Any, numbers: array, starts: list[int]) -> None:
    """Adds the corners of an object's polygons, and where the next polygon will begin."""
    if not isinstance(polygons, Sequence | np.ndarray) or isinstance(polygons, str | bytes) or not len(polygons):
        raise ValueError("neither a list of polygons nor a run-length encoding")
    for polygon in polygons:
        before = len(numbers)
        try:
            numbers.extend(polygon)
        except (TypeError, OverflowError):
            raise ValueError("a polygon is not a list of numbers [x1, y1, x2, y2, ...]") from None
        length = len(numbers) - before
        if length < 6 or length % 2:
            raise ValueError(f"a polygon has {length} numbers, not x and y of three points or more")
        starts.append(len(numbers) // 2)


def _ends(runs: bytes, encodings: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Where runs end, from their lengths; every encoding begins with pixel 0 again."""
    ends = np.frombuffer(runs, "<u4").cumsum(dtype=np.int64)
    totals = np.concatenate([np.zeros(1, np.int64), ends])[encodings[:, :2]]
    for wrong in np.flatnonzero(totals[:, 1] - totals[:, 0] != encodings[:, 2] * encodings[:, 3]):
        try:
            check_total(int(totals[wrong, 1] - totals[wrong, 0]), *encodings[wrong, 2:].tolist())
        except ValueError as error:
            raise ValueError(f"object {numbers[wrong]}: {error}") from None
    return (ends - totals[:, 0].repeat(encodings[:, 1] - encodings[:, 0])).astype(np.int32)
