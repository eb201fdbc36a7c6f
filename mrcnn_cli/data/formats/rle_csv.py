"""A CSV line for each mask, `ImageId,EncodedPixels`, as in Kaggle's competitions: pairs of start and length, counted
from 1 down the columns.

A line without pixels is an image without objects. Columns Height, Width and Class (or ClassId) are read too.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.data.coco import Repairs
from mrcnn_cli.data.formats.collection import Collection, Picture, encoding_instance, picture_names, to_encoding
from mrcnn_cli.data.formats.source import Reading, Source
from mrcnn_cli.ops.run_lengths import compressed, run_lengths

CLASS_COLUMNS = ("Class", "ClassId", "Label", "class")


def recognize(source: Source) -> str | None:
    for path in source.below(".csv"):
        if {"ImageId", "EncodedPixels"} <= set(_header(path)):
            return f"{path.name} has ImageId and EncodedPixels"
    return None


def read(reading: Reading) -> Iterator[Picture]:
    """The images of all files."""
    source = reading.source
    csv.field_size_limit(2**31 - 1)
    for path in source.below(".csv"):
        if not {"ImageId", "EncodedPixels"} <= set(_header(path)):
            continue
        named = source.path == path
        split = None if named else source.split_of(path, by_name=True)
        pictures: dict[str, Picture | None] = {}
        with path.open(encoding="utf-8-sig", newline="") as file:
            for place, row in enumerate(csv.DictReader(file), 2):
                with reading.guard(path, f"line {place}: "):
                    name = row["ImageId"]
                    if name not in pictures:
                        pictures[name] = None
                        pictures[name] = _picture(reading, row, path, split)
                    picture = pictures[name]
                    if picture is not None and (row["EncodedPixels"] or "").strip() not in ("", "-1"):
                        label = next((row[key] for key in CLASS_COLUMNS if row.get(key)), reading.unnamed)
                        encoding = _encoding(row["EncodedPixels"], picture.height, picture.width)
                        instance = encoding_instance(label, encoding)
                        assert instance is not None  # an encoding has at least one pixel
                        picture.instances.append(instance)
        yield from (picture for picture in pictures.values() if picture is not None)


def _picture(reading: Reading, row: dict[str, Any], path: Path, split: str | None) -> Picture:
    image = reading.image(row["ImageId"], path.parent, split)
    if row.get("Height") and row.get("Width"):
        return Picture(image, int(row["Height"]), int(row["Width"]), split=split)
    return Picture(image, *reading.size(image), split=split)


def _encoding(text: str, height: int, width: int) -> dict[str, Any]:
    values = np.array([int(word) for word in text.split()])
    if len(values) % 2:
        raise ValueError("has a start without a length")
    order = np.argsort(values[0::2], kind="stable")
    starts, lengths = values[0::2][order] - 1, values[1::2][order]
    ends = starts + lengths
    if starts[0] < 0 or (lengths < 1).any() or ends[-1] > height * width:
        raise ValueError(f"has runs outside of its image's {height} x {width} pixels")
    if (starts[1:] < ends[:-1]).any():
        raise ValueError("has runs that overlap")
    gaps = starts - np.concatenate([[0], ends[:-1]])
    runs = np.stack([gaps, lengths], axis=1).reshape(-1)
    runs = np.concatenate([runs, [height * width - ends[-1]]]) if ends[-1] < height * width else runs
    return {"size": [height, width], "counts": compressed(runs)}


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return [word.strip() for word in file.readline().split(",")]


def write(collection: Collection, losses: Repairs) -> Iterator[tuple[str, bytes | Picture]]:
    """<split>.csv and images/<split>/; every mask as a line."""
    for split, pictures in collection.splits.items():
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["ImageId", "EncodedPixels", "Height", "Width", "Class"])
        for picture, name in zip(pictures, picture_names(pictures), strict=True):
            yield f"images/{split}/{name}", picture
            written = 0
            for instance in picture.instances:
                where = f"{instance.label} in {picture.path}"
                if instance.crowd or instance.label is None:
                    losses.note("crowd or region to ignore", "left out: it would be taken for an object", where)
                    continue
                if instance.segmentation is None:
                    losses.note("object without a mask", "left out", where)
                    continue
                encoding = to_encoding(instance.segmentation, picture.height, picture.width)
                own = encoding_instance(None, encoding)
                if own is None:
                    losses.note("object whose mask has no pixel", "left out", where)
                    continue
                if max(abs(a - b) for a, b in zip(own.box, instance.box, strict=True)) > 1:
                    losses.note("object whose box is not that of its mask", "written with its mask only", where)
                if instance.attributes or instance.keypoints:
                    losses.note("object with attributes or keypoints", "written without them", where)
                rows.writerow([name, _pixels(encoding), picture.height, picture.width, instance.label])
                written += 1
            if not written:
                rows.writerow([name, "", picture.height, picture.width, ""])
        yield f"{split}.csv", text.getvalue().encode()


def _pixels(encoding: dict[str, Any]) -> str:
    runs = run_lengths(encoding)
    ends = runs.cumsum()[1::2]
    lengths = runs[1::2][: len(ends)]
    starts = ends - lengths + 1
    return " ".join(f"{start} {length}" for start, length in zip(starts, lengths, strict=True) if length)
