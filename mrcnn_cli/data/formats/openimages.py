"""Open Images' boxes (https://storage.googleapis.com/openimages/web): CSV files in parts of the image's size."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mrcnn_cli.data.formats.collection import Instance, Picture
from mrcnn_cli.data.formats.source import Reading, Source, number

NEEDED = {"ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"}
FLAGS = ("IsOccluded", "IsTruncated", "IsDepiction", "IsInside")


def recognize(source: Source) -> str | None:
    for path in source.below(".csv"):
        if set(_header(path)) >= NEEDED:
            return f"{path.name} has ImageID, LabelName, XMin, XMax, YMin, YMax"
    return None


def read(reading: Reading) -> Iterator[Picture]:
    """The images of all files; boxes around a group (IsGroupOf) are crowds."""
    source = reading.source
    names = _class_names(source)
    for path in source.below(".csv"):
        if not set(_header(path)) >= NEEDED:
            continue
        named = source.path == path
        split = None if named else source.split_of(path, by_name=True)
        pictures: dict[str, Picture | None] = {}
        with path.open(encoding="utf-8-sig", newline="") as file:
            for place, row in enumerate(csv.DictReader(file), 2):
                with reading.guard(path, f"line {place}: "):
                    name = row["ImageID"]
                    if name not in pictures:
                        pictures[name] = None  # an image that cannot be read is named once
                        image = reading.image(name, path.parent, split)
                        pictures[name] = Picture(image, *reading.size(image), split=split)
                    picture = pictures[name]
                    if picture is not None:
                        picture.instances.append(_instance(row, names, picture))
        yield from (picture for picture in pictures.values() if picture is not None)


def _instance(row: dict[str, Any], names: dict[str, str], picture: Picture) -> Instance:
    x1, x2 = (number(row[key]) * picture.width for key in ("XMin", "XMax"))
    y1, y2 = (number(row[key]) * picture.height for key in ("YMin", "YMax"))
    label = names.get(row["LabelName"], row["LabelName"])
    if not label:
        raise ValueError("has no LabelName")
    attributes = {key: True for key in FLAGS if row.get(key) == "1"}
    return Instance(label, (x1, y1, x2, y2), crowd=row.get("IsGroupOf") == "1", attributes=attributes)


def _class_names(source: Source) -> dict[str, str]:
    """ "/m/011k07" -> "Tortoise", of the file with class descriptions."""
    for path in source.below(".csv"):
        if "class" in path.name.lower():
            with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == 2]
            return {code.strip(): name.strip() for code, name in rows}
    return {}


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return [word.strip() for word in file.readline().split(",")]
