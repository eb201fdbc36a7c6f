"""The VGG Image Annotator's JSON, versions 1 and 2 (https://www.robots.ox.ac.uk/~vgg/software/via)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrcnn_cli.config import Config
from mrcnn_cli.data.formats.collection import Instance, Picture, polygon_instance
from mrcnn_cli.data.formats.source import Reading, Source
from mrcnn_cli.data.outlines import ellipse
from mrcnn_cli.errors import UserError

LABEL_KEYS = ("class", "label", "name", "category", "type", "object")


class Options(Config):
    label_key: str = ""  # the region attribute that holds the class; by default the one that looks like it


def recognize(source: Source) -> str | None:
    found = _files(source)
    return f"{found[0].name} has VIA's regions" if found else None


def read(reading: Reading) -> Iterator[Picture]:
    """The images of all files, those without regions too."""
    for path in _files(reading.source):
        with reading.guard(path):
            entries = list(_entries(reading.source.json(path)).values())
            key = reading.options.label_key or _label_key(entries)
            named = reading.source.path == path
            split = None if named else reading.source.split_of(path, by_name=True)
            for entry in entries:
                with reading.guard(path, f"{entry.get('filename')}: "):
                    yield _picture(reading, entry, path, key, split)


def _files(source: Source) -> list[Path]:
    found = []
    paths = source.below(".json")
    for path in paths[:20] if len(paths) > 200 else paths:
        try:
            entries = _entries(source.json(path))
        except UserError:
            continue
        if entries and all(isinstance(entry, dict) and "regions" in entry for entry in entries.values()):
            found.append(path)
    return found


def _entries(content: Any) -> dict[str, Any]:
    """The images of an export, or of a whole project."""
    if not isinstance(content, dict):
        return {}
    return content.get("_via_img_metadata", content)


def _regions(entry: dict[str, Any]) -> list[dict[str, Any]]:
    regions = entry["regions"]
    return list(regions.values()) if isinstance(regions, dict) else regions  # version 1 numbers them by keys


def _label_key(entries: list[dict[str, Any]]) -> str | None:
    regions = [region for entry in entries for region in _regions(entry)]
    used = Counter(key for region in regions for key in region.get("region_attributes", {}))
    likely = [key for key in LABEL_KEYS if key in used]
    return likely[0] if likely else used.most_common(1)[0][0] if used else None


def _picture(reading: Reading, entry: dict[str, Any], path: Path, key: str | None, split: str | None) -> Picture:
    image = reading.image(str(entry["filename"]), path.parent, split)
    height, width = reading.size(image)
    more = {name: value for name, value in (entry.get("file_attributes") or {}).items() if value not in ("", {})}
    picture = Picture(image, height, width, split=split, attributes=more)
    for place, region in enumerate(_regions(entry), 1):
        with reading.guard(path, f"{entry['filename']}, region {place}: "):
            attributes = dict(region.get("region_attributes") or {})
            label = _name(attributes.pop(key, None) if key else None) or reading.unnamed
            instance = _instance(label, region["shape_attributes"])
            if instance is None:
                kind = region["shape_attributes"]["name"]
                reading.notes.note(f"region without an area ({kind})", "left out", str(image))
                continue
            instance.attributes = {name: value for name, value in attributes.items() if value not in ("", {}, None)}
            picture.instances.append(instance)
    return picture


def _name(value: Any) -> str:
    """Of a text, or of checkboxes {"name": true}."""
    if isinstance(value, dict):
        return next((str(key) for key, chosen in value.items() if chosen), "")
    return str(value).strip() if value is not None else ""


def _instance(label: str, shape: dict[str, Any]) -> Instance | None:
    kind = shape["name"]
    if kind == "rect":
        x, y, width, height = (float(shape[key]) for key in ("x", "y", "width", "height"))
        return Instance(label, (x, y, x + width, y + height))
    if kind in ("polygon", "polyline") and len(shape["all_points_x"]) >= 3:
        points = zip(shape["all_points_x"], shape["all_points_y"], strict=True)
        return polygon_instance(label, [[float(value) for point in points for value in point]])
    if kind == "circle":
        return polygon_instance(label, [ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"])])
    if kind == "ellipse":
        angle = float(shape.get("theta") or 0)
        return polygon_instance(label, [ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"], angle)])
    return None
