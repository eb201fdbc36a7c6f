"""Pictures of squares, circles and triangles whose masks are exact: to test with, and to learn on."""

import numpy as np

from mrcnn_cli.data.loader import stream
from mrcnn_cli.structures import Size

CLASSES = ("square", "circle", "triangle")
# As in matterport's Mask R-CNN, in parts of the picture's shorter side: half the extent of a shape, and how far its
# centre stays from the picture's edge. There a picture has 128 pixels a side.
HALF = (20 / 128, 32 / 128)
MARGIN = 20 / 128
OVERLAP = 0.3  # IoU of boxes from which a shape is placed anew
TRIES = 20  # to find a place
COLOURS = 8  # drawn for each shape, of which the one is taken that is farthest from those in the picture


def shapes(seed: int, name: str, number: int, size: Size, most: int) -> tuple[np.ndarray, list[int], np.ndarray]:
    """A picture of one to `most` shapes, later ones in front of earlier ones.

    A pixel belongs to a shape if its centre lies within; it has one colour, so that pictures and masks agree exactly.

    Args:
        seed: with `name` (of a split) and `number` (of the picture) it determines the picture.
        size: (height, width), at least 16 each.
        most: shapes; where there is no room for another one, they are fewer.

    Returns:
        The picture, uint8 [H, W, 3]; labels, places in `CLASSES`; what is to be seen of each shape, bool [G, H, W].
    """
    generator = np.random.Generator(np.random.PCG64(stream(seed, "shapes", name, number)))
    colours = generator.integers(0, 256, (1, 3))
    image = np.broadcast_to(colours[0], (*size, 3)).astype(np.uint8)
    labels: list[int] = []
    masks: list[np.ndarray] = []
    boxes: list[np.ndarray] = []
    for _ in range(int(generator.integers(1, most + 1))):
        placed = _place(generator, size, boxes)
        if placed is None:
            break
        label, mask, box = placed
        candidates = generator.integers(0, 256, (COLOURS, 3))
        distances = np.linalg.norm(candidates[:, None] - colours, axis=2).min(axis=1)
        colours = np.vstack([colours, candidates[distances.argmax()]])
        image[mask] = colours[-1]
        for below in masks:
            below &= ~mask
        labels.append(label)
        masks.append(mask)
        boxes.append(box)
    seen = [index for index, mask in enumerate(masks) if mask.any()]
    return image, [labels[index] for index in seen], np.array([masks[index] for index in seen])


def _place(
    generator: np.random.Generator, size: Size, boxes: list[np.ndarray]
) -> tuple[int, np.ndarray, np.ndarray] | None:
    """Label, mask and box of a shape that hides little of the others; None where no such place was found."""
    height, width = size
    side = min(size)
    for _ in range(TRIES):
        label = int(generator.integers(len(CLASSES)))
        half = generator.uniform(HALF[0], HALF[1]) * side
        centre = generator.uniform((MARGIN * side, MARGIN * side), (width - MARGIN * side, height - MARGIN * side))
        mask = _inside(CLASSES[label], size, centre, half)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        if all(_iou(box, other) < OVERLAP for other in boxes):
            return label, mask, box
    return None


def _inside(kind: str, size: Size, centre: np.ndarray, half: float) -> np.ndarray:
    """Which pixels' centres lie in a shape, bool [H, W]."""
    y, x = np.ogrid[: size[0], : size[1]]
    right, down = x + 0.5 - centre[0], y + 0.5 - centre[1]
    if kind == "square":
        return np.maximum(np.abs(right), np.abs(down)) <= half
    if kind == "circle":
        return right**2 + down**2 <= half**2
    # Equilateral, its tip at the top: 2 * half high, and so 4 / sqrt(3) * half wide.
    return (down <= half) & (np.abs(right) <= (down + half) / np.sqrt(3))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))
