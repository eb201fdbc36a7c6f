"""Keypoints on their picture: a dot for each, in its own colour, and lines in the colour of their object."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mrcnn_cli.views import canvas, colours

LEGEND = 8  # keypoints that are told apart by a legend; more have lines to be known by
LINE = 0.45  # half the width of a line, in radii of a dot
HALO = 0.55  # opacity of the dark line around everything, which sets it off from a bright picture


@dataclass(frozen=True)
class Skeleton:
    """How keypoints are drawn.

    Attributes:
        names: of the keypoints; without them there is no legend.
        lines: pairs of places of keypoints that are joined.
        threshold: a keypoint is drawn from this score on.
    """

    names: Sequence[str] = ()
    lines: Sequence[tuple[int, int]] = ()
    threshold: float = 0.05


PLAIN = Skeleton()  # dots alone


def draw_keypoints(
    picture: Image.Image, keypoints: np.ndarray, boxes: np.ndarray, paints: np.ndarray, skeleton: Skeleton
) -> None:
    """Draws the keypoints of all objects, those of large objects first; below them, per object, its lines.

    Args:
        picture: drawn on.
        keypoints: [D, P, 3] x, y in pixels of the picture, score; those that are not finite are left out.
        boxes: [D, 4] of the objects, whose size is that of the dots.
        paints: [D, 3] their colours.
        skeleton: lines, and from which score on a keypoint is shown.
    """
    sides = np.sqrt(np.maximum(boxes[:, 2:] - boxes[:, :2], 1).prod(axis=1))
    radii = np.clip(sides / 40, max(picture.size) / 320, max(picture.size) / 110)
    shown = np.isfinite(keypoints).all(-1) & (keypoints[..., 2] >= skeleton.threshold)
    hues = keypoint_colours(keypoints.shape[1])
    for index in np.argsort(-sides, kind="stable").tolist():
        at, radius = keypoints[index, :, :2], float(radii[index])
        lines = [(at[i], at[j]) for i, j in skeleton.lines if shown[index, i] and shown[index, j]]
        dots = [(at[place], hues[place]) for place in np.flatnonzero(shown[index])]
        for start, end in lines:
            _stroke(picture, start, end, LINE * radius + 1.2, np.array(canvas.INK), HALO)
        for start, end in lines:
            _stroke(picture, start, end, LINE * radius, paints[index], 1.0)
        for place, hue in dots:
            _stroke(picture, place, place, radius + 1.5, np.array(canvas.INK), 0.85)
            _stroke(picture, place, place, radius, hue, 1.0)


def draw_legend(picture: Image.Image, skeleton: Skeleton, boxes: np.ndarray, face: canvas.Font) -> None:
    """Names a few keypoints by their colours, in the corner of the picture that hides the fewest objects."""
    names = [canvas.spell(name) for name in skeleton.names]
    if not 1 < len(names) <= LEGEND:
        return
    line, pad = round(face.size * 1.45), round(face.size * 0.7)
    width, height = round(max(map(face.getlength, names))) + 2 * pad + line, line * len(names) + pad
    margin = round(face.size * 0.5)
    if width + 2 * margin > picture.width / 2 or height + 2 * margin > picture.height / 2:
        return
    far = (picture.width - width - margin, picture.height - height - margin)
    corners = [(x, y) for y in (margin, far[1]) for x in (margin, far[0])]
    plates = [np.array([x, y, x + width, y + height], np.float64) for x, y in corners]
    left, top = corners[int(np.argmin([canvas.shared(plate, boxes).sum() for plate in plates]))]
    plate = np.full((height, width), 255, np.uint8)
    canvas.blend(picture, left, top, plate, canvas.INK, 0.62)
    pen = ImageDraw.Draw(picture)
    for row, (name, hue) in enumerate(zip(names, keypoint_colours(len(names)), strict=True)):
        dot = np.array([left + pad + line * 0.3, top + pad / 2 + line * (row + 0.5)])
        _stroke(picture, dot, dot, face.size * 0.33, hue, 1.0)
        pen.text((left + pad + line, dot[1]), name, fill=canvas.PAPER, font=face, anchor="lm")


def keypoint_colours(count: int) -> np.ndarray:
    """[P, 3] uint8 of the palette; not beginning with the first object's colour."""
    return colours.palette()[np.arange(1, count + 1) % colours.SIZE]


def _stroke(
    picture: Image.Image, start: np.ndarray, end: np.ndarray, radius: float, paint: np.ndarray, opacity: float
) -> None:
    """A smooth line with round ends; a dot where it has no length. What lies beyond the picture is cut off."""
    reach = radius + 1
    low = np.floor(np.maximum(np.minimum(start, end) - reach, 0)).astype(int)
    high = np.ceil(np.minimum(np.maximum(start, end) + reach, picture.size)).astype(int)
    if (low >= high).any():
        return
    x = np.arange(low[0], high[0]) + 0.5
    y = (np.arange(low[1], high[1]) + 0.5)[:, None]
    along = end - start
    length = max(float(along @ along), 1e-9)
    nearest = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / length, 0, 1)
    distance = np.hypot(x - start[0] - nearest * along[0], y - start[1] - nearest * along[1])
    coverage = np.clip((radius + 0.5 - distance) * 255, 0, 255).astype(np.uint8)
    canvas.blend(picture, int(low[0]), int(low[1]), coverage, paint, opacity)
