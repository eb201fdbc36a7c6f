"""Detections drawn on their picture: masks, boxes, keypoints and labels."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mrcnn_cli.structures import Detections
from mrcnn_cli.views import canvas, colours, masks
from mrcnn_cli.views.skeleton import PLAIN, Skeleton, draw_keypoints, draw_legend

LONG_SIDE = 768  # pixels that a small picture is enlarged to
FEW = 8  # objects that are labelled however small they are
MANY = 16  # objects of one class from which a count says more than their labels
OVERLAP = 0.08  # of a label, by which it may hide another
FILL = 0.36  # opacity
HALO = 0.6  # opacity of the dark line around each contour, which sets it off from a bright picture
SPACE = 14  # pixels between the panels of a comparison or a sheet


@dataclass(frozen=True)
class _Shape:
    """An instance on the enlarged picture: a window at (left, top), coverage 0..255 of each of its pixels."""

    left: int
    top: int
    inside: np.ndarray
    contour: np.ndarray
    halo: np.ndarray


def draw(
    image: np.ndarray,
    detections: Detections,
    classes: Sequence[str],
    *,
    scale: int | None = None,
    skeleton: Skeleton = PLAIN,
) -> Image.Image:
    """The picture with each detection's mask, box, keypoints, class and score.

    Objects that touch get different colours. Where there are many objects of one class, or labels that would hide
    their objects, a count in a corner stands for the labels.

    Args:
        image: [H, W, 3] uint8 RGB.
        detections: in pixels of `image`.
        classes: the name of each label.
        scale: how many times the picture is enlarged; by default so that its long side is about 768 pixels or more.
        skeleton: how keypoints are drawn.

    Raises:
        ValueError: `image` is not [H, W, 3] uint8 or not of the size that the detections are for.
    """
    detections = _drawable(image, detections)
    chosen = colours.choose(_corners(detections))
    return _draw(image, detections, classes, scale or enlargement(image), chosen, skeleton)


def compare(
    image: np.ndarray,
    truth: Detections,
    detections: Detections,
    classes: Sequence[str],
    *,
    title: str = "",
    scale: int | None = None,
    skeleton: Skeleton = PLAIN,
) -> Image.Image:
    """The truth on the left and the detections on the right; an object that was found has one colour on both sides.

    Args:
        image: [H, W, 3] uint8 RGB.
        truth: as from `evaluation.coco.truth_detections`; its scores are not shown.
        detections: in pixels of `image`.
        classes: the name of each label.
        title: stands before all else above the picture.
        scale, skeleton: as for `draw`.
    """
    truth, detections = _drawable(image, truth), _drawable(image, detections)
    scale = scale or enlargement(image)
    true_boxes, found_boxes = _corners(truth), _corners(detections)
    true_colours = colours.choose(true_boxes)
    pairs = _pairs(true_boxes, found_boxes)
    given = np.where(pairs >= 0, true_colours[pairs] if len(true_boxes) else -1, -1)
    found_colours = colours.choose(found_boxes, given)
    panels = [
        ("truth", truth, _draw(image, truth, classes, scale, true_colours, skeleton, scores=False, count=False)),
        ("prediction", detections, _draw(image, detections, classes, scale, found_colours, skeleton, count=False)),
    ]
    width, height = panels[0][2].size
    face = canvas.font(int(np.clip(width / 36, 14, 40)))
    strip = round(face.size * 2.1)
    picture = Image.new("RGB", (2 * width + SPACE, height + strip), canvas.INK)
    pen = ImageDraw.Draw(picture)
    for column, (name, shown, panel) in enumerate(panels):
        left = column * (width + SPACE)
        picture.paste(panel, (left, strip))
        text = f"{name}: {_counts(shown, classes) or 'nothing'}"
        if title and column == 0:
            text = f"{canvas.spell(title)}  {text}"
        caption = canvas.fit(text, face, width - face.size)
        pen.text((left + face.size / 2, strip / 2), caption, fill=canvas.PAPER, font=face, anchor="lm")
    return picture


def contact_sheet(images: Sequence[Image.Image], columns: int | None = None, *, width: int = 1536) -> Image.Image:
    """Pictures in rows that are all `width` pixels wide; within a row they are equally high.

    Args:
        images: at least one.
        columns: pictures in a row; by default about as many as there are rows.
        width: pixels.

    Raises:
        ValueError: there are no images.
    """
    if not images:
        raise ValueError("contact_sheet: there are no images; give at least one")
    columns = min(columns or math.isqrt(len(images) - 1) + 1, len(images))
    rows = [list(images[start : start + columns]) for start in range(0, len(images), columns)]
    heights: list[int] = []
    for row in rows:
        ratios = sum(image.width / image.height for image in row)
        height = (width - SPACE * (len(row) + 1)) / ratios
        if len(row) < columns:  # an unfinished row is not blown up to the full width
            height = min(height, heights[-1])
        heights.append(max(round(height), 1))
    sheet = Image.new("RGB", (width, sum(heights) + SPACE * (len(rows) + 1)), canvas.INK)
    top = SPACE
    for row, height in zip(rows, heights, strict=True):
        left = float(SPACE)
        for image in row:
            extent = height * image.width / image.height
            size = (max(round(left + extent) - round(left), 1), height)
            sheet.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (round(left), top))
            left += extent + SPACE
        top += height + SPACE
    return sheet


def _drawable(image: np.ndarray, detections: Detections) -> Detections:
    """The detections whose boxes are numbers."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image: expected [H, W, 3] uint8, got {list(image.shape)} {image.dtype}")
    if tuple(detections.size) != image.shape[:2]:
        raise ValueError(f"detections: are for a picture of {tuple(detections.size)}, the image is {image.shape[:2]}")
    chosen = detections.boxes.isfinite().all(dim=1).nonzero()[:, 0]
    if len(chosen) == len(detections):
        return detections
    return detections.take(chosen)


