"""Which part of a picture is shown, or of a larger canvas on which it lies: SSD's samples and random squares.

"SSD: Single Shot MultiBox Detector" (Liu et al., 2016), sections 2.2 and 3.6, with the numbers of torchvision.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TRIALS = 50  # cuts that are drawn for one least overlap, as in SSD's code


class Frame(NamedTuple):
    """What is shown, in whole pixels of the picture; beyond the picture's borders lies the canvas."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


def zoomed_out(height: int, width: int, factor: float, x: float, y: float) -> Frame:
    """A canvas of `factor` times the sides of a picture, with the picture anywhere on it, as x and y, 0..1, say."""
    canvas = int(height * factor), int(width * factor)
    left, top = int(x * (canvas[1] - width + 1)), int(y * (canvas[0] - height + 1))
    return Frame(-left, -top, canvas[1] - left, canvas[0] - top)


def cut_by_overlap(
    frame: Frame,
    boxes: np.ndarray,
    least: Sequence[float],
    sides: tuple[float, float],
    ratios: tuple[float, float],
    generator: np.random.Generator,
) -> Frame:
    """A random part of a frame that holds the centre of an object and overlaps one such object enough.

    All values of `least` are equally likely. If none of 50 parts fits the one that was drawn, another is drawn; if none
    fits any, and where there are no objects, the frame is left whole.

    Args:
        frame: what is cut.
        boxes: [G, 4] of the objects.
        least: intersections over union of the part with an object, of which one must be reached; 1 leaves the frame
            whole.
        sides: range of the part's width and height, each, in parts of the frame's.
        ratios: range of its width / height.
        generator: draws the value and the parts.
    """
    for overlap in generator.permutation(np.asarray(least, np.float64)).tolist():
        if overlap >= 1:
            return frame
        draws = generator.random((TRIALS, 4))
        extents = np.array([frame.width, frame.height])
        sizes = (extents * (sides[0] + (sides[1] - sides[0]) * draws[:, :2])).astype(np.int64).clip(1)
        corners = (draws[:, 2:] * (extents - sizes + 1)).astype(np.int64) + frame[:2]
        parts = np.concatenate([corners, corners + sizes], 1)
        shapes = sizes[:, 0] / sizes[:, 1]
        reached = np.where(centred(boxes, parts), _overlaps(boxes, parts), -1.0).max(1, initial=-1.0)
        fitting = np.flatnonzero((shapes >= ratios[0]) & (shapes <= ratios[1]) & (reached >= overlap))
        if len(fitting):
            return Frame(*parts[fitting[0]].tolist())
    return frame


def centred(boxes: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """[P, G] bool: whether the centre of each box [G, 4] lies inside of each part [P, 4]."""
    centres = (boxes[:, :2].astype(np.float64) + boxes[:, 2:]) / 2
    return np.asarray(((centres > parts[:, None, :2]) & (centres < parts[:, None, 2:])).all(-1))


def cut(extent: int, resized: int, crop: int | None, draw: float) -> tuple[int, int, int]:
    """The part of one side that is shown, start and stop, and how many pixels it becomes: `crop` at most."""
    if crop is None or resized <= crop:
        return 0, extent, resized
    length = min(max(int(extent * crop / resized + 0.5), 1), extent)
    start = int(draw * (extent - length + 1))
    return start, start + length, crop


def placed(start: int, stop: int, extent: int, pixels: int) -> tuple[slice, float, tuple[int, int]]:
    """What a stretch of the canvas shows of one side of the picture, and where.

    Args:
        start: where the stretch begins, in pixels of the picture; negative before its border.
        stop: where it ends, likewise.
        extent: of the picture.
        pixels: that the stretch becomes.

    Returns:
        The picture's part; by what it is enlarged, so that it fills whole pixels, at least one; and how many pixels of
        canvas lie before and after it. Where nothing of the picture is shown the part is empty, and with it these two
        numbers, of which one may be negative, still tell its place.
    """
    first, last = max(start, 0), min(stop, extent)
    scale = pixels / (stop - start)
    if last <= first:
        before = round((first - start) * scale)
        return slice(first, first), scale, (before, pixels - before)
    before = min(round((first - start) * scale), pixels - 1)
    inside = max(round((last - start) * scale) - before, 1)
    return slice(first, last), inside / (last - first), (before, pixels - before - inside)


def _overlaps(boxes: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """[P, G] intersections over union of parts [P, 4] and boxes [G, 4]."""
    ours, theirs = parts[:, None].astype(np.float64), boxes[None].astype(np.float64)
    shared = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
    both = shared.clip(0).prod(-1)
    areas = (ours[..., 2:] - ours[..., :2]).prod(-1) + (theirs[..., 2:] - theirs[..., :2]).prod(-1)
    return np.asarray(both / (areas - both))
