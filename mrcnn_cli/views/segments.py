"""A picture divided into things and stuff: each segment in a colour, with its outline and its name."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from mrcnn_cli.structures import Segments
from mrcnn_cli.views import canvas, colours
from mrcnn_cli.views.overlay import enlargement

FILL = 0.5  # opacity
MUTED = 0.55  # how far the colours of stuff are from grey, so that things stand out
GREY = 128.0
SMALL = 192  # pixels of the long side on which room for labels is sought
FEW = 8  # segments that are labelled however small they are


def draw_segments(
    image: np.ndarray, segments: Segments, classes: Sequence[str], num_things: int, *, scale: int | None = None
) -> Image.Image:
    """The picture with its segments; a class of stuff always has one colour, things that touch differ, void is dark.

    Args:
        image: [H, W, 3] uint8 RGB.
        segments: of `image`.
        classes: the name of each label, things first.
        num_things: K.
        scale: how many times the picture is enlarged; by default so that its long side is about 768 pixels or more.

    Raises:
        ValueError: the segments are for a picture of another size.
    """
    ids = segments.ids.cpu().numpy()
    if ids.shape != image.shape[:2]:
        raise ValueError(f"segments: are for a picture of {ids.shape}, the image is {image.shape[:2]}")
    scale = scale or enlargement(image)
    labels = segments.labels.tolist()
    boxes = np.array([_box(np.asarray(ids == number)) for number in range(1, len(labels) + 1)]).reshape(-1, 4)
    paints = _paints(labels, boxes, num_things)
    picture = Image.fromarray(image)
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
    large = ids.repeat(scale, 0).repeat(scale, 1)
    table = np.concatenate([[canvas.INK], paints]).astype(np.uint8)
    picture = Image.blend(picture, Image.fromarray(table[large]), FILL)
    line = max(round(max(picture.size) / 500), 1)
    picture.paste(canvas.PAPER, mask=Image.fromarray(_outlines(large, line)))
    _write(picture, ids, segments, classes, paints, scale, num_things)
    return picture


def _paints(labels: Sequence[int], boxes: np.ndarray, num_things: int) -> np.ndarray:
    """[S, 3] colours of the segments."""
    palette = colours.palette().astype(np.float64)
    things = np.array([label < num_things for label in labels], bool)
    paints = np.zeros((len(labels), 3))
    paints[things] = palette[colours.choose(boxes[things])]
    stuff = np.array(labels, np.int64)[~things] - num_things
    paints[~things] = GREY + MUTED * (palette[(stuff * 7 + 3) % len(palette)] - GREY)
    return np.rint(paints).astype(np.int64)


def _outlines(ids: np.ndarray, line: int) -> np.ndarray:
    """[H, W] uint8, 255 on lines so many pixels wide between segments."""
    edges = np.zeros(ids.shape, bool)
    for shift in range(1, line + 1):
        edges[:, shift:] |= ids[:, shift:] != ids[:, :-shift]
        edges[shift:] |= ids[shift:] != ids[:-shift]
    return edges.astype(np.uint8) * 255


def _write(
    picture: Image.Image,
    ids: np.ndarray,
    segments: Segments,
    classes: Sequence[str],
    paints: np.ndarray,
    scale: int,
    num_things: int,
) -> None:
    """The names, the large segments' first, each where its segment has most room; those without room are left out."""
    face = canvas.font(int(np.clip(max(picture.size) / 56, 12, 44)))
    pen = ImageDraw.Draw(picture)
    step = max(max(ids.shape) // SMALL, 1)
    small = ids[::step, ::step]
    areas = np.bincount(ids.reshape(-1), minlength=len(segments) + 1)[1:]
    placed: list[np.ndarray] = []
    for place in np.argsort(-areas, kind="stable").tolist():
        label = int(segments.labels[place])
        name = canvas.spell(classes[label])
        text = f"{name} {float(segments.scores[place]):.2f}" if label < num_things else name
        text = canvas.fit(text, face, picture.width - 2 * canvas.pad(face))
        extent = canvas.extent(text, face)
        inside = small == place + 1
        if not inside.any() or (len(segments) > FEW and areas[place] * scale**2 < 2 * extent.prod()):
            continue
        at = (_roomiest(inside) + 0.5) * step * scale - extent / 2
        corner = np.clip(np.rint(at), 0, np.maximum(np.array(picture.size) - extent, 0))
        box = np.concatenate([corner, corner + extent])
        if not any((box[:2] < other[2:]).all() and (other[:2] < box[2:]).all() for other in placed):
            placed.append(box)
            canvas.plate(pen, box, text, face, paints[place])


def _roomiest(inside: np.ndarray) -> np.ndarray:
    """(x, y) of the pixel whose distance to the segment's edge, along rows and columns, is largest."""
    padded = np.pad(inside, 1)
    depth = np.full(padded.shape, max(padded.shape))
    for axis in (0, 1):
        index = np.arange(padded.shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
        for flipped in (False, True):
            seen = np.flip(padded, axis) if flipped else padded
            run = index - np.maximum.accumulate(np.where(seen, 0, index), axis)  # since the last pixel outside
            depth = np.minimum(depth, np.flip(run, axis) if flipped else run)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return np.array([x - 1, y - 1])


def _box(inside: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
