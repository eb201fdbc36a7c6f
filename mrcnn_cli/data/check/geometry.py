"""Faults of boxes and masks that show when they are compared, and of annotations that repeat each other."""

from collections.abc import Iterator

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_cli.data.check.faults import Finding
from mrcnn_cli.data.check.tables import Polygons, Table, numbers

# A box may miss its mask by this, for tools differ in what the last pixel's edge is.
BOX_PIXELS, BOX_SHARE = 2.0, 0.05
AREA_SHARE = 0.1
OUTSIDE_PIXELS = 2.0
SAME_PIXELS = 1.0  # boxes of one class that differ by no more are one object annotated twice
CHUNK = 2**18  # edges whose crossings are looked for at once


def box_findings(table: Table, crossed: np.ndarray) -> list[Finding]:
    """Boxes and areas that disagree with the masks; `crossed`: the polygons that cross themselves, from `crossing`."""
    findings = []
    boxes, mask_boxes = corners(table.bboxes), _within(table.mask_boxes(), table)
    difference = np.abs(boxes - mask_boxes).max(axis=1)
    extent = (mask_boxes[:, 2:] - mask_boxes[:, :2]).max(axis=1)
    for a in np.flatnonzero(difference > np.maximum(BOX_PIXELS, BOX_SHARE * extent)).tolist():
        x1, y1, x2, y2 = mask_boxes[a].tolist()
        covered = numbers([x1, y1, x2 - x1, y2 - y1])
        words = f"its box is {numbers(table.bboxes[a].tolist())}, its mask has {covered}, off by {difference[a]:.1f} px"
        findings.append(table.finding("box-disagrees", a, words))
    return findings + _area_findings(table, crossed)


def mask_areas(table: Table, crossed: np.ndarray) -> np.ndarray:
    """[A] pixels of each mask; NaN without one.

    By the outline, but exactly (several times slower) where parts may overlap or the outline crosses itself and the
    file's area says otherwise.
    """
    areas = np.full(len(table), np.nan)
    polygons = table.polygons
    if len(polygons.ends):
        areas_of_parts = polygon_areas(polygons)
        first = np.flatnonzero(np.diff(polygons.owner, prepend=-1))
        owners = polygons.owner[first]
        areas[owners] = np.add.reduceat(areas_of_parts, first)
        uncertain = np.diff(np.append(first, len(polygons.owner))) > 1
        uncertain[np.searchsorted(owners, polygons.owner[crossed])] = True
        suspects = owners[uncertain & _area_differs(table.areas, areas)[owners]]
        for a in suspects.tolist():
            image = table.images[table.image[a]]
            parts = polygons.of(a)
            areas[a] = coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(parts, image.height, image.width)))
    if table.encodings:
        # One by one: pycocotools counts a list of them in eight bits.
        areas[list(table.encodings)] = [coco_mask.area(encoding) for encoding in table.encodings.values()]
    return areas


def polygon_findings(table: Table, crossed: np.ndarray) -> list[Finding]:
    """Polygons that are tiny, cross themselves (`crossed`, from `crossing`) or leave their image."""
    polygons = table.polygons
    if not len(polygons.ends):
        return []
    findings = []
    owner, number = polygons.owner, polygons.number
    areas = polygon_areas(polygons)
    low = np.minimum.reduceat(polygons.coordinates, polygons.starts)
    high = np.maximum.reduceat(polygons.coordinates, polygons.starts)
    for p in np.setdiff1d(np.flatnonzero(areas < 1), crossed).tolist():  # the two halves of a bow cancel out
        words = f"polygon {number[p]} of its mask covers {areas[p]:.2f} px"
        findings.append(table.finding("polygon-tiny", int(owner[p]), words, polygon=int(number[p])))
    for p in crossed.tolist():
        words = f"edges of polygon {number[p]} of its mask cross each other"
        findings.append(table.finding("polygon-crosses-itself", int(owner[p]), words, polygon=int(number[p])))
    sizes = table.sizes()[table.image[owner]][:, ::-1]
    outside = np.maximum(-low, high - sizes).max(axis=1)
    for p in np.flatnonzero(outside > OUTSIDE_PIXELS).tolist():
        words = f"polygon {number[p]} of its mask leaves the image by {outside[p]:.1f} px"
        findings.append(table.finding("polygon-leaves-image", int(owner[p]), words, polygon=int(number[p])))
    return findings


