"""COCO's instances and keypoints, and LVIS (https://cocodataset.org/#format-data, https://www.lvisdataset.org/dataset)."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools import mask as coco_mask

from mrcnn_cli.config import Config
from mrcnn_cli.data.coco import Repairs
from mrcnn_cli.data.formats.collection import (
    Collection,
    Instance,
    Picture,
    Segmentation,
    encoding_instance,
    picture_names,
    polygon_instance,
    to_encoding,
)
from mrcnn_cli.data.formats.source import Reading, Source
from mrcnn_cli.errors import UserError
from mrcnn_cli.ops.run_lengths import compressed, mask_size, run_lengths

IMAGE_KEYS = {"id", "file_name", "height", "width"}
INSTANCE_KEYS = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints"}
_NUMBERS = {int, float}
INSTANCE_KEYS |= {"num_keypoints", "attributes"}


class Options(Config):
    files: str = ""  # a word that the annotation files' names must have, such as person_keypoints


def recognize(source: Source) -> str | None:
    found = _files(source, "")
    return f"{found[0].name} has images, annotations and categories" if found and not _is_lvis(source, found) else None


def recognize_lvis(source: Source) -> str | None:
    found = _files(source, "")
    return f"{found[0].name} is COCO with LVIS's frequencies" if found and _is_lvis(source, found) else None


def read(reading: Reading) -> Iterator[Picture]:
    """All pictures of all annotation files, those without objects too."""
    for path in _files(reading.source, reading.options.files):
        with reading.guard(path):
            yield from _read(reading, path)


def _files(source: Source, word: str) -> list[Path]:
    """The files with instances; of COCO's several kinds (instances, keypoints, captions) only one."""
    paths = [path for path in source.below(".json") if word in path.name]
    if len(paths) > 20:  # one for each image is something else; large folders of those take long to look through
        paths = [path for path in paths if path.parent.name == "annotations" or path.parent == source.root]
        paths = paths[:20] if len(paths) > 200 else paths
    for kind in ("instances_", "person_keypoints_"):
        if any(path.name.startswith(kind) for path in paths):
            paths = [path for path in paths if path.name.startswith(kind)]
            break
    return [path for path in paths if _is_coco(source, path)]


def _is_coco(source: Source, path: Path) -> bool:
    try:
        content = source.json(path)
    except UserError:
        return False
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    ):
        return False
    return not any(isinstance(entry, dict) and "segments_info" in entry for entry in content["annotations"][:1])


def _is_lvis(source: Source, paths: Sequence[Path]) -> bool:
    return any("frequency" in entry for entry in source.json(paths[0])["categories"][:1] if isinstance(entry, dict))


def _read(reading: Reading, path: Path) -> Iterator[Picture]:
    content = reading.source.json(path)
    names = categories(reading, content["categories"])
    # A file that was named itself is all there is: its name says no split.
    named = reading.source.path == path
    split = None if named else reading.source.split_of(path, by_name=True)
    pictures: dict[int, Picture] = {}
    for place, entry in enumerate(content["images"]):
        with reading.guard(path, f"images[{place}]: "):
            pictures[entry["id"]] = picture(reading, entry, path, split)
    seen: set[int] = set()
    for place, entry in enumerate(content["annotations"]):
        where = f"annotation {entry.get('id', f'[{place}]') if isinstance(entry, dict) else f'[{place}]'}: "
        with reading.guard(path, where):
            if entry["image_id"] not in pictures:
                raise ValueError(f"its image_id {entry['image_id']} is no image's")
            if entry["category_id"] not in names:
                raise ValueError(f"its category_id {entry['category_id']} is no category's")
            if entry.get("id") in seen:
                raise ValueError("an earlier annotation has the same id")
            seen.add(entry.get("id"))
            found = _instance(reading, entry, names[entry["category_id"]], pictures[entry["image_id"]])
            if found is not None:
                pictures[entry["image_id"]].instances.append(found)
    yield from pictures.values()


