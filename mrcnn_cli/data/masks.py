"""Masks in windows of the picture, read off their run lengths or polygons: the full-size mask is never made."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mrcnn_cli.ops.run_lengths import compressed, run_lengths
from mrcnn_cli.structures import Size

Window = tuple[float, float, float, float]  # x1, y1, x2, y2


def visible_box(segmentation: Any, window: Window) -> Window | None:
    """The box around the part of a mask that lies in a window; None where no part does.

    Args:
        segmentation: polygons, or a run-length encoding.
        window: x1, y1, x2, y2 in pixels of the annotation; whole numbers for run-length encodings.
    """
    if isinstance(segmentation, dict):
        return _box_of_runs(run_lengths(segmentation), segmentation["size"][0], window)
    boxes = [box for polygon in segmentation if (box := _box_of_polygon(polygon, window)) is not None]
    if not boxes:
        return None
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def cut_runs(encoding: dict[str, Any], rows: slice, columns: slice) -> np.ndarray:
    """The pixels of a run-length encoding in a window: bool [h, w].

    Args:
        encoding: with compressed or plain counts.
        rows: start and stop, within the mask.
        columns: the same.
    """
    height = encoding["size"][0]
    ends = np.concatenate([[0], run_lengths(encoding).cumsum()])
    # The window's columns are one stretch of the runs.
    lengths = np.diff(ends.clip(columns.start * height, columns.stop * height))
    pixels = (np.arange(len(lengths)) % 2 == 1).repeat(lengths)
    return pixels.reshape(columns.stop - columns.start, height).T[rows]


def encode(window: np.ndarray, top: int, left: int, size: Size) -> dict[str, Any]:
    """The run-length encoding of a mask of which only a window is not empty.

    Args:
        window: bool [h, w], within the mask.
        top: the mask's row that is the window's first.
        left: the mask's column that is the window's first.
        size: (height, width) of the mask.
    """
    height, width = size
    rows = window.shape[0] + 1  # one of background below ends each run in its own column
    flat = np.zeros((window.shape[1], rows), np.int8)
    flat[:, :-1] = window.T
    column, row = np.divmod(np.flatnonzero(np.diff(flat.reshape(-1), prepend=0)), rows)
    ends = (left + column) * height + top + row
    # Where a mask is as high as the picture, a run goes on in the next column.
    touching = np.flatnonzero(ends[1:-1:2] == ends[2::2]) * 2 + 1
    ends = np.delete(ends, [touching, touching + 1])
    lengths = np.diff(ends, prepend=0, append=height * width)
    return {"size": [height, width], "counts": compressed(lengths if lengths[-1] else lengths[:-1])}


def _box_of_runs(runs: np.ndarray, height: int, window: Window) -> Window | None:
    ends = runs.cumsum()[1::2]
    lengths = runs[1::2]
    starts, ends = (ends - lengths)[lengths > 0], ends[lengths > 0]
    # One piece for each column that a run touches.
    columns = (ends - 1) // height - starts // height + 1
    first_piece = (columns.cumsum() - columns).repeat(columns)
    column = starts.repeat(columns) // height + np.arange(len(first_piece)) - first_piece
    top = np.maximum(starts.repeat(columns) - column * height, 0)
    bottom = np.minimum(ends.repeat(columns) - column * height, height)
    x1, y1, x2, y2 = window
    top, bottom = np.maximum(top, y1), np.minimum(bottom, y2)
    seen = (column >= x1) & (column < x2) & (top < bottom)
    if not seen.any():
        return None
    column = column[seen]
    return float(column.min()), float(top[seen].min()), float(column.max() + 1), float(bottom[seen].max())


def _box_of_polygon(polygon: Sequence[float], window: Window) -> Window | None:
    """Exact: the ends of the edges' parts in the window, and the window's corners that lie in the polygon."""
    start = np.asarray(polygon, np.float64).reshape(-1, 2)
    step = np.roll(start, -1, axis=0) - start
    low, high = np.asarray(window[:2]), np.asarray(window[2:])
    # Each edge is start + t * step, 0 <= t <= 1; each border of the window bounds t from below or above.
    with np.errstate(divide="ignore", invalid="ignore"):
        to_low, to_high = (low - start) / step, (high - start) / step
    level = step == 0
    between = (start >= low) & (start <= high)
    enter = np.where(level, np.where(between, 0.0, np.inf), np.minimum(to_low, to_high)).max(axis=1).clip(min=0)
    leave = np.where(level, np.where(between, 1.0, -np.inf), np.maximum(to_low, to_high)).min(axis=1).clip(max=1)
    seen = enter <= leave
    points = [start[seen] + t[seen, None] * step[seen] for t in (enter, leave)]
    corners = np.array([(x, y) for x in (low[0], high[0]) for y in (low[1], high[1])])
    points.append(corners[_inside(corners, start, step)])
    found = np.concatenate(points).clip(low, high)
    if not len(found):
        return None
    (x1, y1), (x2, y2) = found.min(axis=0), found.max(axis=0)
    return (float(x1), float(y1), float(x2), float(y2)) if x1 < x2 and y1 < y2 else None


def _inside(points: np.ndarray, start: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Which points [P, 2] lie in a polygon: those from which a ray to the right crosses an odd number of edges."""
    y = points[:, None, 1]
    crosses = (start[:, 1] > y) != (start[:, 1] + step[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = start[:, 0] + step[:, 0] * ((y - start[:, 1]) / step[:, 1])
    return (crosses & (points[:, None, 0] < x)).sum(axis=1) % 2 == 1
