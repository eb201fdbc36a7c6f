"""Large pictures in overlapping tiles, with the parts of their objects that each tile shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools import mask as coco_mask

from mrcnn_cli.data.masks import clip_polygon, cut_runs, encode, visible_box

Corners = tuple[int, int, int, int]  # x1, y1, x2, y2


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut.

    Attributes:
        size: pixels of a tile's sides; a shorter side of a picture is not cut.
        overlap: pixels that neighbours have in common at least.
        min_visible: part of an object's mask (of its box, without masks) that a tile must show of it; what shows less
            becomes a region to ignore: it is no object to learn, and no background either.
    """

    size: int
    overlap: int
    min_visible: float

    def windows(self, height: int, width: int) -> list[Corners]:
        """The tiles of a picture, row by row; the last of a row or column ends at the picture's edge."""
        return [
            (x, y, min(x + self.size, width), min(y + self.size, height))
            for y in self._starts(height)
            for x in self._starts(width)
        ]

    def _starts(self, length: int) -> list[int]:
        last = max(length - self.size, 0)
        return [*range(0, last, self.size - self.overlap), last]


def cut_annotations(
    annotations: Sequence[dict[str, Any]], height: int, width: int, tiling: Tiling
) -> list[tuple[Corners, list[dict[str, Any]]]]:
    """The tiles of a picture, each with the COCO annotations of what it shows, in its own pixels.

    Args:
        annotations: of the whole picture, in COCO's format; run-length encodings with compressed counts.
        height: of the picture, as is `width`.
        tiling: how it is cut.

    Returns:
        Corners in the picture, and annotations without `id` and `image_id`; `source_id` is the id that one had.
    """
    areas = [_area(annotation, height, width) for annotation in annotations]
    tiles = []
    for window in tiling.windows(height, width):
        shown = []
        for annotation, area in zip(annotations, areas, strict=True):
            x, y, w, h = annotation["bbox"]
            if x < window[2] and y < window[3] and x + w > window[0] and y + h > window[1]:
                part = _cut(annotation, area, (height, width), window, tiling.min_visible)
                if part is not None:
                    shown.append(part)
        tiles.append((window, shown))
    return tiles


def _cut(
    annotation: dict[str, Any], area: float, size: tuple[int, int], window: Corners, min_visible: float
) -> dict[str, Any] | None:
    """What a window shows of an object; None where its mask does not reach into it."""
    x, y, w, h = annotation["bbox"]
    box = [max(x, window[0]), max(y, window[1]), min(x + w, window[2]), min(y + h, window[3])]
    whole = box == [x, y, x + w, y + h]
    left = {"source_id": annotation["id"], "category_id": annotation["category_id"], "iscrowd": annotation["iscrowd"]}
    height, width = window[3] - window[1], window[2] - window[0]
    if "segmentation" in annotation:
        left["segmentation"] = _cut_mask(annotation["segmentation"], size, window)
        seen = _extent(left["segmentation"], height, width)
        if seen is None:
            return None
        if not whole:
            moved = [seen[place] + window[place % 2] for place in range(4)]
            box = [*map(max, box[:2], moved[:2]), *map(min, box[2:], moved[2:])]
    if box[0] >= box[2] or box[1] >= box[3]:
        return None
    left["bbox"] = [box[0] - window[0], box[1] - window[1], box[2] - box[0], box[3] - box[1]]
    visible = _area(left, height, width)
    left["area"] = annotation["area"] if whole else visible
    if not whole and visible < min_visible * area:
        left["iscrowd"] = 1
    if "keypoints" in annotation:
        left["keypoints"] = _cut_keypoints(annotation["keypoints"], window)
        left["num_keypoints"] = sum(visibility > 0 for visibility in left["keypoints"][2::3])
    return left


def _cut_mask(segmentation: Any, size: tuple[int, int], window: Corners) -> Any:
    x1, y1, x2, y2 = window
    if isinstance(segmentation, dict):
        encoding = encode(cut_runs(segmentation, slice(y1, y2), slice(x1, x2)), 0, 0, (y2 - y1, x2 - x1))
        return {"size": encoding["size"], "counts": encoding["counts"].decode("ascii")}
    parts = [part for polygon in segmentation for part in clip_polygon(polygon, window)]
    return [[value - (x1, y1)[place % 2] for place, value in enumerate(part)] for part in parts]


def _extent(segmentation: Any, height: int, width: int) -> tuple[float, float, float, float] | None:
    """The box around a mask; None around nothing."""
    if isinstance(segmentation, dict):
        return visible_box(segmentation, (0, 0, width, height))
    if not segmentation:
        return None
    x, y = ([value for polygon in segmentation for value in polygon[axis::2]] for axis in (0, 1))
    return min(x), min(y), max(x), max(y)


def _cut_keypoints(keypoints: Sequence[float], window: Corners) -> list[float]:
    moved: list[float] = []
    for x, y, visibility in zip(keypoints[0::3], keypoints[1::3], keypoints[2::3], strict=True):
        shown = visibility > 0 and window[0] <= x < window[2] and window[1] <= y < window[3]
        moved += [x - window[0], y - window[1], visibility] if shown else [0, 0, 0]
    return moved


def _area(annotation: dict[str, Any], height: int, width: int) -> float:
    """Of the mask in pixels as pycocotools fills it, without masks of the box."""
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        return float(annotation["bbox"][2] * annotation["bbox"][3])
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return float(coco_mask.area(segmentation))
