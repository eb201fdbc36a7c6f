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
    missed, false = mistakes(
        np.array([truth.box for truth in objects], np.float64).reshape(-1, 4),
        np.array([truth.label for truth in objects], np.int64),
        np.array([truth.crowd for truth in objects], bool),
        np.array([prediction.box for prediction in predictions], np.float64).reshape(-1, 4),
        np.array([prediction.label for prediction in predictions], np.int64),
    )
    return (
        [replace(shape, missed=wrong) for shape, wrong in zip(objects, missed.tolist(), strict=True)],
        [replace(shape, missed=wrong) for shape, wrong in zip(predictions, false.tolist(), strict=True)],
    )


def mistakes(
    boxes: np.ndarray, labels: np.ndarray, crowds: np.ndarray, found: np.ndarray, found_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which objects [G] were missed and which predictions [D] are false, by the rule of `judged`, both bool.

    Args:
        boxes: [G, 4] of the objects.
        labels: [G].
        crowds: [G] bool.
        found: [D, 4] boxes of the predictions, best first.
        found_labels: [D].
    """
    taken, false = np.zeros(len(boxes), bool), np.zeros(len(found), bool)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for place, (box, label) in enumerate(zip(found, found_labels, strict=True)):
        shared = (np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])).clip(0).prod(1)
        shared[labels != label] = 0
        area = (box[2:] - box[:2]).prod()
        iou = np.where(taken | crowds, 0, shared / np.maximum(areas + area - shared, 1e-9))
        if len(iou) and iou.max() >= FOUND_IOU:
            taken[iou.argmax()] = True
        else:
            false[place] = not (shared[crowds] / max(area, 1e-9) >= IN_CROWD).any()
    return ~taken & ~crowds, false


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
