"""Pascal VOC (http://host.robots.ox.ac.uk/pascal/VOC): an XML file for each image, and SegmentationObject's masks.

Boxes are taken as corners, as they are written. VOC's own files count pixels from 1 and name the last pixel inside;
`one_based` makes corners of those.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from mrcnn_cli.config import Config
from mrcnn_cli.data.coco import Repairs
from mrcnn_cli.data.formats.collection import (
    Collection,
    Instance,
    Picture,
    label_instances,
    picture_names,
    to_bitmap,
)
from mrcnn_cli.data.formats.source import Reading, Source, number, parse_xml, split_word
from mrcnn_cli.data.image import palette_png, read_label_map
from mrcnn_cli.errors import UserError

MOST_MASKS = 254  # 0 is background, 255 the void between objects
VOID = 255


class Options(Config):
    difficult: Literal["keep", "ignore", "drop"] = "keep"  # objects that VOC's own evaluation does not count
    one_based: bool = False  # boxes count pixels from 1 and include the last, as in VOC's own files
    masks: bool = True  # read SegmentationObject where it is there


def recognize(source: Source) -> str | None:
    for path in source.below(".xml")[:20]:
        try:
            root = parse_xml(path)
        except UserError:
            continue
        if root.tag == "annotation" and (root.find("object") is not None or root.find("size") is not None):
            return f"{path.name} has VOC's <annotation>"
    return None


def read(reading: Reading) -> Iterator[Picture]:
    """The images that have an XML file; with a mask where SegmentationObject has one."""
    source = reading.source
    splits = _splits(source)
    masks = {path.stem: path for path in source.below(".png") if path.parent.name == "SegmentationObject"}
    for path in source.below(".xml"):
        with reading.guard(path):
            root = parse_xml(path)
            if root.tag != "annotation":
                continue
            split = splits.get(path.stem) or source.split_of(path)
            picture = _picture(reading, root, path, split)
            for place, entry in enumerate(root.findall("object"), 1):
                with reading.guard(path, f"object {place}: "):
                    picture.instances.append(_instance(entry, reading.options.one_based))
            if reading.options.masks and path.stem in masks:
                with reading.guard(masks[path.stem]):
                    _add_masks(picture, masks[path.stem], reading)
            picture.instances = list(_judged(reading, picture))
            yield picture


def _splits(source: Source) -> dict[str, str]:
    """image -> split, of ImageSets; the lists of images with masks come last, for they are part of the others."""
    found: dict[str, str] = {}
    for kind in ("Segmentation", "Main"):
        for path in source.below(".txt"):
            split = split_word(path.stem)
            if path.parent.name == kind and path.parent.parent.name == "ImageSets" and split:
                for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                    if line.strip():
                        found.setdefault(Path(line.split()[0]).name, split)
    return found


def _picture(reading: Reading, root: ElementTree.Element, path: Path, split: str | None) -> Picture:
    name = (root.findtext("filename") or path.stem).strip()
    found = reading.source.find_image(name, path.parent, split) or reading.source.find_image(path.stem, path.parent)
    image = found or reading.image(name, path.parent, split)
    width, height = (root.findtext(f"size/{key}") for key in ("width", "height"))
    if width and height and number(width) > 0 and number(height) > 0:
        size = int(number(height)), int(number(width))
    else:
        size = reading.size(image)
    return Picture(image, *size, split=split)


def _instance(entry: ElementTree.Element, one_based: bool) -> Instance:
    label = (entry.findtext("name") or "").strip()
    if not label:
        raise ValueError("has no name")
    corners = [number(entry.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax")]
    shift = 1 if one_based else 0
    box = (corners[0] - shift, corners[1] - shift, corners[2], corners[3])
    attributes: dict[str, Any] = {}
    for key in ("pose", "truncated", "occluded", "difficult"):
        text = (entry.findtext(key) or "").strip()
        if text not in ("", "0", "Unspecified"):
            attributes[key] = True if text == "1" else text
    for extra in entry.findall("attributes/attribute"):  # as CVAT writes what VOC does not know
        attributes[(extra.findtext("name") or "").strip()] = (extra.findtext("value") or "").strip()
    crowd = attributes.pop("iscrowd", "0") == "1"
    parts = [
        {"name": part.findtext("name"), "box": [number(part.findtext(f"bndbox/{key}")) for key in _CORNERS]}
        for part in entry.findall("part")
    ]
    if parts:
        attributes["parts"] = parts
    return Instance(label, box, crowd=crowd, attributes=attributes)


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _add_masks(picture: Picture, path: Path, reading: Reading) -> None:
    """SegmentationObject's value n is the n-th object of the XML file; where a file does not keep to it, the object
    whose box fits best has the mask."""
    labels = read_label_map(path)
    if labels.shape != (picture.height, picture.width):
        raise ValueError(f"is {labels.shape[0]} x {labels.shape[1]}, its image {picture.height} x {picture.width}")
    labels = np.where(labels == VOID, 0, labels) if labels.max(initial=0) <= VOID else _colours_to_numbers(labels)
    found = label_instances(labels)
    boxes = np.array([instance.box for instance in picture.instances]).reshape(-1, 4)
    for value, encoding, box in found:
        near = [
            place
            for place in range(len(boxes))
            if np.abs(boxes[place] - box).max() <= 2.0 and picture.instances[place].segmentation is None
        ]
        place = value - 1
        if not (0 <= place < len(boxes) and (place in near or not near)):
            place = near[0] if near else -1
        if place < 0 or picture.instances[place].segmentation is not None:
            reading.notes.note("mask without an object", "left out", f"value {value} of {path}")
        else:
            picture.instances[place].segmentation = encoding


def _colours_to_numbers(colours: np.ndarray) -> np.ndarray:
    """Of a picture in VOC's colours rather than with its palette: the number of each colour in that palette."""
    numbers = np.zeros(1 << 24, np.uint8)
    palette = np.array(voc_palette(), np.int64).reshape(-1, 3)
    numbers[palette[:, 0] << 16 | palette[:, 1] << 8 | palette[:, 2]] = np.arange(256)
    found = numbers[colours]
    return np.where(found == VOID, 0, found)