def _corners(detections: Detections) -> np.ndarray:
    return detections.boxes.detach().cpu().double().numpy().reshape(-1, 4)


def enlargement(image: np.ndarray) -> int:
    """How many times a small picture is enlarged before anything is drawn on it."""
    return max(math.ceil(0.9 * LONG_SIDE / max(image.shape[:2])), 1)  # not twice as large for want of a few pixels


def _draw(
    image: np.ndarray,
    detections: Detections,
    classes: Sequence[str],
    scale: int,
    chosen: np.ndarray,
    skeleton: Skeleton,
    *,
    scores: bool = True,
    count: bool = True,
) -> Image.Image:
    size = (image.shape[1] * scale, image.shape[0] * scale)
    picture = Image.fromarray(image)  # a copy: the caller's pixels stay as they are
    if scale > 1:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    boxes = _corners(detections) * scale
    paints = colours.palette()[chosen]
    line = _line_width(size, boxes)
    face = canvas.font(int(np.clip(max(size) / 56, 12, 44)))
    texts = _labels(detections, classes, boxes, face, scores=scores)
    shapes: list[_Shape | None] = [None] * len(detections)
    if detections.masks is not None:
        shapes = [_shape(mask, scale, line) for mask in detections.masks]
    # the large first, so that the small lie on top; all halos below all fills, so that none dims a neighbour's contour
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable").tolist()
    drawn = [(shapes[index], paints[index]) for index in order]
    for shape, _ in drawn:
        if shape is not None:
            canvas.blend(picture, shape.left, shape.top, shape.halo, canvas.INK, HALO)
    for shape, paint in drawn:
        if shape is not None:
            canvas.blend(picture, shape.left, shape.top, shape.inside, paint, FILL)
    if detections.masks is None or texts:
        # beside a contour, which says more, a box is a thinner line
        thickness = line if detections.masks is None else max(line - 1, 1)
        for index in order:
            _frame(picture, boxes[index], paints[index], thickness)
    for shape, paint in drawn:
        if shape is not None:
            canvas.blend(picture, shape.left, shape.top, shape.contour, paint, 1.0)
    if detections.keypoints is not None:
        keypoints = detections.keypoints.detach().cpu().double().numpy() * [scale, scale, 1]
        draw_keypoints(picture, keypoints, boxes, paints, skeleton)
        if len(detections):
            draw_legend(picture, skeleton, boxes, face)
    placed = _write(picture, texts, boxes, paints, face)
    if count and len(placed) < len(detections):
        _count(picture, _counts(detections, classes), boxes, placed, face)
    return picture


