"""Annotated pictures between two formats: what every reader makes and every writer takes."""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_cli.data.image import MAX_PIXELS
from mrcnn_cli.data.masks import visible_box
from mrcnn_cli.data.panoptic import encodings

Box = tuple[float, float, float, float]  # x1, y1, x2, y2
# As in COCO: polygons [x1, y1, x2, y2, ...], the object being their union, or a run-length encoding with compressed
# counts (bytes). An object with a hole is always the latter, for a union of rings knows none.
Segmentation = list[list[float]] | dict[str, Any]


@dataclass(slots=True)
class Instance:
    """An object in a picture, in continuous pixels of the upright picture.

    Attributes:
        label: the name of its class; None for a region to ignore whatever the class.
        box: x1, y1, x2, y2.
        segmentation: polygons or a run-length encoding; None where the source has only the box.
        crowd: a region of many objects, or one to ignore, rather than an object.
        attributes: whatever else the source says about it.
        keypoints: x, y, visibility of each, as in COCO.
        id: in the source, where that numbers its objects.
        area: in pixels, where the source says it; COCO's metrics by size go by it.
    """

    label: str | None
    box: Box
    segmentation: Segmentation | None = None
    crowd: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)
    keypoints: list[float] | None = None
    id: int | None = None
    area: float | None = None


@dataclass(slots=True)
class Picture:
    """A picture and what is in it.

    Attributes:
        path: its file; a name for it where `embedded` is given.
        height, width: of the upright picture.
        instances: its objects, in the order of the source.
        split: train, val, test or what the source calls it; None where the source has no splits.
        attributes: whatever else the source says about it.
        id: in the source, where that numbers its pictures.
        embedded: gives the bytes of the image file, for a source that has pictures inside its annotation files.
    """

    path: Path
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)
    split: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    id: int | None = None
    embedded: Callable[[], bytes] | None = None

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.height * self.width > MAX_PIXELS:
            raise ValueError(f"its image is said to be {self.height} x {self.width} pixels; correct its size")


@dataclass(slots=True)
class Collection:
    """Pictures with their classes.

    Attributes:
        classes: names in label order.
        pictures: in the order of the source.
        categories: class -> what else COCO's list of categories says about it (id, supercategory, keypoints, ...).
    """

    classes: list[str]
    pictures: list[Picture]
    categories: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def has_masks(self) -> bool:
        return any(instance.segmentation is not None for picture in self.pictures for instance in picture.instances)

    @property
    def splits(self) -> dict[str, list[Picture]]:
        """The pictures by split, train, val and test first; those of no split count as train."""
        found: dict[str, list[Picture]] = {"train": [], "val": [], "test": []}
        for picture in self.pictures:
            found.setdefault(picture.split or "train", []).append(picture)
        return {name: pictures for name, pictures in found.items() if pictures}


def check(instance: Instance, picture: Picture) -> None:
    """Nothing, where an object's numbers are finite and its polygons anywhere near the picture.

    Raises:
        ValueError: else; to fill a polygon far outside would take for ever.
    """
    if not all(map(math.isfinite, instance.box)):
        raise ValueError(f"its box {list(instance.box)} is not finite")
    if isinstance(instance.segmentation, list):
        check_near(instance.segmentation, picture.height, picture.width)


def check_near(polygons: list[list[float]], height: int, width: int) -> None:
    """Raises ValueError where a polygon has a point that is not finite or far outside of an image."""
    side = max(height, width)
    for polygon in polygons:
        if not -side <= min(polygon) <= max(polygon) <= 2 * side or any(value != value for value in polygon):
            raise ValueError("a polygon has points that are not finite or far outside of the image")


def polygon_instance(label: str | None, polygons: list[list[float]], **more: Any) -> Instance:
    """An object of polygons, with the box around them.

    Raises:
        ValueError: no polygon, or one with fewer than 3 points.
    """
    if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon needs at least 3 points")
    x = [value for polygon in polygons for value in polygon[0::2]]
    y = [value for polygon in polygons for value in polygon[1::2]]
    return Instance(label, (min(x), min(y), max(x), max(y)), polygons, **more)


