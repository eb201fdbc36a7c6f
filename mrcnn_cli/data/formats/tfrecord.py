"""TFRecord files of TensorFlow's Object Detection API, read without TensorFlow.

A file is a row of records (length, checksum of the length, data, checksum of the data), each a serialized
tf.train.Example (https://www.tensorflow.org/tutorials/load_data/tfrecord). Checksums of lengths are tested, those of
data are not: damaged pictures are found when they are decoded.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mrcnn_cli.data.formats.collection import Instance, Picture, mask_instance
from mrcnn_cli.data.formats.source import BROKEN, Reading, Source
from mrcnn_cli.data.image import read_mask

NAME = re.compile(r"\.(tf)?records?(-\d+-of-\d+)?$")
ITEM = re.compile(r"item\s*\{(.*?)\}", re.S)
FLAGS = ("difficult", "truncated")
_HEADER, _MARK = 12, 4  # bytes of length and checksum before the data, of the checksum behind


def recognize(source: Source) -> str | None:
    for path in source.files:
        if NAME.search(path.name):
            try:
                record = next(records(path), None)
                example = parse_example(record[1]) if record is not None else {}
            except BROKEN:
                return f"{path.name} is called like a TFRecord file"
            if any(key.startswith("image/") for key in example):
                return f"{path.name} has records with image/..."
    return None


def read(reading: Reading) -> Iterator[Picture]:
    """The images of all files, which lie within them; masks are read where there are."""
    names = _class_names(reading.source)
    reading.classes += [name for _, name in sorted(names.items())]
    for path in reading.source.files:
        if NAME.search(path.name):
            split = reading.source.split_of(path, by_name=True)
            with reading.guard(path):
                for place, (offset, data) in enumerate(records(path)):
                    with reading.guard(path, f"record {place}: "):
                        yield _picture(reading, path, place, offset, parse_example(data), names, split)


def _picture(
    reading: Reading,
    path: Path,
    place: int,
    offset: int,
    example: dict[str, list[Any]],
    names: dict[int, str],
    split: str | None,
) -> Picture:
    height, width = int(example["image/height"][0]), int(example["image/width"][0])
    kind = (example.get("image/format") or [b"jpeg"])[0].decode()
    given = (example.get("image/filename") or example.get("image/source_id") or [b""])[0].decode(errors="replace")
    stem = PurePosixPath(given.replace("\\", "/")).stem or f"{re.sub(NAME, '', path.name)}_{place}"
    picture = Picture(
        path.with_name(f"{stem}.{'jpg' if kind.lower() == 'jpeg' else kind.lower()}"),
        height,
        width,
        split=split,
        embedded=lambda: _encoded(path, offset),
    )
    if not example.get("image/encoded"):
        raise ValueError("has no image/encoded")
    boxes = [example.get(f"image/object/bbox/{key}", []) for key in ("xmin", "ymin", "xmax", "ymax")]
    if len({len(values) for values in boxes}) > 1:
        raise ValueError("has more of one corner of its boxes than of another")
    for number, (x1, y1, x2, y2) in enumerate(zip(*boxes, strict=True)):
        with reading.guard(path, f"record {place}, object {number}: "):
            box = (x1 * width, y1 * height, x2 * width, y2 * height)
            picture.instances.append(_instance(example, number, box, names, picture))
    return picture


def _instance(
    example: dict[str, list[Any]], number: int, box: Any, names: dict[int, str], picture: Picture
) -> Instance:
    def value(key: str) -> Any:
        values = example.get(f"image/object/{key}", [])
        return values[number] if number < len(values) else None

    text, code = value("class/text"), value("class/label")
    if text is None and code is None:
        raise ValueError("has no class")
    label = text.decode() if text else names.get(code, f"class{code}")
    crowd = bool(value("is_crowd") or value("group_of"))
    attributes = {key: True for key in FLAGS if value(key)}
    instance = Instance(label, box, crowd=crowd, attributes=attributes)
    mask = value("mask")
    if isinstance(mask, bytes):
        pixels = read_mask(mask)
        if pixels.shape != (picture.height, picture.width):
            raise ValueError(f"its mask is {pixels.shape[0]} x {pixels.shape[1]}, its image of another size")
        found = mask_instance(label, pixels)
        instance.segmentation = None if found is None else found.segmentation
    return instance


def _class_names(source: Source) -> dict[int, str]:
    """Of a label map: item { id: 1 name: 'cat' }."""
    names = {}
    for path in source.below(".pbtxt"):
        for item in ITEM.findall(path.read_text(encoding="utf-8", errors="replace")):
            code = re.search(r"\bid\s*:\s*(\d+)", item)
            name = re.search(r"\b(?:display_name|name)\s*:\s*['\"]([^'\"]*)['\"]", item)
            if code and name:
                names[int(code[1])] = name[1]
    return names


def _encoded(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        (length,) = struct.unpack("<Q", file.read(_HEADER)[:8])
        return parse_example(file.read(length))["image/encoded"][0]


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each record's place in the file and its data.

    Raises:
        ValueError: the file is cut short, or is no TFRecord file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(_HEADER):
            offset = file.tell() - len(header)
            if len(header) < _HEADER:
                raise ValueError(f"is cut short at byte {offset}")
            length, mark = struct.unpack("<QI", header)
            if masked_checksum(header[:8]) != mark:
                raise ValueError(f"the length of the record at byte {offset} has a wrong checksum: no TFRecord file?")
            if offset + _HEADER + length + _MARK > size:
                raise ValueError(f"is cut short in the record at byte {offset}")
            data = file.read(length)
            file.seek(_MARK, 1)
            yield offset, data


def parse_example(data: bytes) -> dict[str, list[Any]]:
    """The features of a serialized tf.train.Example: lists of bytes, floats or integers by name.

    Raises:
        ValueError: it is none.
    """
    found: dict[str, list[Any]] = {}
    for number, features in _fields(data):
        if number != 1:
            continue
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            found[parts[1].decode()] = _values(parts.get(2, b""))
    return found


def _values(feature: bytes) -> list[Any]:
    for kind, content in _fields(feature):
        values: list[Any] = []
        for _, value in _fields(content):
            if kind == 1:
                values.append(value)
            elif kind == 2:
                values += np.frombuffer(value, "<f4").tolist()
            elif isinstance(value, int):
                values.append(_signed(value))
            else:
                values += _varints(value)
        return values
    return []


def _varints(data: bytes) -> list[int]:
    values, place = [], 0
    while place < len(data):
        value, place = _varint(data, place)
        values.append(_signed(value))
    return values


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The numbered fields of a Protocol Buffers message (https://protobuf.dev/programming-guides/encoding)."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a message has the unknown kind of field {kind}")
        if place + length > len(data):
            raise ValueError("a message is cut short")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data) and shift < 70:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    raise ValueError("a message is cut short")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def masked_checksum(data: bytes) -> int:
    """CRC-32C as TFRecord stores it: turned by 15 bits, and a constant added."""
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ (0x82F63B78 if checksum & 1 else 0)
    checksum ^= 0xFFFFFFFF
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
