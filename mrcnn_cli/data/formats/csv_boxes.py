"""A line for each box: keras-retinanet's CSV `path,x1,y1,x2,y2,class` and keras-frcnn's text of the same form.

A line with empty fields behind the path is an image without objects. keras-retinanet's second file `class,number` gives
the order of the classes.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from mrcnn_cli.data.formats.collection import Instance, Picture
from mrcnn_cli.data.formats.source import Reading, Source, number
from mrcnn_cli.data.image import SUFFIXES


def recognize(source: Source) -> str | None:
    return _recognize(source, ".csv")


def recognize_text(source: Source) -> str | None:
    return _recognize(source, ".txt")


def read(reading: Reading) -> Iterator[Picture]:
    """The images of the CSV files, those with empty lines too."""
    yield from _read(reading, ".csv")


def read_text(reading: Reading) -> Iterator[Picture]:
    """The images of the text files."""
    yield from _read(reading, ".txt")


def _recognize(source: Source, suffix: str) -> str | None:
    for path in source.below(suffix)[:50]:
        rows = _rows(path, 5)
        if rows and 2 * sum(map(_is_row, rows)) >= len(rows):  # a header, or a line with a fault
            return f"{path.name} has lines of path,x1,y1,x2,y2,class"
    return None


def _is_row(row: list[str]) -> bool:
    if len(row) != 6 or Path(row[0]).suffix.lower() not in SUFFIXES:
        return False
    return not any(row[1:]) or all(word.replace(".", "", 1).lstrip("-").isdigit() for word in row[1:5])


def _read(reading: Reading, suffix: str) -> Iterator[Picture]:
    source = reading.source
    for path in source.below(suffix):
        rows = _rows(path)
        if rows and all(len(row) == 2 and row[1].isdigit() for row in rows):
            reading.classes += [name for name, _ in sorted(rows, key=lambda row: int(row[1]))]
            continue
        if not any(_is_row(row) for row in rows[:5]):
            continue
        named = source.path == path
        split = None if named else source.split_of(path, by_name=True)
        pictures: dict[str, Picture | None] = {}
        for place, row in enumerate(rows, 1):
            if not any(row) or (place == 1 and not _is_row(row)):  # a header
                continue
            with reading.guard(path, f"line {place}: "):
                if len(row) != 6:
                    raise ValueError(f"has {len(row)} fields instead of path,x1,y1,x2,y2,class")
                if row[0] not in pictures:
                    pictures[row[0]] = None  # an image that cannot be read is named once
                    image = reading.image(row[0], path.parent, split)
                    pictures[row[0]] = Picture(image, *reading.size(image), split=split)
                picture = pictures[row[0]]
                if picture is not None and any(row[1:]):
                    x1, y1, x2, y2 = map(number, row[1:5])
                    if not row[5]:
                        raise ValueError("has a box but no class")
                    picture.instances.append(Instance(row[5], (x1, y1, x2, y2)))
        yield from (picture for picture in pictures.values() if picture is not None)


def _rows(path: Path, most: int | None = None) -> list[list[str]]:
    rows: list[list[str]] = []
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        for row in csv.reader(file):
            rows.append([field.strip() for field in row])
            if len(rows) == most:
                break
    return rows
