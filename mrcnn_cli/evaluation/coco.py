"""COCO's average precision and recall of boxes, masks and keypoints, computed by pycocotools' own COCOeval."""

import contextlib
import copy
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_cli.errors import UserError
from mrcnn_cli.structures import Detections, Size

Metrics = dict[str, Any]

IOU_TYPES = {"box": "bbox", "mask": "segm", "keypoint": "keypoints"}


def results(
    detections: Detections,
    image_id: int,
    category_ids: Sequence[int],
    file_name: str,
    keypoint_offset: float = 0.0,
) -> list[dict[str, Any]]:
    """The detections of one image as entries of a COCO results list, ready for `json.dump`.

    Args:
        detections: best first, in pixels of the picture on disk.
        image_id: the id of the picture in the annotation file.
        category_ids: the category id of each label, so that label k is `category_ids[k]`.
        file_name: the picture's name; no part of the format, but people look for it.
        keypoint_offset: from the coordinates of keypoints in the annotation file to ours, in pixels.

    Returns:
        Per detection `image_id`, `category_id`, `bbox` [x, y, width, height], `score`, `segmentation` (a run-length
        encoding with its counts as a string; only of a model with masks), `keypoints` [x, y, score, ...] (only of a
        model with keypoints; the score stands where COCO's visibility does) and `file_name`.
    """
    corners = detections.boxes.detach().float().cpu()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).numpy()
    scores = detections.scores.detach().float().cpu().numpy()
    points = None
    if detections.keypoints is not None:
        shift = detections.keypoints.new_tensor([keypoint_offset, keypoint_offset, 0.0])
        points = (detections.keypoints.detach() - shift).float().cpu().flatten(1).numpy()
    entries = []
    for index, label in enumerate(detections.labels.tolist()):
        entry = {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [_shortest(value) for value in boxes[index]],
            "score": _shortest(scores[index]),
        }
        if detections.masks is not None:
            entry["segmentation"] = _as_text(detections.masks[index])
        if points is not None:
            entry["keypoints"] = [_shortest(value) for value in points[index]]
        entries.append({**entry, "file_name": file_name})
    return entries


def detections(
    entries: Sequence[dict[str, Any]], category_ids: Sequence[int], size: Size, keypoint_offset: float = 0.0
) -> Detections:
    """What `results` made entries of, to be drawn.

    Args:
        entries: of one image.
        category_ids: the category id of each label.
        size: (height, width) of the picture.
        keypoint_offset: as for `results`.
    """
    labels = {category: label for label, category in enumerate(category_ids)}
    boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks, keypoints = None, None
    if entries and "segmentation" in entries[0]:
        masks = [{**entry["segmentation"], "counts": entry["segmentation"]["counts"].encode()} for entry in entries]
    if entries and "keypoints" in entries[0]:
        keypoints = torch.tensor([entry["keypoints"] for entry in entries], dtype=torch.float32).unflatten(1, (-1, 3))
        keypoints += torch.tensor([keypoint_offset, keypoint_offset, 0.0])
    return Detections(
        boxes=boxes,
        scores=torch.tensor([entry["score"] for entry in entries]),
        labels=torch.tensor([labels[entry["category_id"]] for entry in entries], dtype=torch.int64),
        size=size,
        masks=masks,
        keypoints=keypoints,
    )


