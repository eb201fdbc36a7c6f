"""YOLO's text files: a line for each object, boxes or polygons in parts of the image's size.

Darknet's obj.data and obj.names, the data.yaml of later versions (https://docs.ultralytics.com/datasets/segment) and
bare folders of labels are read.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrcnn_cli.config import Config
from mrcnn_cli.data.coco import Repairs
from mrcnn_cli.data.formats.collection import (
    Collection,
    Instance,
    Picture,
    mask_iou,
    picture_names,
    polygon_instance,
    to_bitmap,
)
from mrcnn_cli.data.formats.source import Reading, Source, number
from mrcnn_cli.data.image import SUFFIXES
from mrcnn_cli.data.outlines import as_polygon, as_ring, joined, outlines, signed_area

NAMES = ("obj.names", "classes.txt", "_darknet.labels", "classes.names")
# A list of classes or of images beside the labels.
NO_LABELS = {"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt", "notes.txt", "license.txt"}
LINE = re.compile(r"\s*\d+(\s+[-+]?[\d.]+([eE][-+]?\d+)?){4,}\s*")


class Options(Config):
    labels: str = "labels"  # the folder that stands for "images" in the labels' paths
    pose: int = 0  # keypoints of each object, x, y and visibility, behind its box; data.yaml's kpt_shape says so too


def recognize(source: Source) -> str | None:
    for path in source.below(".yaml", ".yml", ".data"):
        found = _settings(path)
        if "names" in found and found.keys() & {"train", "val", "path", "valid"}:
            return f"{path.name} names classes and images"
    for path in source.below(".txt"):
        if path.name.lower() not in NO_LABELS:
            lines = _lines(path)
            if lines and all(LINE.fullmatch(line) for line in lines[:20]) and source.pictures:
                return f"{path.name} has lines of a class and numbers from 0 to 1"
    return None


def read(reading: Reading) -> Iterator[Picture]:
    """All pictures; those without a label file have no objects, as YOLO takes them."""
    source = reading.source
    settings, root = _all_settings(source)
    names = _names(reading, settings, root)
    reading.classes += [name for _, name in sorted(names.items())]
    shape = settings.get("kpt_shape") or ([reading.options.pose, 3] if reading.options.pose else None)
    labels = {path.stem: path for path in source.below(".txt") if path.name.lower() not in NO_LABELS}
    for image, split in _images(reading, settings, root, labels):
        if image in reading.missing:
            continue
        with reading.guard(image):
            height, width = reading.size(image)
            picture = Picture(image, height, width, split=split)
            path = _label_path(image, reading.options.labels, labels)
            if path is None:
                reading.notes.note("image without a label file", "taken as background", str(image))
            else:
                for place, line in enumerate(_lines(path), 1):
                    with reading.guard(path, f"line {place}: "):
                        picture.instances.append(_instance(line, picture, names, shape))
            yield picture


def _instance(line: str, picture: Picture, names: dict[int, str], shape: Any) -> Instance:
    first, *rest = line.split()
    values = [number(word) for word in rest]
    label = names.setdefault(int(first), f"class{int(first)}")
    if any(abs(value) > 2 for value in (values[:4] if shape else values)):
        raise ValueError(f"{line[:60]!r} has numbers that are no parts of the image's size; divide pixels by it")
    width, height = picture.width, picture.height
    if shape is None and len(values) > 5:
        if len(values) % 2:
            raise ValueError(f"{line[:60]!r} has {len(values)} coordinates, which make no points")
        polygon = [value * (height if place % 2 else width) for place, value in enumerate(values)]
        return polygon_instance(label, [polygon])
    if len(values) < 4:
        raise ValueError(f"{line[:60]!r} has fewer than 4 numbers behind the class")
    x, y, w, h = values[:4]
    box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    keypoints = None
    if shape is not None:
        count, size = shape
        if len(values) != 4 + count * size:
            raise ValueError(f"has {len(values)} numbers behind the class, not 4 and {count} x {size} of keypoints")
        keypoints = []
        for k in range(4, len(values), size):
            visible = values[k + 2] if size > 2 else 2.0
            keypoints += [values[k] * width, values[k + 1] * height, visible]
    return Instance(label, box, keypoints=keypoints)


def _images(
    reading: Reading, settings: dict[str, Any], root: Path, labels: dict[str, Path]
) -> Iterator[tuple[Path, str | None]]:
    """The images with their splits: of the lists and folders that the settings name, else all that are there."""
    source = reading.source
    named = False
    for key, split in (("train", "train"), ("val", "val"), ("valid", "val"), ("test", "test")):
        entries = settings.get(key) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            place = _place(root, entry)
            if place is None:
                if key in ("train", "val", "valid"):
                    reading.faults.append(f"{root / entry}: named as '{key}' but does not exist; correct its path")
                continue
            named = True
            if place.is_dir():
                inside = source.pictures_in(place)
                yield from ((path, split) for path in inside)
                if not inside:
                    reading.faults.append(f"{place}: named as '{key}' but has no images")
            else:
                yield from ((reading.image(name, place.parent, split), split) for name in _lines(place))
    if named:
        return
    lists = [path for path in source.below(".txt") if path.name.lower() in NO_LABELS and "class" not in path.name]
    for path in lists:
        names = [name for name in _lines(path) if Path(name.replace("\\", "/")).suffix.lower() in SUFFIXES]
        named |= bool(names)
        own = source.split_of(path, by_name=True)
        yield from ((reading.image(name, path.parent, own), own) for name in names)
    if not named:
        yield from ((path, source.split_of(path)) for path in source.pictures)


def _place(root: Path, entry: str) -> Path | None:
    """Where a setting's path lies; exporters write it from several points of view."""
    for place in (root / entry, root / re.sub(r"^(\.\./)+", "", entry), root / Path(entry).name):
        if place.exists():
            return Path(os.path.normpath(place))
    return None


