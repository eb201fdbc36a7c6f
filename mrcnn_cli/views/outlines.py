"""Outlines of masks as SVG paths: polygons as they are, run-length encodings exactly along the pixels' edges."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mrcnn_cli.views.masks import crop


def outlines(segmentation: Any) -> list[np.ndarray]:
    """Closed loops [P, 2] of x, y around what a mask covers, which is filled by SVG's rule "nonzero".

    Args:
        segmentation: polygons [[x1, y1, x2, y2, ...], ...], or a run-length encoding.
    """
    if isinstance(segmentation, dict):
        found = crop(segmentation)
        return [] if found is None else [loop + found[:2] for loop in traced(found[2])]
    loops = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
    # Parts that overlap must be turned the same way, else they cancel out.
    return [loop[::-1] if _signed_area(loop) < 0 else loop for loop in loops]


def traced(mask: np.ndarray) -> list[np.ndarray]:
    """Loops [P, 2] of x, y along the edges of a mask's pixels [H, W] bool, the filled side always on the right.

    Every corner of the outline ends one level and one upright edge. In reading order, the corners of a row of vertices
    are by turns the left and the right ends of level edges; down the columns they are upper and lower ends. Where two
    filled pixels touch by their corners alone, the vertex counts twice.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    around = padded[:-1, :-1] + padded[:-1, 1:] + padded[1:, :-1] + padded[1:, 1:]
    diagonal = (around == 2) & (padded[:-1, :-1] == padded[1:, 1:])
    times = np.where(diagonal, 2, around % 2)
    y, x = (axis.repeat(times[times > 0]) for axis in np.nonzero(times))
    columns = np.lexsort((y, x))
    upright = np.empty(len(x), np.int64)
    upright[columns[0::2]], upright[columns[1::2]] = columns[1::2], columns[0::2]
    partner = upright.tolist()
    points = np.stack([x, y], axis=1)
    seen = bytearray(len(x))
    loops = []
    for start in range(0, len(x), 2):
        if seen[start]:
            continue
        loop = []
        corner = start
        while not seen[corner]:
            across = corner ^ 1  # the other end of the level edge
            seen[corner] = seen[across] = 1
            loop += [corner, across]
            corner = partner[across]
        # It begins with a level edge to the right; below that lies a filled pixel, or this is a hole.
        loops.append(points[loop if mask[y[start], x[start]] else loop[::-1]])
    return loops


def svg_path(loops: Iterable[np.ndarray], digits: int = 1) -> str:
    """An SVG path of closed loops [P, 2], as short as it gets with so many digits behind the point."""
    parts = []
    unit = 10**digits
    for loop in loops:
        points = np.rint(np.asarray(loop, np.float64) * unit).astype(np.int64)
        steps = np.diff(points, axis=0)
        parts.append(f"M{_text(points[0, 0], unit)} {_text(points[0, 1], unit)}")
        for dx, dy in steps.tolist():
            if dy == 0:
                parts.append(f"h{_text(dx, unit)}" if dx else "")
            elif dx == 0:
                parts.append(f"v{_text(dy, unit)}")
            else:
                parts.append(f"l{_text(dx, unit)} {_text(dy, unit)}")
        parts.append("z")
    return "".join(parts)


def moved(loops: Sequence[np.ndarray], matrix: np.ndarray) -> list[np.ndarray]:
    """Loops after an affine map [2, 3]; turned round where it mirrors, so that they stay filled alike."""
    mirrors = np.linalg.det(matrix[:, :2]) < 0
    found = [loop @ matrix[:, :2].T + matrix[:, 2] for loop in loops]
    return [loop[::-1] for loop in found] if mirrors else found


def _text(number: int, unit: int) -> str:
    return str(number // unit) if number % unit == 0 else f"{number / unit:g}"


def _signed_area(loop: np.ndarray) -> float:
    x, y = loop[:, 0], loop[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1))