def categories(reading: Reading, entries: list[dict[str, Any]]) -> dict[int, str]:
    """The classes by id, which are put into the reading too, in the order of their ids."""
    names: dict[int, str] = {}
    for entry in sorted(entries, key=lambda entry: entry["id"]):
        name = str(entry["name"])
        if entry["id"] in names or name in names.values():
            raise ValueError(f"two categories have the id {entry['id']} or the name '{name}'; rename or merge them")
        names[entry["id"]] = name
        known = reading.categories.get(name)
        if known is not None and known["id"] != entry["id"]:
            # Splits that number their classes differently agree by name: all get numbers of ours.
            reading.notes.note("class whose id differs between files", "matched by name", name)
            for other in reading.categories.values():
                other.pop("id", None)
        reading.categories.setdefault(name, {key: value for key, value in entry.items() if key != "name"})
        if name not in reading.classes:
            reading.classes.append(name)
    return names


def picture(reading: Reading, entry: dict[str, Any], path: Path, split: str | None) -> Picture:
    """An entry of COCO's list of images; its file is looked for."""
    name = entry.get("file_name")
    if not name:  # LVIS says only where it was downloaded
        parts = PurePosixPath(entry["coco_url"]).parts
        name = "/".join(parts[-2:])
    image = reading.image(str(name), path.parent, split)
    if entry.get("height") and entry.get("width"):
        height, width = int(entry["height"]), int(entry["width"])
    else:
        height, width = reading.size(image)
    more = {key: value for key, value in entry.items() if key not in IMAGE_KEYS}
    return Picture(image, height, width, split=split, attributes=more, id=int(entry["id"]))


def _instance(reading: Reading, entry: dict[str, Any], label: str, image: Picture) -> Instance | None:
    more: dict[str, Any] = {
        "crowd": bool(entry.get("iscrowd")),
        "attributes": {key: value for key, value in entry.items() if key not in INSTANCE_KEYS}
        | (entry.get("attributes") or {}),
        "keypoints": [float(value) for value in entry["keypoints"]] if entry.get("keypoints") else None,
        "id": entry.get("id"),
        "area": _area_of(entry),
    }
    segmentation = segmentation_of(reading, entry.get("segmentation"), image, f"annotation {entry.get('id')}")
    if entry.get("bbox"):
        x, y, width, height = map(float, entry["bbox"])
        return Instance(label, (x, y, x + width, y + height), segmentation, **more)
    if isinstance(segmentation, dict):
        return encoding_instance(label, segmentation, **more)
    return polygon_instance(label, segmentation or [], **more)


def _area_of(entry: dict[str, Any]) -> float | None:
    value = entry.get("area")
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else None


def segmentation_of(reading: Reading, given: Any, image: Picture, where: str) -> Segmentation | None:
    """What a file calls "segmentation", with the counts compressed."""
    if not given:
        return None
    if isinstance(given, dict):
        if list(mask_size(given)) != [image.height, image.width]:
            raise ValueError(f"its run lengths are of the size {given['size']}, its image is of another")
        return {"size": [image.height, image.width], "counts": compressed(run_lengths(given))}
    if isinstance(given[0], int | float):  # one polygon without the list around it
        given = [given]
    if not all(_NUMBERS.issuperset(map(type, polygon)) for polygon in given):
        raise ValueError("a polygon holds something else than numbers")
    # As they are, uncopied: the polygons of a large file take gigabytes.
    whole = [polygon for polygon in given if len(polygon) >= 6 and len(polygon) % 2 == 0]
    for _ in range(len(given) - len(whole)):
        reading.notes.note("polygon with fewer than 3 points or half a point", "left out", f"{where} of {image.path}")
    return whole or None