def mask_instance(label: str | None, mask: np.ndarray, **more: Any) -> Instance | None:
    """An object of a bitmap [H, W], with the box around its pixels; None where it has none."""
    return encoding_instance(label, encode(mask), **more)


def encoding_instance(label: str | None, encoding: dict[str, Any], **more: Any) -> Instance | None:
    """An object of a run-length encoding, with the box around its pixels; None where it has none."""
    height, width = encoding["size"]
    box = visible_box(encoding, (0.0, 0.0, float(width), float(height)))
    return None if box is None else Instance(label, box, encoding, **more)


def encode(mask: np.ndarray) -> dict[str, Any]:
    """A bitmap [H, W] as a run-length encoding with compressed counts."""
    encoding = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(length) for length in encoding["size"]], "counts": encoding["counts"]}


def merged(parts: Sequence[Instance], height: int, width: int) -> Instance:
    """One object of several parts, which may be polygons, bitmaps or boxes; a single one stays as it is."""
    if len(parts) == 1:
        return parts[0]
    x1, y1, x2, y2 = zip(*(part.box for part in parts), strict=True)
    box = (min(x1), min(y1), max(x2), max(y2))
    attributes = {key: value for part in parts for key, value in part.attributes.items()}
    given = [part.segmentation for part in parts if part.segmentation is not None]
    if all(isinstance(one, list) for one in given):
        segmentation: Any = [polygon for one in given for polygon in one] or None
    else:
        together = coco_mask.merge([to_encoding(one, height, width) for one in given])
        segmentation = {"size": [height, width], "counts": together["counts"]}
    return Instance(parts[0].label, box, segmentation, any(part.crowd for part in parts), attributes)


def label_instances(labels: np.ndarray) -> list[tuple[int, dict[str, Any], Box]]:
    """Each value but 0 of a map [H, W] with its run-length encoding and box, in the order of the values."""
    height, width = labels.shape
    values = [value for value in np.unique(labels).tolist() if value != 0]
    found = []
    for value, encoding in zip(values, encodings(labels, values), strict=True):
        assert encoding is not None
        box = visible_box(encoding, (0.0, 0.0, float(width), float(height)))
        assert box is not None
        found.append((value, encoding, box))
    return found


def to_encoding(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """The run-length encoding of polygons, as pycocotools fills them; one that is there already stays."""
    if isinstance(segmentation, dict):
        return segmentation
    check_near(segmentation, height, width)
    together = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return {"size": [height, width], "counts": together["counts"]}


def to_bitmap(segmentation: Segmentation, height: int, width: int) -> np.ndarray:
    """The pixels [H, W] of an object, bool."""
    return coco_mask.decode(to_encoding(segmentation, height, width)).astype(bool)


def mask_iou(first: Segmentation, second: Segmentation, height: int, width: int) -> float:
    """How much two objects have in common, 0..1, in pixels."""
    encodings = [to_encoding(segmentation, height, width) for segmentation in (first, second)]
    return float(coco_mask.iou(encodings[:1], encodings[1:], [0])[0, 0])


def picture_names(pictures: Sequence[Picture]) -> list[str]:
    """A file name of its own for each picture: its own, or with the folders before it where two have the same.

    Names are compared without their suffix and without case, since label files are called like the pictures.
    """
    taken: dict[str, int] = {}
    names = []
    root = os.path.commonpath([picture.path.parent for picture in pictures]) if pictures else ""
    alike = Counter(picture.path.stem.lower() for picture in pictures)
    for picture in pictures:
        name = picture.path.name
        if alike[picture.path.stem.lower()] > 1:
            name = "_".join(picture.path.relative_to(root).parts)
        stem, suffix = PurePath(name).stem, picture.path.suffix
        count = taken[stem.lower()] = taken.get(stem.lower(), 0) + 1
        names.append(f"{stem}{suffix}" if count == 1 else f"{stem}_{count}{suffix}")
    return names
