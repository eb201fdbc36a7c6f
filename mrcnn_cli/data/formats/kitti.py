"""KITTI's object benchmark (https://www.cvlibs.net/datasets/kitti): label_2/*.txt with image_2/."""

import re
from collections.abc import Iterator
from typing import Any

from mrcnn_cli.data.formats.collection import Instance, Picture
from mrcnn_cli.data.formats.source import Reading, Source, number

LINE = re.compile(r"[A-Za-z_]+(\s+[-+]?[\d.]+([eE][-+]?\d+)?){14,15}\s*")
# What follows the box, in metres and radians; where it is not known, the first of these says so.
SPACE = ("height", "width", "length", "x", "y", "z", "rotation_y")
UNKNOWN = (-1.0, -1000.0)


def recognize(source: Source) -> str | None:
    for path in source.below(".txt")[:50]:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[:20]
        if lines and all(LINE.fullmatch(line.strip()) for line in lines):
            return f"{path.parent.name}/{path.name} has KITTI's lines of 15 fields"
    return None


def read(reading: Reading) -> Iterator[Picture]:
    """The images that have a label file; DontCare is a region to ignore whatever the class."""
    for path in reading.source.below(".txt"):
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        labelled = any(folder.name.startswith("label") for folder in (path.parent, path.parent.parent))
        if not labelled and not any(LINE.fullmatch(line.strip()) for line in lines):  # calibrations, lists
            continue
        with reading.guard(path):
            split = reading.source.split_of(path)
            image = reading.image(path.stem, path.parent, split)
            height, width = reading.size(image)
            picture = Picture(image, height, width, split=split)
            for place, line in enumerate(lines, 1):
                with reading.guard(path, f"line {place}: "):
                    picture.instances.append(_instance(line))
            yield picture


def _instance(line: str) -> Instance:
    name, *words = line.split()
    if len(words) not in (14, 15):
        raise ValueError(f"has {len(words) + 1} fields instead of 15 (16 with a score)")
    truncated, occluded, alpha, x1, y1, x2, y2, *space = map(number, words)
    box = (x1, y1, x2, y2)
    if name == "DontCare":
        return Instance(None, box, crowd=True, attributes={"name": name})
    attributes: dict[str, Any] = {}
    if truncated > 0:
        attributes["truncated"] = truncated
    if occluded > 0:
        attributes["occluded"] = int(occluded)
    if space[0] not in UNKNOWN:
        attributes |= {"alpha": alpha, **dict(zip(SPACE, space, strict=False))}
    if len(space) > len(SPACE):
        attributes["score"] = space[-1]
    return Instance(name, box, attributes=attributes)
