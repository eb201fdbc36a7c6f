"""CVAT's XML for images, versions 1.0 and 1.1 (https://docs.cvat.ai/docs/dataset_management/formats/format-cvat)."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from mrcnn_cli.data.formats.collection import Instance, Picture, mask_instance, merged, polygon_instance
from mrcnn_cli.data.formats.source import Reading, Source, number, parse_xml, split_word
from mrcnn_cli.data.outlines import ellipse
from mrcnn_cli.errors import UserError

SHAPES = ("box", "polygon", "mask", "ellipse")


def recognize(source: Source) -> str | None:
    found = next(iter(_files(source)), None)
    return f"{found[0].name} has CVAT's <annotations>" if found else None


def _files(source: Source) -> Iterator[tuple[Path, ElementTree.Element]]:
    paths = source.below(".xml")
    for path in paths[:20] if len(paths) > 200 else paths:
        try:
            root = parse_xml(path)
        except UserError:
            continue
        if root.tag == "annotations" and (root.find("image") is not None or root.find("track") is not None):
            yield path, root


def read(reading: Reading) -> Iterator[Picture]:
    """The images of all files, those without shapes too; shapes of one class and group are one object."""
    for path, root in _files(reading.source):
        for entry in root.iterfind("meta//labels/label/name"):
            if entry.text and entry.text not in reading.classes:
                reading.classes.append(entry.text)
        for track in root.iterfind("track"):
            what = "track of a video"
            reading.notes.note(what, "left out: export 'CVAT for images'", f"{track.get('label')} in {path}")
        for entry in root.iterfind("image"):
            with reading.guard(path, f"image {entry.get('name')}: "):
                yield _picture(reading, entry, path)


def _picture(reading: Reading, entry: ElementTree.Element, path: Path) -> Picture:
    subset = entry.get("subset")
    split = (split_word(subset) or subset.lower()) if subset else reading.source.split_of(path)
    image = reading.image(entry.attrib["name"], path.parent, split)
    picture = Picture(image, int(entry.attrib["height"]), int(entry.attrib["width"]), split=split)
    groups: dict[Any, list[Instance]] = {}
    for place, shape in enumerate(entry):
        if shape.tag in ("tag", "attribute"):
            continue
        where = f"image {entry.get('name')}, shape {place + 1} ({shape.tag}): "
        with reading.guard(path, where):
            if shape.tag not in SHAPES:
                reading.notes.note(
                    f"shape without an area ({shape.tag})", "left out", f"{shape.get('label')} in {image}"
                )
                continue
            instance = _instance(shape, picture)
            group = shape.get("group_id") or "0"
            key = (instance.label, group) if group != "0" else place
            groups.setdefault(key, []).append(instance)
    for members in groups.values():
        picture.instances.append(merged(members, picture.height, picture.width))
    return picture


def _instance(shape: ElementTree.Element, picture: Picture) -> Instance:
    label = shape.get("label")
    if not label:
        raise ValueError("has no label")
    attributes: dict[str, Any] = {
        child.attrib["name"]: (child.text or "").strip() for child in shape.iterfind("attribute")
    }
    if shape.get("occluded") == "1":
        attributes["occluded"] = True
    values = shape.attrib
    angle = math.radians(number(values.get("rotation", "0")))
    if shape.tag == "box":
        x1, y1, x2, y2 = (number(values[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        if angle == 0:
            return Instance(label, (x1, y1, x2, y2), attributes=attributes)
        return polygon_instance(label, [_turned(x1, y1, x2, y2, angle)], attributes=attributes)
    if shape.tag == "polygon":
        polygon = [number(value) for point in values["points"].split(";") for value in point.split(",")]
        return polygon_instance(label, [polygon], attributes=attributes)
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (number(values[key]) for key in ("cx", "cy", "rx", "ry"))
        return polygon_instance(label, [ellipse(cx, cy, rx, ry, angle)], attributes=attributes)
    return _mask(label, values, picture, attributes)


def _turned(x1: float, y1: float, x2: float, y2: float, angle: float) -> list[float]:
    """A box turned about its centre, as a polygon."""
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    cos, sin = math.cos(angle), math.sin(angle)
    corners = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
    return [
        value for a, b in corners for value in (x + (a - x) * cos - (b - y) * sin, y + (a - x) * sin + (b - y) * cos)
    ]


def _mask(label: str, values: dict[str, str], picture: Picture, attributes: dict[str, Any]) -> Instance:
    """Run lengths along the rows of the mask's own rectangle, background first."""
    left, top, width, height = (int(number(values[key])) for key in ("left", "top", "width", "height"))
    runs = np.array([int(word) for word in values["rle"].split(",")])
    if (runs < 0).any() or runs.sum() != width * height:
        raise ValueError(f"its runs add up to {runs.sum()} pixels, its rectangle is {width} x {height}")
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    mask = np.zeros((picture.height, picture.width), bool)
    if left < 0 or top < 0 or left + width > picture.width or top + height > picture.height:
        raise ValueError("its rectangle leaves the image")
    mask[top : top + height, left : left + width] = pixels
    found = mask_instance(label, mask, attributes=attributes)
    if found is None:
        raise ValueError("its mask has no pixel")
    return found