def truth_detections(
    truth: dict[str, Any], image_id: int, category_ids: Sequence[int], keypoint_offset: float = 0.0
) -> Detections:
    """The annotated objects of one image as if they had been detected with certainty, to be drawn beside detections.

    Crowd regions are left out. There are no masks where one of the objects has none; keypoints that are not labelled
    have the score 0.

    Args:
        truth: the content of a COCO annotation file.
        image_id: an id in `truth["images"]`.
        category_ids: the category id of each label; objects of other categories are left out.
        keypoint_offset: from the coordinates of keypoints in the annotation file to ours, in pixels.
    """
    image = next((image for image in truth["images"] if image["id"] == image_id), None)
    if image is None:
        raise UserError(f"image {image_id}: not in the annotation file; give an id from its 'images'")
    labels = {category: label for label, category in enumerate(category_ids)}
    objects = [
        annotation
        for annotation in truth["annotations"]
        if annotation["image_id"] == image_id
        and annotation["category_id"] in labels
        and not annotation.get("iscrowd", 0)
    ]
    size = (int(image["height"]), int(image["width"]))
    masks = [_encode(annotation.get("segmentation"), size) for annotation in objects]
    boxes = np.array([_box(*pair) for pair in zip(objects, masks, strict=True)], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    keypoints = None
    points = max((len(annotation.get("keypoints") or ()) for annotation in objects), default=0)
    if points:
        rows = [annotation.get("keypoints") or [0] * points for annotation in objects]
        keypoints = torch.tensor(rows, dtype=torch.float32).reshape(len(objects), -1, 3)
        keypoints += torch.tensor([keypoint_offset, keypoint_offset, 0.0])
        keypoints[..., 2] = (keypoints[..., 2] > 0).float()
    return Detections(
        boxes=torch.from_numpy(boxes),
        scores=torch.ones(len(objects)),
        labels=torch.tensor([labels[annotation["category_id"]] for annotation in objects], dtype=torch.int64),
        size=size,
        masks=[mask for mask in masks if mask is not None] if all(mask is not None for mask in masks) else None,
        keypoints=keypoints,
    )


def evaluate(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    masks: bool,
    max_detections: int = 100,
    keypoint_sigmas: Sequence[float] | None = None,
    max_keypoint_detections: int = 20,
) -> Metrics:
    """COCO's metrics of a results list, equal to those that pycocotools prints (https://cocodataset.org/#detection-eval).

    What annotation files in the wild leave out (`area`, `iscrowd`, `bbox` beside a mask) is filled in, and objects are
    numbered anew, since COCOeval takes an object whose id is 0 for one that was missed. An object without a usable
    mask counts in the mask metrics neither as truth nor against a detection that lies on it.

    Args:
        truth: the content of a COCO annotation file; it is not changed.
        results: a COCO results list; entries with `bbox`, `segmentation` or both. It is not changed.
        masks: whether to evaluate masks too; left aside where the truth has no masks at all.
        max_detections: only so many detections of each class in an image count, best first.
        keypoint_sigmas: per keypoint, how near is near (see `evaluation.keypoints`), to evaluate keypoints too; None:
            they are not. Left aside where the truth has no labelled keypoint.
        max_keypoint_detections: as `max_detections`, for keypoints; 20 is COCO's.

    Returns:
        For `box` and, with masks, for `mask`, numbers from 0 to 1 (None where there is no such truth): `box_ap` (mean
        over the IoU thresholds .50:.05:.95), `box_ap50`, `box_ap75`, `box_ap_small`, `box_ap_medium`, `box_ap_large`
        (areas below 32 ^ 2, up to 96 ^ 2 and above), `box_ar1`, `box_ar10`, `box_ar100` (with `max_detections` in place
        of 100, and none above it), `box_ar_small`, `box_ar_medium`, `box_ar_large`. With keypoints also `keypoint_ap`,
        `keypoint_ap50`, `keypoint_ap75` (over the same thresholds of object keypoint similarity), `keypoint_ar20` and
        both for medium and large objects, and `keypoint_sigmas`. Then `classes`, by name
        {"box_ap": ..., "mask_ap": ...}, and the counts `images`, `objects` (crowds left out) and `detections`.

    Raises:
        UserError: the truth is not a COCO annotation file, or the results belong to another one.
    """
    _check(truth, results, max_detections)
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    objects = [_object(annotation, number, sizes) for number, annotation in enumerate(truth["annotations"], start=1)]
    kinds = ["box"]
    if masks and any(annotation["mask"] is not None for annotation in objects):
        kinds.append("mask")
        if any("segmentation" not in entry for entry in results):
            raise UserError("results: an entry has no 'segmentation'; evaluate a model with masks, or boxes only")
    if keypoint_sigmas is not None and any(annotation["num_keypoints"] for annotation in objects):
        kinds.append("keypoint")
        _check_keypoints(objects, results, len(keypoint_sigmas))
    metrics: Metrics = {}
    names = class_names(truth["categories"])
    classes: dict[str, dict[str, float | None]] = {name: {} for name in names.values()}
    for kind in kinds:
        limit = max_keypoint_detections if kind == "keypoint" else max_detections
        evaluator = _run(truth, objects, results, kind, limit, keypoint_sigmas)
        metrics |= {f"{kind}_{key}": value for key, value in _summary(evaluator).items()}
        for index, category in enumerate(evaluator.params.catIds):
            classes[names[category]][f"{kind}_ap"] = _mean(evaluator.eval["precision"][:, :, index, 0, -1])
    if "keypoint" in kinds and keypoint_sigmas is not None:
        metrics["keypoint_sigmas"] = list(keypoint_sigmas)
    return metrics | {
        "classes": classes,
        "images": len(sizes),
        "objects": sum(not annotation["iscrowd"] for annotation in objects),
        "detections": len(results),
    }


def _check(truth: dict[str, Any], results: list[dict[str, Any]], max_detections: int) -> None:
    for key in ("images", "annotations", "categories"):
        if not isinstance(truth, dict) or not isinstance(truth.get(key), list):
            raise UserError(f"truth: has no list '{key}'; give a COCO annotation file")
    if max_detections < 1:
        raise UserError(f"max_detections: must be at least 1, got {max_detections}")
    known = {image["id"] for image in truth["images"]}
    for annotation in truth["annotations"]:
        if annotation["image_id"] not in known:
            raise UserError(f"truth: an object lies in image {annotation['image_id']}, which 'images' does not list")
    for entry in results:
        if entry["image_id"] not in known:
            raise UserError(
                f"results: image {entry['image_id']} is not in the annotation file; "
                "evaluate against the file whose images were predicted"
            )


def _check_keypoints(objects: list[dict[str, Any]], results: list[dict[str, Any]], count: int) -> None:
    for annotation in objects:
        if annotation["num_keypoints"] and len(annotation["keypoints"]) != 3 * count:
            raise UserError(f"truth: an object has {len(annotation['keypoints'])} numbers for its {count} keypoints")
    for entry in results:
        if len(entry.get("keypoints") or ()) != 3 * count:
            raise UserError(
                f"results: an entry has no 'keypoints' of {count} points; evaluate a model with as many keypoints"
            )


def _run(
    truth: dict[str, Any],
    objects: list[dict[str, Any]],
    results: list[dict[str, Any]],
    kind: str,
    max_detections: int,
    keypoint_sigmas: Sequence[float] | None,
) -> COCOeval:
    """COCOeval after `accumulate`; it annotates what it is given, so it is given copies of its own."""
    answers = [_truth_of_kind(annotation, kind) for annotation in objects]
    claims = [_claim(entry, kind, number) for number, entry in enumerate(results, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(_indexed(truth, answers), _indexed(truth, claims), IOU_TYPES[kind])
        limits = () if kind == "keypoint" else (1, 10)  # as COCO has it
        evaluator.params.maxDets = [count for count in limits if count < max_detections] + [max_detections]
        if kind == "keypoint":
            evaluator.params.kpt_oks_sigmas = np.array(keypoint_sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def _summary(evaluator: COCOeval) -> dict[str, float | None]:
    """COCO's twelve numbers, of keypoints eight.

    `summarize` would look for exactly 100 detections, which a crowded image may exceed.
    """
    precision = evaluator.eval["precision"]  # [IoU thresholds, recalls, classes, areas, limits], -1: no such truth
    recall = evaluator.eval["recall"]  # [IoU thresholds, classes, areas, limits]
    thresholds, areas = evaluator.params.iouThrs, evaluator.params.areaRngLbl  # the first area is "all"
    numbers = {"ap": _mean(precision[:, :, :, 0, -1])}
    for name, threshold in (("ap50", 0.5), ("ap75", 0.75)):
        numbers[name] = _mean(precision[np.isclose(thresholds, threshold), :, :, 0, -1])
    for index, area in enumerate(areas[1:], start=1):
        numbers[f"ap_{area}"] = _mean(precision[:, :, :, index, -1])
    for index, limit in enumerate(evaluator.params.maxDets):
        numbers[f"ar{limit}"] = _mean(recall[:, :, 0, index])
    for index, area in enumerate(areas[1:], start=1):
        numbers[f"ar_{area}"] = _mean(recall[:, :, index, -1])
    return numbers


def _mean(values: np.ndarray) -> float | None:
    present = values[values > -1]
    return float(present.mean()) if present.size else None


def class_names(categories: Iterable[dict[str, Any]]) -> dict[int, str]:
    """A name for each category id; a name that occurs twice is told apart by its id."""
    names: dict[int, str] = {}
    for category in sorted(categories, key=lambda category: category["id"]):
        name = str(category.get("name", category["id"]))
        names[category["id"]] = f"{name} ({category['id']})" if name in names.values() else name
    return names


def _indexed(truth: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": truth["images"],
        "categories": copy.deepcopy(truth["categories"]),
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _object(annotation: dict[str, Any], number: int, sizes: dict[int, tuple[int | None, int | None]]) -> dict[str, Any]:
    """What COCOeval reads of a true object, complete, with its mask as a run-length encoding or None."""
    size = sizes[annotation["image_id"]]
    mask = _encode(annotation.get("segmentation"), size)
    box = _box(annotation, mask)
    area = annotation.get("area")
    if area is None:
        area = float(run_lengths.area(mask)) if mask is not None else box[2] * box[3]
    keypoints = annotation.get("keypoints") or []
    return {
        "id": number,
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": box,
        "area": area,
        "iscrowd": int(annotation.get("iscrowd") or 0),
        "mask": mask,
        "keypoints": keypoints,
        "num_keypoints": sum(visibility > 0 for visibility in keypoints[2::3]),
    }


def _truth_of_kind(annotation: dict[str, Any], kind: str) -> dict[str, Any]:
    entry = {key: value for key, value in annotation.items() if key != "mask"}
    if kind == "mask":
        mask = annotation["mask"]
        if mask is None:  # like a crowd: whoever detects it is neither right nor wrong
            x, y, width, height = annotation["bbox"]
            corners = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            entry |= {"iscrowd": 1, "segmentation": corners}
        else:
            entry["segmentation"] = mask
    return entry


def _claim(entry: dict[str, Any], kind: str, number: int) -> dict[str, Any]:
    """What COCOeval reads of a detection. As in COCO.loadRes, the area that sorts it into small, medium or large is
    that of the box when boxes are evaluated, that of the mask when masks are, and that of the box around the keypoints
    when they are."""
    claim = {
        "id": number,
        "image_id": entry["image_id"],
        "category_id": entry["category_id"],
        "score": entry["score"],
        "iscrowd": 0,
    }
    if kind == "keypoint":
        x, y = entry["keypoints"][0::3], entry["keypoints"][1::3]
        width, height = max(x) - min(x), max(y) - min(y)
        box = [min(x), min(y), width, height]
        return claim | {"keypoints": entry["keypoints"], "bbox": box, "area": width * height}
    if kind == "mask" or not entry.get("bbox"):
        mask = entry.get("segmentation")
        if not isinstance(mask, dict):
            raise UserError(
                "results: an entry has neither 'bbox' nor a run-length encoded 'segmentation'; give a COCO results list"
            )
        return claim | {
            "segmentation": mask,
            "bbox": entry.get("bbox") or run_lengths.toBbox(mask).tolist(),
            "area": float(run_lengths.area(mask)),
        }
    return claim | {"bbox": entry["bbox"], "area": entry["bbox"][2] * entry["bbox"][3]}


def _encode(segmentation: Any, size: tuple[int | None, int | None]) -> dict[str, Any] | None:
    """The run-length encoding of an annotated mask; None where nothing usable is annotated."""
    if isinstance(segmentation, dict) and segmentation.get("counts"):
        if isinstance(segmentation["counts"], list):
            return run_lengths.frPyObjects(segmentation, *segmentation["size"])
        return segmentation
    if isinstance(segmentation, list):
        # fewer than three corners enclose nothing, and pycocotools reads four numbers as a box
        polygons = [polygon for polygon in segmentation if isinstance(polygon, list) and len(polygon) >= 6]
        if polygons and None in size:
            raise UserError(
                "truth: an image with polygons has no 'height' and 'width'; add them to its entry in 'images'"
            )
        if polygons:
            return run_lengths.merge(run_lengths.frPyObjects(polygons, *size))
    return None


def _box(annotation: dict[str, Any], mask: dict[str, Any] | None) -> list[float]:
    if annotation.get("bbox"):
        return list(annotation["bbox"])
    if mask is None:
        raise UserError(f"truth: object {annotation.get('id')} has neither 'bbox' nor a mask; give it one or remove it")
    return run_lengths.toBbox(mask).tolist()


def _shortest(value: np.float32) -> float:
    """The shortest decimal that is this float32 and no other: "12.3", not "12.300000190734863"."""
    return float(str(value))


def _as_text(mask: dict[str, Any]) -> dict[str, Any]:
    counts = mask["counts"]
    return {
        "size": [int(length) for length in mask["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }
