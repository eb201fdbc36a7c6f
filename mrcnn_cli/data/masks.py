"""Masks in windows of the picture, read off their run lengths or polygons: the full-size mask is never made."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mrcnn_cli.data.outlines import as_polygon, joined
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


def clip_polygon(polygon: Sequence[float], window: Window) -> list[list[float]]:
    """The part of a polygon within a window, as polygons [x1, y1, x2, y2, ...]; none where nothing is.

    What the window's edges cut into several parts becomes several polygons, but for parts that may lie within one
    another, such as a hole cut off from its outline: these become one with bridges between them, since inside of one
    polygon is what the even-odd rule says, and of several what is inside of any.
    """
    rings = [np.asarray(polygon, np.float64).reshape(-1, 2)]
    for axis in (0, 1):
        rings = [part for ring in rings for part in _beyond(ring, axis, window[axis], 1)]
        rings = [part for ring in rings for part in _beyond(ring, axis, window[axis + 2], -1)]
    apart: list[list[np.ndarray]] = []
    for ring in rings:
        near = [group for group in apart if any(_boxes_meet(ring, other) for other in group)]
        apart = [group for group in apart if not any(group is other for other in near)]
        apart.append([ring, *(other for group in near for other in group)])
    return [as_polygon(joined(group)) for group in apart]


def _beyond(ring: np.ndarray, axis: int, bound: float, sign: int) -> list[np.ndarray]:
    """The parts of a ring [P, 2] where sign * (coordinate - bound) is positive, closed along the bound."""
    inside = sign * (ring[:, axis] - bound) > 0
    if inside.all():
        return [ring]
    start = int(np.argmin(inside))  # a corner outside, so that no stretch of corners inside goes around the end
    ring, inside = np.roll(ring, -start, axis=0), np.roll(inside, -start)
    after = np.roll(inside, -1)
    stretches = []
    for i, j in zip(np.flatnonzero(~inside & after), np.flatnonzero(inside & ~after), strict=True):
        ends = [_crossing(ring[a], ring[b % len(ring)], axis, bound) for a, b in ((i, i + 1), (j, j + 1))]
        stretches.append(np.vstack([ends[0], ring[i + 1 : j + 1], ends[1]]))

    # Along the bound, inside is between the first and second end, between the third and fourth, and so on.
    def along(end: tuple[int, int]) -> float:
        return float(stretches[end[0]][end[1], 1 - axis])

    order = sorted(((number, end) for number in range(len(stretches)) for end in (0, -1)), key=along)
    for place in range(0, len(order) - 2, 2):  # of ends in one point, one that leaves is joined to one that enters
        one, other, spare = order[place : place + 3]
        if one[1] == other[1] != spare[1] and along(other) == along(spare):
            order[place + 1], order[place + 2] = spare, other
    partner = dict(zip(order[::2], order[1::2], strict=True)) | dict(zip(order[1::2], order[::2], strict=True))
    parts = []
    fresh = set(range(len(stretches)))
    while fresh:
        number, end = min(fresh), 0
        pieces = []
        while number in fresh:
            fresh.remove(number)
            pieces.append(stretches[number] if end == 0 else stretches[number][::-1])
            number, end = partner[number, -1 if end == 0 else 0]
        parts.append(np.vstack(pieces))
    return parts


def _boxes_meet(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((np.maximum(one.min(0), other.min(0)) < np.minimum(one.max(0), other.max(0))).all())


def _crossing(a: np.ndarray, b: np.ndarray, axis: int, bound: float) -> np.ndarray:
    """Where the edge from a to b crosses the bound."""
    point = a + (b - a) * ((bound - a[axis]) / (b[axis] - a[axis]))
    point[axis] = bound
    return point


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