def _judged(reading: Reading, picture: Picture) -> Iterator[Instance]:
    for instance in picture.instances:
        if not instance.attributes.get("difficult") or reading.options.difficult == "keep":
            yield instance
        elif reading.options.difficult == "ignore":
            instance.crowd = True
            yield instance
        else:
            reading.notes.note("difficult object", "left out", f"{instance.label} in {picture.path}")


def voc_palette() -> list[int]:
    """VOC's 256 colours r, g, b, ...: the bits of a number are dealt to the three channels by turns."""
    palette = []
    for index in range(256):
        for channel in range(3):
            bits = [(index >> (3 * place + channel)) & 1 for place in range(8)]
            palette.append(sum(bit << (7 - place) for place, bit in enumerate(bits)))
    return palette


def write(collection: Collection, losses: Repairs) -> Iterator[tuple[str, bytes | Picture]]:
    """VOC's folders: Annotations, JPEGImages, ImageSets/Main, and SegmentationObject where there are masks."""
    everything = [picture for pictures in collection.splits.values() for picture in pictures]
    names = dict(zip(map(id, everything), picture_names(everything), strict=True))
    masks = False
    for split, pictures in collection.splits.items():
        stems = []
        for picture in pictures:
            name = names[id(picture)]
            stems.append(Path(name).stem)
            yield f"JPEGImages/{name}", picture
            instances = [instance for instance in picture.instances if _holds(instance, picture, losses)]
            segmented = any(instance.segmentation is not None for instance in instances)
            yield f"Annotations/{stems[-1]}.xml", _xml(name, picture, instances, segmented)
            if segmented:
                masks = True
                labels = _label_map(instances, picture, losses)
                yield f"SegmentationObject/{stems[-1]}.png", palette_png(labels, voc_palette())
        text = "".join(f"{stem}\n" for stem in stems).encode()
        yield f"ImageSets/Main/{split}.txt", text
        if masks:
            yield f"ImageSets/Segmentation/{split}.txt", text
    yield "labels.txt", "".join(f"{name}\n" for name in collection.classes).encode()


def _holds(instance: Instance, picture: Picture, losses: Repairs) -> bool:
    where = f"{instance.label} in {picture.path}"
    if instance.keypoints is not None:
        losses.note("object with keypoints", "written without them", where)
    if instance.label is None:
        losses.note("region to ignore whatever the class", "left out", where)
    return instance.label is not None


def _label_map(instances: list[Instance], picture: Picture, losses: Repairs) -> np.ndarray:
    labels = np.zeros((picture.height, picture.width), np.uint8)
    for place, instance in enumerate(instances, 1):
        if instance.segmentation is None:
            continue
        where = f"{instance.label} in {picture.path}"
        if place > MOST_MASKS:
            losses.note(f"object beyond the {MOST_MASKS} of an image", "written without its mask", where)
            continue
        mask = to_bitmap(instance.segmentation, picture.height, picture.width)
        if (labels[mask] > 0).any():
            losses.note("object whose mask overlaps another's", "covers that one, for a pixel has one object", where)
        labels[mask] = place
    return labels


def _xml(name: str, picture: Picture, instances: list[Instance], segmented: bool) -> bytes:
    root = ElementTree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", name)
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", picture.width), ("height", picture.height), ("depth", 3)):
        _add(size, key, value)
    _add(root, "segmented", int(segmented))
    for instance in instances:
        entry = ElementTree.SubElement(root, "object")
        more = dict(instance.attributes)
        _add(entry, "name", instance.label)
        for key, default in (("pose", "Unspecified"), ("truncated", 0), ("occluded", 0), ("difficult", instance.crowd)):
            value = more.pop(key, default)
            _add(entry, key, int(value) if isinstance(value, bool) else value)
        box = ElementTree.SubElement(entry, "bndbox")
        for key, corner in zip(_CORNERS, instance.box, strict=True):
            _add(box, key, f"{corner:.17g}")
        for part in more.pop("parts", []):
            element = ElementTree.SubElement(entry, "part")
            _add(element, "name", part["name"])
            inner = ElementTree.SubElement(element, "bndbox")
            for key, corner in zip(_CORNERS, part["box"], strict=True):
                _add(inner, key, f"{corner:.17g}")
        if instance.crowd:
            more["iscrowd"] = 1
        if more:
            attributes = ElementTree.SubElement(entry, "attributes")
            for key, value in more.items():
                element = ElementTree.SubElement(attributes, "attribute")
                _add(element, "name", key)
                _add(element, "value", value)
    ElementTree.indent(root)
    return ElementTree.tostring(root) + b"\n"


def _add(parent: ElementTree.Element, tag: str, value: Any) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)