def _label_path(image: Path, folder: str, labels: dict[str, Path]) -> Path | None:
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            path = Path(*parts[:place], folder, *parts[place + 1 :]).with_suffix(".txt")
            if path.is_file():
                return path
            break
    beside = image.with_suffix(".txt")
    if beside.is_file():
        return beside
    return labels.get(image.stem)


def _names(reading: Reading, settings: dict[str, Any], root: Path) -> dict[int, str]:
    found = settings.get("names")
    if isinstance(found, dict):
        return {int(key): str(name) for key, name in found.items()}
    if isinstance(found, str):
        place = _place(root, found)
        found = _lines(place) if place is not None else None
    if not found:
        files = {path.name: path for path in reading.source.below(".txt", ".names", ".labels")}
        path = next((files[name] for name in NAMES if name in files), None)
        found = _lines(path) if path is not None else reading.given
    return dict(enumerate(map(str, found)))


def _all_settings(source: Source) -> tuple[dict[str, Any], Path]:
    """Of data.yaml or obj.data, and the folder that their paths start from."""
    for path in source.below(".yaml", ".yml", ".data"):
        found = _settings(path)
        if "names" in found:
            root = path.parent / str(found.get("path") or ".")
            return found, root if root.is_dir() else path.parent
    return {}, source.root


def _settings(path: Path) -> dict[str, Any]:
    """The few forms of YAML that data.yaml has (and the lines "key = value" of obj.data): scalars, lists, one map."""
    found: dict[str, Any] = {}
    key = ""
    for line in _lines(path):
        text = re.sub(r"(^|\s)#.*$", "", line)
        if re.match(r"\S", text) and (match := re.fullmatch(r"([\w.-]+)\s*[:=]\s*(.*)", text.rstrip())):
            key, value = match[1], match[2]
            found[key] = _value(value) if value else None
        elif match := re.fullmatch(r"\s*-\s+(.*)", text.rstrip()):
            known = found.get(key)
            found[key] = [*(known if isinstance(known, list) else []), _scalar(match[1])]
        elif match := re.fullmatch(r"\s+['\"]?(\d+)['\"]?\s*:\s*(.+)", text.rstrip()):
            known = found.get(key)
            found[key] = {**(known if isinstance(known, dict) else {}), int(match[1]): _scalar(match[2])}
    return found