def repeated_findings(table: Table) -> list[Finding]:
    """Annotations of one image and class whose boxes and masks are the same."""
    boxes = corners(table.bboxes)
    sound = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    if not len(sound):
        return []
    _, group = np.unique(np.stack([table.image, table.category, table.crowd], axis=1), axis=0, return_inverse=True)
    findings = []
    repeated: set[int] = set()
    x1 = boxes[sound, 0]
    pairs = overlapping(group.reshape(-1)[sound], x1, x1 + SAME_PIXELS)
    for left, right in pairs:
        one, other = np.minimum(sound[left], sound[right]), np.maximum(sound[left], sound[right])
        same = (np.abs(boxes[one] - boxes[other]) <= SAME_PIXELS).all(axis=1)
        for a, b in sorted(zip(one[same].tolist(), other[same].tolist(), strict=True)):
            if b not in repeated and a not in repeated and _same_mask(table, a, b):
                repeated.add(b)
                words = f"repeats annotation {table.ids[a]}: the same class, box and mask"
                findings.append(table.finding("duplicate-annotation", b, words))
    return findings


def corners(bboxes: np.ndarray) -> np.ndarray:
    """[A, 4] x1, y1, x2, y2 of boxes x, y, width, height."""
    return np.concatenate([bboxes[:, :2], bboxes[:, :2] + bboxes[:, 2:]], axis=1)


def polygon_areas(polygons: Polygons) -> np.ndarray:
    """[P] areas within the outlines, by the shoelace formula."""
    ends = _next(polygons)
    start, stop = polygons.coordinates, polygons.coordinates[ends]
    # Relative to the first point, so that a small polygon far from the corner loses no digits.
    origin = polygons.coordinates[polygons.starts].repeat(polygons.ends - polygons.starts, axis=0)
    start, stop = start - origin, stop - origin
    crosses = start[:, 0] * stop[:, 1] - start[:, 1] * stop[:, 0]
    return np.abs(np.add.reduceat(crosses, polygons.starts)) / 2


