"""Predictions of a COCO results list beside the truth: which objects were found, and which finds are false."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np

from mrcnn_cli.data.check.tables import Table
from mrcnn_cli.data.keypoints import KeypointsConfig, visible_points
from mrcnn_cli.data.shape_faults import NUMBERS, finite, read_runs, whole
from mrcnn_cli.engine.mask_paths import mask_path
from mrcnn_cli.errors import UserError
from mrcnn_cli.views.gallery import Shape
from mrcnn_cli.views.skeleton import Skeleton

FOUND_IOU = 0.5  # of boxes
IN_CROWD = 0.5  # share of a prediction that lies in a crowd, from which on it is not judged


def read_predictions(path: Path, table: Table, score: float) -> dict[int, list[Shape]]:
    """image id -> its predictions, best first.

    Args:
        path: a COCO results list, as `mrcnn evaluate --out` writes it; or the predictions.json of `mrcnn predict`, in
            which "file_name" tells the image.
        table: the split that they are for.
        score: lower ones are left out.

    Raises:
        UserError: it is no results list, or one of another data set.
    """
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name a COCO results list") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}; name a COCO results list") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: holds no list of objects; name a COCO results list, as 'mrcnn evaluate --out' writes")
    images = {image.id: image for image in table.images}
    by_path = {(table.split.folder / image.file_name).resolve(): image.id for image in table.images}
    names = list(dict.fromkeys(table.categories[number] for number in sorted(table.categories)))
    found: dict[int, list[Shape]] = {}
    strangers = 0
    for place, entry in enumerate(entries):
        number, category = whole(entry.get("image_id")), whole(entry.get("category_id"))
        if isinstance(entry.get("file_name"), str):
            name = Path(entry["file_name"])  # as prediction was told it, or as the annotation file has it
            number = by_path.get(name.resolve(), by_path.get((table.split.folder / name).resolve()))
        if number not in images:
            strangers += 1
            continue
        if category not in table.categories:
            raise UserError(
                f"{path}: entry {place} has the category_id {shown(entry.get('category_id'))}, which "
                f"{table.split.path} does not have; name predictions for this data set"
            )
        image = images[number]
        how_sure, box = entry.get("score"), _box(entry.get("bbox"))
        if not isinstance(how_sure, int | float) or box is None:
            raise UserError(f"{path}: entry {place} needs a 'score' and a 'bbox' [x, y, width, height]")
        if how_sure < score:
            continue
        outline = _path(entry.get("segmentation"), (image.height, image.width), f"{path}: entry {place}")
        label = names.index(table.categories[category])
        points = visible_points(entry.get("keypoints"), KeypointsConfig().offset, Skeleton().threshold)
        shape = Shape(label, box, outline, score=float(how_sure), keypoints=points)
        found.setdefault(image.id, []).append(shape)
    if strangers == len(entries) and entries:
        raise UserError(
            f"{path}: no entry belongs to an image of {table.split.path}; name predictions for this data set"
        )
    return {number: sorted(shapes, key=lambda shape: -(shape.score or 0)) for number, shapes in found.items()}


def judged(objects: Sequence[Shape], predictions: Sequence[Shape]) -> tuple[list[Shape], list[Shape]]:
    """Both with `missed` set: objects that no prediction of their class found, and predictions that found none.

    As in COCO's evaluation at IoU 0.5 of boxes: the best prediction chooses first; each object is found once; a
    prediction in a crowd of its class is not judged.
    """
    taken = [False] * len(objects)
    judged_predictions = []
    for prediction in predictions:
        overlaps = [
            _overlap(prediction.box, truth.box, of_first=truth.crowd) if truth.label == prediction.label else 0.0
            for truth in objects
        ]
        free = [
            overlap if not taken[i] and not objects[i].crowd and overlap >= FOUND_IOU else 0.0
            for i, overlap in enumerate(overlaps)
        ]
        best = int(np.argmax(free)) if free else 0
        if free and free[best]:
            taken[best] = True
            judged_predictions.append(prediction)
        else:
            in_crowd = any(o >= IN_CROWD and t.crowd for o, t in zip(overlaps, objects, strict=True))
            judged_predictions.append(replace(prediction, missed=not in_crowd))
    judged_objects = [
        replace(truth, missed=not found and not truth.crowd) for truth, found in zip(objects, taken, strict=True)
    ]
    return judged_objects, judged_predictions


def _overlap(one: Sequence[float], other: Sequence[float], *, of_first: bool) -> float:
    """IoU of two boxes, or the share of the first that lies in the other."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area, other_area = ((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (area if of_first else area + other_area - width * height)


def _box(bbox: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not NUMBERS.issuperset(map(type, bbox)) or not finite(bbox):
        return None
    x, y, width, height = bbox
    return x, y, x + width, y + height


def _path(segmentation: Any, size: tuple[int, int], where: str) -> str:
    if not segmentation:
        return ""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(size):
            raise UserError(f"{where}: its mask is for {shown(segmentation.get('size'))}, its image is {list(size)}")
        try:
            read_runs(segmentation)
        except ValueError as error:
            raise UserError(f"{where}: its mask cannot be read: {error}") from None
    return mask_path(segmentation)
