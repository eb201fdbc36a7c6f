"""Label maps: a PNG or TIFF for each image whose pixels are the number of the object (or class) that they belong to."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mrcnn_cli.config import Config
from mrcnn_cli.data.formats.collection import Box, Instance, Picture, label_instances
from mrcnn_cli.data.formats.source import Reading, Source
from mrcnn_cli.data.image import is_grey, read_label_map
from mrcnn_cli.errors import UserError

FOLDER = re.compile("label|mask|seg|annot|instance|truth|^gt", re.I)
ENDING = re.compile(r"(_|-)?(cp_)?(masks?|labels?|seg(mentation)?|instances?|gt)$", re.I)  # of a map's name


class Options(Config):
    labels: str = ""  # the folder of the maps; by default the one that is called like it
    background: int = 0
    components: bool = False  # the pixels' numbers are classes: each connected region of one is an object


def recognize(source: Source) -> str | None:
    for label_map, image in _pairs(source, "")[:5]:
        try:
            if not is_grey(label_map):
                return None
        except UserError:
            continue
        return f"{label_map.name} in {label_map.parent.name}/ is a grey map beside {image.parent.name}/{image.name}"
    return None


def read(reading: Reading) -> Iterator[Picture]:
    """The images that have a map, with an object for each of its values."""
    options = reading.options
    single: list[Path] = []
    pairs = _pairs(reading.source, options.labels)
    for path, image in pairs:
        with reading.guard(path):
            labels = read_label_map(path)
            if labels.shape != reading.size(image):
                height, width = reading.size(image)
                raise ValueError(f"is {labels.shape[0]} x {labels.shape[1]}, its image {image} {height} x {width}")
            labels = labels - options.background
            height, width = labels.shape
            picture = Picture(image, height, width, split=reading.source.split_of(image))
            if options.components:
                for value, _, _ in label_instances(labels):
                    name = _class_name(reading, value)
                    for _, encoding, box in label_instances(components(labels == value)):
                        picture.instances.append(Instance(name, box, encoding))
            else:
                found = label_instances(labels)
                single += [path] * (len(found) == 1)
                picture.instances = [_instance(reading.unnamed, value, encoding, box) for value, encoding, box in found]
            yield picture
    if single and len(single) == len(pairs):
        what = "map of a single value, taken as one object"
        for path in single:
            reading.notes.note(what, "(--set components=true makes one of each connected region)", str(path))


def _instance(label: str, value: int, encoding: dict[str, object], box: Box) -> Instance:
    return Instance(label, box, encoding)


def _class_name(reading: Reading, value: int) -> str:
    """With one class all values are of it, else 1 is the first, and so on."""
    if len(reading.given) > 1:
        return reading.given[value - 1] if 0 < value <= len(reading.given) else f"class{value}"
    return reading.unnamed


def _pairs(source: Source, folder: str) -> list[tuple[Path, Path]]:
    """Each map with its image: of the same name in another folder, or without the ending that says it is a map."""
    maps: list[Path] = []
    images: dict[str, list[Path]] = {}
    for path in source.files if source.images is None else [*source.files, *source.pictures]:
        if path.suffix.lower() not in (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg"):
            continue
        called = FOLDER.search(path.parent.name) or ENDING.search(path.stem)
        is_map = path.parent.name == folder if folder else called is not None
        if is_map and path.suffix.lower() not in (".jpg", ".jpeg"):
            maps.append(path)
        elif not is_map:
            images.setdefault(path.stem, []).append(path)
    pairs = []
    for path in maps:
        found = images.get(path.stem) or images.get(ENDING.sub("", path.stem), [])
        if len(found) > 1:  # of several splits: the one in the nearest folder
            near = max(_common(path, other) for other in found)
            found = [other for other in found if _common(path, other) == near]
        if len(found) == 1:
            pairs.append((path, found[0]))
    return pairs


def _common(first: Path, second: Path) -> int:
    count = 0
    for mine, other in zip(first.parts, second.parts, strict=False):
        if mine != other:
            break
        count += 1
    return count


def components(mask: np.ndarray) -> np.ndarray:
    """The connected regions of a bitmap, 1, 2, ... in the order of their first pixels down the columns: [H, W] int64.

    Pixels are neighbours in four directions.
    """
    height, width = mask.shape
    padded = np.zeros((width, height + 1), bool)  # columns, each with a gap behind it
    padded[:, :height] = mask.T
    flat = padded.reshape(-1)
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]]).astype(np.int8)))
    starts, ends = changes[0::2], changes[1::2]
    parent = list(range(len(starts)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    column_of = starts // (height + 1)
    columns = column_of.tolist()
    tops, bottoms = ((edges - column_of * (height + 1)).tolist() for edges in (starts, ends))
    left = 0  # of the runs in the column before
    for place, column in enumerate(columns):
        while columns[left] < column - 1 or (columns[left] == column - 1 and bottoms[left] <= tops[place]):
            left += 1
        other = left
        while columns[other] == column - 1 and tops[other] < bottoms[place]:
            a, b = root(other), root(place)
            parent[max(a, b)] = min(a, b)
            other += 1
    roots = [root(place) for place in range(len(starts))]
    numbers = {value: number for number, value in enumerate(sorted(set(roots)), 1)}
    found = np.zeros((width, height), np.int64)
    for place, column in enumerate(columns):
        found[column, tops[place] : bottoms[place]] = numbers[roots[place]]
    return found.T