def crossing(polygons: Polygons) -> np.ndarray:
    """The polygons of which two edges cross, touching left out, in order."""
    if not len(polygons.ends):
        return np.zeros(0, np.int64)
    counts = polygons.ends - polygons.starts
    owner = np.arange(len(counts)).repeat(counts)
    position = np.arange(len(owner)) - polygons.starts.repeat(counts)
    start, stop = polygons.coordinates, polygons.coordinates[_next(polygons)]
    found: list[np.ndarray] = []
    chunk = polygons.ends // CHUNK
    for number in np.unique(chunk):
        chosen = np.flatnonzero(chunk == number)
        first, last = int(polygons.starts[chosen[0]]), int(polygons.ends[chosen[-1]])
        a, b, of, place = start[first:last], stop[first:last], owner[first:last], position[first:last]
        for one, other in overlapping(of, np.minimum(a, b)[:, 0], np.maximum(a, b)[:, 0]):
            apart = np.abs(place[one] - place[other])
            apart = np.minimum(apart, counts[of[one]] - apart) > 1  # neighbours share a point
            level = np.minimum(np.maximum(a, b)[one, 1], np.maximum(a, b)[other, 1]) >= np.maximum(
                np.minimum(a, b)[one, 1], np.minimum(a, b)[other, 1]
            )
            one, other = one[apart & level], other[apart & level]
            sides = _side(a[one], b[one], a[other]) * _side(a[one], b[one], b[other])
            other_sides = _side(a[other], b[other], a[one]) * _side(a[other], b[other], b[one])
            found.append(of[one[(sides < 0) & (other_sides < 0)]])
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def overlapping(group: np.ndarray, low: np.ndarray, high: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of intervals of one group that overlap or touch, in portions of bounded size.

    Args:
        group: [N] of each interval.
        low, high: [N] its ends.

    Yields:
        two arrays of indices, each pair once.
    """
    order = np.lexsort((low, group))
    group, low, high = group[order], low[order], high[order]
    # One axis for all groups: each gets a stretch of its own, in which its intervals lie.
    span = max(float(high.max(initial=0) - low.min(initial=0)), 1.0) * 2
    shift = np.unique(group, return_inverse=True)[1].reshape(-1) * span - low.min(initial=0)
    last = np.searchsorted(low + shift, high + shift, side="right")
    counts = np.maximum(last - np.arange(len(order)) - 1, 0)
    ends = counts.cumsum()
    begin = 0
    while begin < len(order):
        before = ends[begin - 1] if begin else 0
        stop = max(int(np.searchsorted(ends, before + 2**20, side="right")), begin + 1)
        left = np.arange(begin, stop).repeat(counts[begin:stop])
        offsets = np.arange(len(left)) - (ends[begin:stop] - counts[begin:stop] - before).repeat(counts[begin:stop])
        yield order[left], order[left + 1 + offsets]
        begin = stop


def _within(boxes: np.ndarray, table: Table) -> np.ndarray:
    """[A, 4] corners clipped to the images, of which the size is known wherever there is a mask."""
    limits = table.sizes()[table.image][:, [1, 0, 1, 0]]
    return np.clip(boxes, 0, limits)


def _area_findings(table: Table, crossed: np.ndarray) -> list[Finding]:
    expected = mask_areas(table, crossed)
    masked = np.isfinite(expected)
    boxed = table.bboxes[:, 2] * table.bboxes[:, 3]
    expected = np.where(masked, expected, boxed)
    findings = []
    wrong = _area_differs(table.areas, expected) | (np.isnan(table.areas) & np.isfinite(expected))
    for a in np.flatnonzero(wrong).tolist():
        of_what = "mask" if masked[a] else "box"
        value = round(float(expected[a]), 2)
        said = "has no area" if np.isnan(table.areas[a]) else f"its area is {table.areas[a]:g}"
        findings.append(table.finding("area-disagrees", a, f"{said}, that of its {of_what} is {value:g}", value=value))
    return findings


def _area_differs(given: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Where areas differ by a tenth and by more than filling whole pixels can add: half a pixel along the outline."""
    allowed = np.maximum(AREA_SHARE * np.maximum(given, expected), 2 * np.sqrt(np.maximum(expected, 0)) + 2)
    return np.abs(given - expected) > allowed  # false where either is NaN


def _next(polygons: Polygons) -> np.ndarray:
    """The index of the vertex after each, the first one's after the last."""
    following = np.arange(1, len(polygons.coordinates) + 1)
    following[polygons.ends - 1] = polygons.starts
    return following


def _side(start: np.ndarray, stop: np.ndarray, point: np.ndarray) -> np.ndarray:
    """-1, 0 or 1: on which side of the line from start to stop the point lies; 0 within rounding errors of it."""
    along, to = stop - start, point - start
    one, other = along[:, 0] * to[:, 1], along[:, 1] * to[:, 0]
    cross = one - other
    return np.where(np.abs(cross) > 1e-9 * (np.abs(one) + np.abs(other)), np.sign(cross), 0.0)


def _same_mask(table: Table, a: int, b: int) -> bool:
    """Whether two annotations of the same box have the same mask, or one of them none."""
    segmentations = [table.entry(place).get("segmentation") or None for place in (a, b)]
    if None in segmentations or segmentations[0] == segmentations[1]:
        return True
    image = table.images[table.image[a]]
    encodings = []
    for place in (a, b):
        encoding = table.encodings.get(place)
        if encoding is None:
            parts = table.polygons.of(place)
            if not parts:
                return True
            encoding = coco_mask.merge(coco_mask.frPyObjects(parts, image.height, image.width))
        encodings.append(encoding)
    return bool(coco_mask.iou([encodings[0]], [encodings[1]], [0])[0, 0] >= 0.9)
