"""Bitmaps as polygons: the outline along the pixels' edges, and several rings as one."""

from itertools import pairwise
from typing import Any

import numpy as np

FAR = 1e7  # pixels: no image is that large


def outlines(mask: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The rings around the pixels of a bitmap: around its parts, clockwise as one sees them, and around its holes,
    the other way.

    Filling all of them by the even-odd rule, as pycocotools fills one polygon, gives the bitmap back to the pixel.

    Args:
        mask: [H, W] bool.

    Returns:
        Outer rings and holes, each [P, 2] x, y of its corners.
    """
    padded = np.pad(mask.astype(bool), 1)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    # A point of the grid is a corner where one or three of its four pixels are set, two where two diagonal ones are.
    saddle = (a == d) & (b == c) & (a != b)
    y, x = np.nonzero((a ^ b ^ c ^ d) | saddle)
    times = 1 + saddle[y, x]
    y, x = y.repeat(times), x.repeat(times)
    # Along each row of the grid every other stretch between corners is an edge, and so along each column.
    partner = [_partners(np.lexsort(keys)) for keys in ((x, y), (y, x))]
    points = np.stack([x, y], axis=1)
    fresh = np.ones(len(points), bool)
    outer, holes = [], []
    for start in range(len(points)):
        if not fresh[start]:
            continue
        ring, here = [], start
        while fresh[here]:
            fresh[here] = False
            ring.append(here)
            here = partner[0][here]
            fresh[here] = False
            ring.append(here)
            here = partner[1][here]
        # It was entered at its topmost corner, on the left, and left to the right.
        left, top = points[start]
        corners = points[ring].astype(np.float64)
        if mask[top, left]:
            outer.append(corners)
        else:
            holes.append(corners[::-1])
    return outer, holes


def joined(rings: list[np.ndarray]) -> np.ndarray:
    """One ring [P, 2] that goes around all: each next one is reached over a bridge from the nearest corner, walked
    there and back, so that it encloses nothing.

    Args:
        rings: each [P, 2]; holes the other way round than outer rings.
    """
    whole, *rest = rings
    while rest:
        nearest = [_bridge(whole, ring) for ring in rest]
        place = min(range(len(rest)), key=lambda i: nearest[i][0])
        _, here, there = nearest[place]
        ring = rest.pop(place)
        whole = np.concatenate([whole[: here + 1], ring[there:], ring[: there + 1], whole[here:]])
    return whole


def as_polygon(ring: np.ndarray) -> list[float]:
    """[x1, y1, x2, y2, ...] of a ring [P, 2]."""
    return [float(value) for value in ring.reshape(-1)]


def as_ring(polygon: list[Any]) -> np.ndarray:
    """[P, 2] of [x1, y1, x2, y2, ...]."""
    return np.asarray(polygon, np.float64).reshape(-1, 2)


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0, points: int = 128) -> list[float]:
    """A polygon of an ellipse's area (within 1e-12), whose corners lie just outside of it by turns.

    Args:
        x, y: the centre.
        rx, ry: half its axes.
        angle: in radians, by which it is turned from the x to the y axis.

    Raises:
        ValueError: a number is not finite or of no image's size.
    """
    if not all(abs(value) < FAR for value in (x, y, rx, ry, angle)):
        raise ValueError("an ellipse has numbers that are not finite or far outside of the image")
    # A polygon on the ellipse would be too small by sin(s) / s, s being the angle between corners.
    step = 2 * np.pi / points
    grow = np.sqrt(step / np.sin(step))
    t = np.arange(points) * step
    along, across = grow * rx * np.cos(t), grow * ry * np.sin(t)
    corners = [
        x + along * np.cos(angle) - across * np.sin(angle),
        y + along * np.sin(angle) + across * np.cos(angle),
    ]
    return as_polygon(np.stack(corners, axis=1))


def signed_area(ring: np.ndarray) -> float:
    """The area of a ring [P, 2]; positive where it goes clockwise as one sees it (y points down)."""
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _partners(order: np.ndarray) -> np.ndarray:
    partner = np.empty(len(order), np.int64)
    partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    return partner


def _bridge(whole: np.ndarray, ring: np.ndarray) -> tuple[float, int, int]:
    """The square of the distance between the nearest corners, and which these are."""
    best = (np.inf, 0, 0)
    bounds = [*range(0, len(whole), 4096), len(whole)]
    for first, last in pairwise(bounds):  # in parts, for outlines may have 100,000 corners
        squares = ((whole[first:last, None] - ring[None]) ** 2).sum(axis=2)
        place = int(squares.argmin())
        here, there = divmod(place, len(ring))
        if squares[here, there] < best[0]:
            best = (float(squares[here, there]), first + here, there)
    return best