def _labels(
    detections: Detections, classes: Sequence[str], boxes: np.ndarray, face: canvas.Font, *, scores: bool
) -> dict[int, str]:
    """The text of each label that is worth its room, by the number of its detection.

    A few objects are all labelled. Among more, one that is smaller than its label goes without; and where they are all
    of one class and mostly small, or very many, a label tells so little that none is shown.
    """
    texts = {}
    small = 0
    pairs = zip(detections.labels.tolist(), detections.scores.tolist(), strict=True)
    for index, (label, score) in enumerate(pairs):
        name = _name(classes, label)
        text = f"{name} {score:.2f}" if scores else name
        sides = np.maximum(boxes[index, 2:] - boxes[index, :2], 0)
        if len(detections) > FEW and sides.prod() < 2 * canvas.extent(text, face).prod():
            small += 1
            continue
        texts[index] = text
    alike = len(set(detections.labels.tolist())) == 1
    return {} if alike and (len(detections) >= MANY or 4 * small > len(detections)) else texts


def _write(
    picture: Image.Image, texts: dict[int, str], boxes: np.ndarray, paints: np.ndarray, face: canvas.Font
) -> np.ndarray:
    """Draws the labels, best first, each where it hides least; returns the plates [P, 4] that found room."""
    pen = ImageDraw.Draw(picture)
    placed = np.zeros((0, 4))
    for index, text in texts.items():
        text = canvas.fit(text, face, picture.width - 2 * canvas.pad(face))
        plate = _place(boxes[index], canvas.extent(text, face), placed, boxes, picture.size)
        if plate is not None:
            placed = np.concatenate([placed, plate[None]])
            canvas.plate(pen, plate, text, face, paints[index])
    return placed


def _place(
    box: np.ndarray, extent: np.ndarray, placed: np.ndarray, boxes: np.ndarray, size: tuple[int, int]
) -> np.ndarray | None:
    """Where a label at its box hides the least of other labels and of small objects; None where it hides a label."""
    x1, y1, x2, y2 = np.rint(box)
    width, height = extent
    room = np.maximum(np.array(size) - extent, 0)
    above, below, inside = y1 - height, y2, y1
    corners = [(x1, above), (x1, inside), (x2 - width, above), (x1, below), (x2 - width, below), (x2 - width, inside)]
    corners += [(x1, y2 - height), (x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height)]
    areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 1).prod(axis=1)
    best, least = None, np.inf
    for preference, corner in enumerate(corners):
        at = np.clip(np.array(corner), 0, room)
        plate = np.concatenate([at, at + extent])
        overlap = canvas.shared(plate, placed).max(initial=0.0) / extent.prod()
        if overlap > OVERLAP:
            continue
        moved = np.abs(at - corner).sum() / extent.sum()  # pushed back into the picture: away from its box
        cost = 4 * overlap + 2 * moved + (canvas.shared(plate, boxes) / areas).sum() + 0.02 * preference
        if cost < least:
            best, least = plate, cost
    return best


def _count(picture: Image.Image, text: str, boxes: np.ndarray, placed: np.ndarray, face: canvas.Font) -> None:
    """Draws a count in the corner of the picture where it hides the fewest objects and labels."""
    margin = canvas.pad(face)
    text = canvas.fit(text, face, picture.width - 4 * margin)
    extent = canvas.extent(text, face)
    far = np.maximum(np.array(picture.size) - extent - margin, 0)
    near = np.minimum(np.array([margin, margin]), far)
    corners = [(near[0], far[1]), (far[0], far[1]), (near[0], near[1]), (far[0], near[1])]
    plates = [np.concatenate([np.array(corner), np.array(corner) + extent]) for corner in corners]
    hidden = [canvas.shared(plate, boxes).sum() + 10 * canvas.shared(plate, placed).sum() for plate in plates]
    canvas.plate(ImageDraw.Draw(picture), plates[int(np.argmin(hidden))], text, face, np.array(canvas.INK))


