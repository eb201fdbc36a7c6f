"""LabelMe's JSON file for each image (https://github.com/wkentaro/labelme): polygons, boxes, circles and bitmaps."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.data.coco import Repairs
from mrcnn_cli.data.formats.collection import (
    Collection,
    Instance,
    Picture,
    encoding_instance,
    mask_instance,
    merged,
    picture_names,
    polygon_instance,
    to_bitmap,
)
from mrcnn_cli.data.formats.source import Reading, Source
from mrcnn_cli.data.image import mask_png, read_mask
from mrcnn_cli.data.outlines import FAR, ellipse
from mrcnn_cli.errors import UserError

VERSION = "5.5.0"  # of LabelMe, whose form is written: the first with bitmaps was 5.3
NO_AREA = ("point", "points", "line", "linestrip")


def recognize(source: Source) -> str | None:
    for path in source.below(".json")[:20]:
        if _is_labelme(source, path):
            return f"{path.name} has LabelMe's shapes and imagePath"
    return None


def _is_labelme(source: Source, path: Path) -> bool:
    try:
        content = source.json(path)
    except UserError:
        return False
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read(reading: Reading) -> Iterator[Picture]:
    """The images that have a JSON file; shapes of one class and group are one object."""
    source = reading.source
    for path in source.below(".json"):
        with reading.guard(path):
            content = source.json(path)
            if not isinstance(content, dict) or "shapes" not in content:
                reading.notes.note("JSON file without shapes", "left out", str(path))
                continue
            picture = _picture(reading, content, path)
            for place, (label, shapes) in enumerate(_grouped(content["shapes"]), 1):
                with reading.guard(path, f"shape {place} ({label}): "):
                    instance = _instance(reading, label, shapes, picture)
                    if instance is not None:
                        picture.instances.append(instance)
            yield picture


def _picture(reading: Reading, content: dict[str, Any], path: Path) -> Picture:
    split = reading.source.split_of(path)
    name = content.get("imagePath") or f"{path.stem}.jpg"
    height, width = content.get("imageHeight"), content.get("imageWidth")
    found = reading.source.find_image(name, path.parent, split) or reading.source.find_image(path.stem, path.parent)
    if found is None and content.get("imageData") and height and width:
        embedded = path.with_name(Path(name.replace("\\", "/")).name)
        return Picture(embedded, int(height), int(width), split=split, embedded=lambda: _embedded(path))
    image = found or reading.image(name, path.parent, split)
    size = (int(height), int(width)) if height and width else reading.size(image)
    flags = {key: value for key, value in (content.get("flags") or {}).items() if value}
    return Picture(image, *size, split=split, attributes={"flags": flags} if flags else {})


def _embedded(path: Path) -> bytes:
    return base64.b64decode(json.loads(path.read_bytes())["imageData"])


def _grouped(shapes: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[Any, list[dict[str, Any]]] = {}
    for place, shape in enumerate(shapes):
        group = shape.get("group_id")
        key = (shape["label"], group) if group is not None else place
        groups.setdefault(key, []).append(shape)
    return [(str(members[0]["label"]), members) for members in groups.values()]


def _instance(reading: Reading, label: str, shapes: list[dict[str, Any]], picture: Picture) -> Instance | None:
    attributes: dict[str, Any] = {}
    parts = []
    for shape in shapes:
        attributes |= {key: value for key, value in (shape.get("flags") or {}).items() if value}
        attributes |= shape.get("attributes") or {}
        for key in ("description", "difficult"):
            if shape.get(key):
                attributes[key] = shape[key]
        if shape.get("shape_type") in NO_AREA:
            kind = shape["shape_type"]
            reading.notes.note(f"shape without an area ({kind})", "left out", f"{label} in {picture.path}")
        else:
            parts.append(_part(label, shape, picture))
    if not parts:
        return None
    instance = merged(parts, picture.height, picture.width)
    instance.crowd = bool(attributes.pop("iscrowd", False))
    instance.attributes = attributes
    return instance


def _part(label: str, shape: dict[str, Any], picture: Picture) -> Instance:
    points = np.asarray(shape["points"], np.float64).reshape(-1, 2)
    if not (np.abs(points) < FAR).all():  # NaN is not smaller either
        raise ValueError("has points that are not finite or far outside of the image")
    kind = shape.get("shape_type") or "polygon"
    if kind == "mask":
        left, top = (round(value) for value in points.min(axis=0))
        if left < 0 or top < 0:
            raise ValueError("its mask begins outside of the image")
        pixels = read_mask(base64.b64decode(shape["mask"]))
        mask = np.zeros((picture.height, picture.width), bool)
        room = mask[top : top + pixels.shape[0], left : left + pixels.shape[1]]
        room[:] = pixels[: room.shape[0], : room.shape[1]]
        found = mask_instance(label, mask)
        if found is None:
            raise ValueError("its mask has no pixel")
        return found
    if kind == "rectangle":
        if len(points) not in (2, 4):
            raise ValueError(f"a rectangle has 2 points, not {len(points)}")
        (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return Instance(label, (x1, y1, x2, y2))
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        x, y = points[0].tolist()
        return polygon_instance(label, [ellipse(x, y, radius, radius)])
    return polygon_instance(label, [points.reshape(-1).tolist()])


def write(collection: Collection, losses: Repairs) -> Iterator[tuple[str, bytes | Picture]]:
    """<split>/ with each image and its JSON file; parts of one object share a group, run lengths become bitmaps."""
    for split, pictures in collection.splits.items():
        for picture, name in zip(pictures, picture_names(pictures), strict=True):
            yield f"{split}/{name}", picture
            shapes: list[dict[str, Any]] = []
            for group, instance in enumerate(picture.instances, 1):
                shapes += _shapes(instance, group, picture, losses)
            content: dict[str, Any] = {
                "version": VERSION,
                "flags": {},
                "shapes": shapes,
                "imagePath": name,
                "imageData": None,
                "imageHeight": picture.height,
                "imageWidth": picture.width,
            }
            yield f"{split}/{Path(name).stem}.json", json.dumps(content, indent=1).encode()


def _shapes(instance: Instance, group: int, picture: Picture, losses: Repairs) -> list[dict[str, Any]]:
    where = f"{instance.label} in {picture.path}"
    if instance.label is None:
        losses.note("region to ignore whatever the class", "left out", where)
        return []
    if instance.keypoints is not None:
        losses.note("object with keypoints", "written without them", where)
    shape: dict[str, Any] = {"label": instance.label, "group_id": None, "flags": {}, "description": ""}
    if instance.crowd:
        shape["flags"] = {"iscrowd": True}
    if instance.attributes:
        shape["attributes"] = instance.attributes
    x1, y1, x2, y2 = instance.box
    if instance.segmentation is None:
        return [shape | {"shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]}]
    if isinstance(instance.segmentation, dict):
        own = encoding_instance(None, instance.segmentation)
        mask = to_bitmap(instance.segmentation, picture.height, picture.width)
        if own is None:
            losses.note("object whose mask has no pixel", "left out", where)
            return []
        left, top, right, bottom = map(round, own.box)
        code = base64.b64encode(mask_png(mask[top:bottom, left:right])).decode()
        corners = [[left, top], [right - 1, bottom - 1]]  # the last pixel is inside
        shapes = [shape | {"shape_type": "mask", "points": corners, "mask": code}]
    else:
        own = polygon_instance(None, instance.segmentation)
        if len(instance.segmentation) > 1:
            shape["group_id"] = group
        shapes = [
            shape | {"shape_type": "polygon", "points": np.reshape(polygon, (-1, 2)).tolist()}
            for polygon in instance.segmentation
        ]
    if max(abs(a - b) for a, b in zip(own.box, instance.box, strict=True)) > 1:
        losses.note("object whose box is not that of its mask", "written with its mask only", where)
    return shapes
