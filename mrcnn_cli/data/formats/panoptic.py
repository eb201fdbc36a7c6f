"""COCO's panoptic form (https://cocodataset.org/#format-data): a JSON file of segments, PNG files with ids."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrcnn_cli.config import Config
from mrcnn_cli.data.formats import coco
from mrcnn_cli.data.formats.collection import Instance, Picture, label_instances
from mrcnn_cli.data.formats.source import Reading, Source
from mrcnn_cli.data.panoptic import is_panoptic, read_ids
from mrcnn_cli.errors import UserError


class Options(Config):
    stuff: bool = False  # read regions that are no objects (sky, grass) too, as objects


def recognize(source: Source) -> str | None:
    found = _files(source)
    return f"{found[0].name} has segments_info" if found else None


def _files(source: Source) -> list[Path]:
    paths = source.below(".json")
    return [path for path in (paths[:20] if len(paths) > 200 else paths) if _is_panoptic(source, path)]


def _is_panoptic(source: Source, path: Path) -> bool:
    try:
        content = source.json(path)
    except UserError:
        return False
    entries = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(entries, list) and bool(entries) and isinstance(entries[0], dict) and is_panoptic(content)


def read(reading: Reading) -> Iterator[Picture]:
    """The images of all files, with their things."""
    for path in _files(reading.source):
        with reading.guard(path):
            yield from _read(reading, path)


def _read(reading: Reading, path: Path) -> Iterator[Picture]:
    content = reading.source.json(path)
    things = [entry for entry in content["categories"] if reading.options.stuff or entry.get("isthing", 1)]
    names = coco.categories(reading, things)
    split = None if reading.source.path == path else reading.source.split_of(path, by_name=True)
    segments = {entry["image_id"]: entry for entry in content["annotations"]}
    for place, entry in enumerate(content["images"]):
        with reading.guard(path, f"images[{place}]: "):
            picture = coco.picture(reading, entry, path, split)
            if entry["id"] not in segments:
                raise ValueError("has no annotation")
            _add(reading, picture, segments[entry["id"]], names, path)
            yield picture


def _add(reading: Reading, picture: Picture, entry: dict[str, Any], names: dict[int, str], path: Path) -> None:
    name = entry["file_name"]
    folders = (path.with_suffix(""), path.parent / picture.path.parent.name)
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is None:
        found = reading.source.find_image(name, path.with_suffix("")) or path.with_suffix("") / name
    ids = read_ids(found)
    if ids.shape != (picture.height, picture.width):
        height, width = ids.shape
        raise ValueError(f"{name} is {height} x {width}, its image {picture.height} x {picture.width}")
    regions = {value: (encoding, box) for value, encoding, box in label_instances(ids)}
    for segment in entry["segments_info"]:
        with reading.guard(path, f"segment {segment.get('id')} of {name}: "):
            if segment["category_id"] not in names:
                continue  # stuff
            if segment["id"] not in regions:
                raise ValueError("has no pixel")
            encoding, box = regions[segment["id"]]
            picture.instances.append(
                Instance(names[segment["category_id"]], box, encoding, crowd=bool(segment.get("iscrowd")))
            )
