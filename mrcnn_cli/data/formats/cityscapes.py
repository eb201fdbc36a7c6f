"""Cityscapes (https://www.cityscapes-dataset.com): the fine or coarse instanceIds maps, else the polygons."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mrcnn_cli.data.formats.collection import Instance, Picture, label_instances, to_bitmap
from mrcnn_cli.data.formats.source import Reading, Source
from mrcnn_cli.data.image import read_label_map

# The classes that are evaluated as instances, by the number in the maps.
THINGS = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}
# Instances that the evaluation ignores.
IGNORED = {29: "caravan", 30: "trailer"}
KINDS = ("gtFine", "gtCoarse")


def recognize(source: Source) -> str | None:
    for path in source.below(".png", ".json"):
        if any(path.stem.endswith((f"_{kind}_instanceIds", f"_{kind}_polygons")) for kind in KINDS):
            return f"{path.name} is called like Cityscapes' files"
    return None


def read(reading: Reading) -> Iterator[Picture]:
    """The images that have a map of instances or polygons.

    Regions of several objects that nobody told apart ("cargroup") are crowds; caravans and trailers are regions to
    ignore, as the evaluation does.
    """
    reading.classes += THINGS.values()
    files: dict[str, Path] = {}
    for kind in KINDS:
        for ending, suffix in ((f"_{kind}_instanceIds", ".png"), (f"_{kind}_polygons", ".json")):
            for path in reading.source.below(suffix):
                if path.stem.endswith(ending):
                    files.setdefault(f"{path.parent}/{path.stem.removesuffix(ending)}", path)
    for key, path in files.items():
        with reading.guard(path):
            split = reading.source.split_of(path)
            image = reading.image(f"{Path(key).name}_leftImg8bit.png", path.parent, split)
            yield (
                _of_map(reading, path, image, split)
                if path.suffix == ".png"
                else _of_polygons(reading, path, image, split)
            )


def _of_map(reading: Reading, path: Path, image: Path, split: str | None) -> Picture:
    """Below 1000 a value is a class, from there on 1000 times the class and the number of the object."""
    labels = read_label_map(path)
    picture = Picture(image, labels.shape[0], labels.shape[1], split=split)
    for value, encoding, box in label_instances(labels):
        number = value // 1000 if value >= 1000 else value
        if number in THINGS:
            picture.instances.append(Instance(THINGS[number], box, encoding, crowd=value < 1000))
        elif number in IGNORED:
            picture.instances.append(Instance(None, box, encoding, True, {"name": IGNORED[number]}))
    return picture


def _of_polygons(reading: Reading, path: Path, image: Path, split: str | None) -> Picture:
    """Painted one over the other in the file's order: what is in front comes later."""
    content = reading.source.json(path)
    height, width = int(content["imgHeight"]), int(content["imgWidth"])
    labels = np.zeros((height, width), np.int64)
    names: list[str] = []
    for entry in content["objects"]:
        polygon = [float(value) for point in entry["polygon"] for value in point]
        if not entry.get("deleted") and len(polygon) >= 6:
            names.append(entry["label"])
            labels[to_bitmap([polygon], height, width)] = len(names)
    picture = Picture(image, height, width, split=split)
    things, ignored = set(THINGS.values()), set(IGNORED.values())
    for value, encoding, box in label_instances(labels):
        name = names[value - 1]
        label = name.removesuffix("group")
        if label in things:
            picture.instances.append(Instance(label, box, encoding, crowd=label != name))
        elif label in ignored:
            picture.instances.append(Instance(None, box, encoding, True, {"name": label}))
    return picture