def _value(text: str) -> Any:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        words = [word for word in re.findall(r"'[^']*'|\"[^\"]*\"|[^,]+", text[1:-1]) if word.strip()]
        return [int(word) if word.strip().isdigit() else _scalar(word) for word in words]
    if text.startswith("{") and text.endswith("}"):
        pairs = (word.split(":", 1) for word in re.findall(r"(?:'[^']*'|\"[^\"]*\"|[^,])+", text[1:-1]))
        return {_scalar(key): _scalar(value) for key, value in pairs}
    return _scalar(text)


def _scalar(text: str) -> str:
    return text.strip().strip("'\"")


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def write(collection: Collection, losses: Repairs) -> Iterator[tuple[str, bytes | Picture]]:
    """data.yaml, images/<split>/ and labels/<split>/: polygons where any object has a mask, else boxes."""
    masks = collection.has_masks
    numbers = {name: number for number, name in enumerate(collection.classes)}
    lines = ["path: ."]
    for split, pictures in collection.splits.items():
        lines.append(f"{split}: images/{split}")
        for picture, name in zip(pictures, picture_names(pictures), strict=True):
            written = [_line(instance, picture, numbers, masks, losses) for instance in picture.instances]
            yield f"images/{split}/{name}", picture
            yield f"labels/{split}/{Path(name).stem}.txt", "".join(f"{line}\n" for line in written if line).encode()
    lines += ["names:", *(f"  {number}: {_quoted(name)}" for name, number in numbers.items())]
    yield "data.yaml", ("\n".join(lines) + "\n").encode()


def _line(instance: Instance, picture: Picture, numbers: dict[str, int], masks: bool, losses: Repairs) -> str | None:
    where = f"{instance.label} in {picture.path}"
    if instance.crowd or instance.label is None:
        losses.note("crowd or region to ignore", "left out: YOLO would take it for an object", where)
        return None
    if instance.attributes:
        losses.note("object with attributes", "written without them", where)
    if instance.keypoints is not None:
        losses.note("object with keypoints", "written without them", where)
    x1, y1, x2, y2 = instance.box
    width, height = picture.width, picture.height
    if not masks:
        values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
        return " ".join([str(numbers[instance.label]), *map(_part, values)])
    if instance.segmentation is None:
        losses.note("object without a mask beside others that have one", "written as the outline of its box", where)
        polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
    else:
        polygon = one_polygon(instance.segmentation, height, width)
        own = polygon_instance(instance.label, [polygon]).box
        if max(abs(a - b) for a, b in zip(own, instance.box, strict=True)) > 1:
            losses.note("object whose box is not that of its mask", "written with its mask only", where)
    values = [value / (height if place % 2 else width) for place, value in enumerate(polygon)]
    return " ".join([str(numbers[instance.label]), *map(_part, values)])


def one_polygon(segmentation: Any, height: int, width: int) -> list[float]:
    """One ring for an object of any number of parts and holes, which it goes around over bridges without width.

    Filled by the even-odd rule it has the pixels of the object.
    """
    if isinstance(segmentation, list):
        if len(segmentation) == 1:
            return segmentation[0]
        rings = [as_ring(polygon) for polygon in segmentation]
        ring = as_polygon(joined([ring if signed_area(ring) > 0 else ring[::-1] for ring in rings]))
        if mask_iou([ring], segmentation, height, width) >= 0.999:
            return ring
    outer, holes = outlines(to_bitmap(segmentation, height, width))  # of parts that overlap, or run lengths
    return as_polygon(joined(outer + holes))


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z][\w -]*", name) else "'" + name.replace("'", "''") + "'"


def _part(value: float) -> str:
    return repr(float(value))  # all digits: pycocotools rounds to fifths of a pixel, and ties would go another way