def _shape(mask: dict[str, Any], scale: int, line: int) -> _Shape | None:
    found = masks.crop(mask)
    if found is None:
        return None
    left, top, window = found
    border = -(-(line + 2) // scale) + 1  # room for the halo
    soft = _softened(np.pad(window, border))
    size = (soft.shape[1] * scale, soft.shape[0] * scale)
    if scale > 1:
        soft = np.asarray(Image.fromarray(soft).resize(size, Image.Resampling.BILINEAR))
    inside = np.clip((soft.astype(np.float32) - 127.5) * (1.5 * scale) + 127.5, 0, 255).astype(np.uint8)
    contour = inside - _moved(inside, line, np.minimum)
    halo = _moved(inside, max(line // 2, 1), np.maximum) - inside
    return _Shape((left - border) * scale, (top - border) * scale, inside, contour, halo)


def _softened(window: np.ndarray) -> np.ndarray:
    """[h, w] uint8: steps along the outline smoothed, but no pixel of the mask lost, however thin it is."""
    values = window.astype(np.uint16)
    values[:, 1:-1] = values[:, :-2] + 2 * values[:, 1:-1] + values[:, 2:]
    values[1:-1] = values[:-2] + 2 * values[1:-1] + values[2:]
    soft = values * 255 // 16
    return np.where(window, np.maximum(soft, 224), soft).astype(np.uint8)


def _moved(values: np.ndarray, radius: int, combine: np.ufunc) -> np.ndarray:
    """Grey erosion (np.minimum) or dilation (np.maximum) by a disc; beyond the window lies background."""
    padded = np.pad(values, radius)
    height, width = values.shape
    result = values.copy()
    reach = (radius + 0.5) ** 2
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if 0 < dx * dx + dy * dy <= reach:
                window = padded[radius + dy : radius + dy + height, radius + dx : radius + dx + width]
                combine(result, window, out=result)
    return result


def _frame(picture: Image.Image, box: np.ndarray, paint: np.ndarray, line: int) -> None:
    """A thin rectangle along the inside of a box, with a dark line on both sides of it."""
    for margin, thickness, ink, opacity in ((-1, line + 2, np.array(canvas.INK), 0.3), (0, line, paint, 1.0)):
        x1, y1, x2, y2 = (int(value) for value in np.rint(box) + np.array([1, 1, -1, -1]) * margin)
        x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
        inner = min(thickness, (x2 - x1 + 1) // 2, (y2 - y1 + 1) // 2)
        across = np.full((inner, x2 - x1), 255, np.uint8)
        down = np.full((max(y2 - y1 - 2 * inner, 0), inner), 255, np.uint8)
        for left, top, bar in ((x1, y1, across), (x1, y2 - inner, across), (x1, y1 + inner, down)):
            canvas.blend(picture, left, top, bar, ink, opacity)
        canvas.blend(picture, x2 - inner, y1 + inner, down, ink, opacity)


def _line_width(size: tuple[int, int], boxes: np.ndarray) -> int:
    """Grows with the picture, but stays thin where objects are small."""
    wanted = max(round(max(size) / 400), 1)
    if len(boxes):
        sides = np.sqrt(np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1))
        wanted = min(wanted, max(round(float(np.median(sides)) / 14), 1))
    return wanted


def _pairs(truth: np.ndarray, found: np.ndarray) -> np.ndarray:
    """For each detection, best first, the free true box that it overlaps most, IoU 0.5 at least; else -1."""
    pairs = np.full(len(found), -1, np.int64)
    free = np.ones(len(truth), bool)
    areas = np.maximum(truth[:, 2:] - truth[:, :2], 0).prod(axis=1)
    for index, box in enumerate(found):
        shared = canvas.shared(box, truth)
        union = areas + np.maximum(box[2:] - box[:2], 0).prod() - shared
        iou = np.where(free, shared / np.maximum(union, 1e-9), 0)
        if len(truth) and iou.max() >= 0.5:
            pairs[index] = iou.argmax()
            free[pairs[index]] = False
    return pairs


def _counts(detections: Detections, classes: Sequence[str]) -> str:
    """Such as "cup x 12, person x 3", the most frequent first."""
    counts = Counter(detections.labels.tolist())
    return ", ".join(f"{_name(classes, label)} x {count}" for label, count in counts.most_common())


def _name(classes: Sequence[str], label: int) -> str:
    return canvas.spell(str(classes[label])) if 0 <= label < len(classes) else f"class {label}"