def content(
    collection: Collection, pictures: Sequence[Picture], names: Sequence[str], first_id: int = 1
) -> dict[str, Any]:
    """A COCO file's content.

    Ids of the source are kept where all have one; boxes and masks are written as they are. A region to ignore whatever
    the class becomes a crowd of each class, since COCO's crowds belong to one.

    Args:
        collection: whose classes are written.
        pictures: those to write.
        names: the `file_name` of each.
        first_id: of the pictures and instances, where they are numbered here.
    """
    ids = _ids([picture.id for picture in pictures], first_id)
    numbers = category_ids(collection)
    flat = [instance for picture in pictures for instance in picture.instances]
    kept = _ids([instance.id for instance in flat], first_id, exact=all(one.label is not None for one in flat))
    free, place = max(kept, default=0) + 1, 0
    masks = collection.has_masks
    annotations: list[dict[str, Any]] = []
    for picture, image_id in zip(pictures, ids, strict=True):
        for instance in picture.instances:
            labels = [instance.label] if instance.label is not None else collection.classes
            fresh = [kept[place], *range(free, free + len(labels) - 1)]
            free, place = free + len(labels) - 1, place + 1
            for number, label in zip(fresh, labels, strict=True):
                annotations.append(_annotation(instance, number, image_id, numbers[label], picture, masks))
    return {
        "info": {},
        "licenses": [],
        "images": [
            {
                **picture.attributes,
                "id": image_id,
                "file_name": name,
                "height": picture.height,
                "width": picture.width,
            }
            for picture, image_id, name in zip(pictures, ids, names, strict=True)
        ],
        "annotations": annotations,
        "categories": [
            {**collection.categories.get(name, {}), "id": numbers[name], "name": name} for name in collection.classes
        ],
    }


def category_ids(collection: Collection) -> dict[str, int]:
    """class -> its id: of the source, if all have one and it orders them as the labels do; else 1, 2, ..."""
    given = [collection.categories.get(name, {}).get("id") for name in collection.classes]
    numbers = [number for number in given if isinstance(number, int)]
    if len(numbers) < len(given) or sorted(set(numbers)) != numbers:
        numbers = list(range(1, len(given) + 1))
    return dict(zip(collection.classes, numbers, strict=True))


def _annotation(
    instance: Instance, number: int, image_id: int, category: int, picture: Picture, masks: bool
) -> dict[str, Any]:
    x1, y1, x2, y2 = instance.box
    segmentation = instance.segmentation
    if segmentation is None and masks and instance.crowd:  # what is ignored needs a mask beside those of the objects
        segmentation = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    entry: dict[str, Any] = {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": instance.area if instance.area is not None else area(segmentation, instance.box, picture),
        "iscrowd": int(instance.crowd),
    }
    if isinstance(segmentation, dict):
        entry["segmentation"] = {**segmentation, "counts": segmentation["counts"].decode("ascii")}
    elif segmentation is not None:
        entry["segmentation"] = segmentation
    if instance.keypoints is not None:
        entry["keypoints"] = instance.keypoints
        entry["num_keypoints"] = sum(visible > 0 for visible in instance.keypoints[2::3])
    if instance.attributes:
        entry["attributes"] = instance.attributes
    return entry


def area(segmentation: Segmentation | None, box: Sequence[float], picture: Picture) -> float:
    """In pixels: of the mask where there is one, else of the box."""
    if segmentation is None:
        return (box[2] - box[0]) * (box[3] - box[1])
    return float(coco_mask.area(to_encoding(segmentation, picture.height, picture.width)))


def _ids(given: Sequence[int | None], first: int, exact: bool = True) -> list[int]:
    numbers = [number for number in given if isinstance(number, int)]
    unique = len(numbers) == len(given) and len(set(numbers)) == len(numbers)
    return numbers if unique and exact else list(range(first, first + len(given)))


def write(collection: Collection, losses: Repairs) -> Iterator[tuple[str, bytes | Picture]]:
    """annotations/<split>.json and images/<split>/."""
    for split, pictures in collection.splits.items():
        names = picture_names(pictures)
        for picture, name in zip(pictures, names, strict=True):
            yield f"images/{split}/{name}", picture
            if any(instance.label is None for instance in picture.instances):
                losses.note(
                    "region to ignore whatever the class", "written as a crowd of each class", str(picture.path)
                )
        yield f"annotations/{split}.json", json.dumps(content(collection, pictures, names)).encode()
