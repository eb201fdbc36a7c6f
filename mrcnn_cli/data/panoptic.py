"""Maps of what each pixel is: COCO's panoptic format (https://cocodataset.org/#format-data), or a folder of label maps.

A panoptic file lists for each image its segments, and names a PNG whose colours are their ids: R + 256 G + 256^2 B. Its
things are read as objects like those of any COCO file; their masks are cut out of the PNG when the image is needed.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from reprlib import repr as shown  # cut short where it is long
from typing import Any, TypeGuard

import numpy as np

from mrcnn_cli.data.annotations import ImageAnnotations, ImageRecord
from mrcnn_cli.data.image import read_image
from mrcnn_cli.data.masks import visible_box
from mrcnn_cli.errors import UserError
from mrcnn_cli.ops.run_lengths import compressed, run_lengths
from mrcnn_cli.structures import IGNORED

VOID = 0  # the id of pixels that belong to no segment
MOST_IDS = 256**3
MOST_STUFF = IGNORED - 1  # classes, beside 0 for things
NEEDED = "COCO's panoptic format needs 'image_id', 'file_name' and a list 'segments_info' for each image"


def is_panoptic(content: dict[str, Any]) -> bool:
    """Whether the content of a COCO file is of the panoptic format."""
    return any("segments_info" in entry for entry in content["annotations"][:1])


def read_ids(path: Path) -> np.ndarray:
    """[H, W] int32, the id of each pixel's segment in a panoptic PNG.

    Raises:
        UserError: no such file, or no picture of 8 bits per channel.
    """
    pixels = read_image(path)
    if pixels.dtype != np.uint8:
        raise UserError(f"{path}: is grey with deep pixels; a panoptic PNG has the ids as colours, R + 256 G + 256^2 B")
    return pixels.astype(np.int32) @ np.array([1, 256, 256**2], np.int32)


def colours_of(ids: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8, the pixels of the panoptic PNG with these ids [H, W], 0 <= id < 256^3."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1).astype(np.uint8)


def encodings(ids: np.ndarray, wanted: Sequence[int]) -> list[dict[str, Any] | None]:
    """The run-length encoding of each wanted id's pixels in a map [H, W]; None for an id without pixels."""
    flat = ids.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts, ends = np.concatenate([[0], changes]), np.concatenate([changes, [len(flat)]])
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    values = values[order]
    results: list[dict[str, Any] | None] = []
    for number in wanted:
        chosen = order[np.searchsorted(values, number) : np.searchsorted(values, number, side="right")]
        edges = np.stack([starts[chosen], ends[chosen]], axis=1).reshape(-1)
        runs = np.diff(np.concatenate([[0], edges, [len(flat)]]))
        if not len(chosen):
            results.append(None)
        else:
            runs = runs if runs[-1] else runs[:-1]
            results.append({"size": list(ids.shape), "counts": compressed(runs)})
    return results


class PanopticMaps:
    """The PNG files of a panoptic file, and what their ids mean.

    Attributes:
        stuff: names of the classes of stuff, in label order.
        stuff_ids: their category ids.
    """

    def __init__(self, path: Path, content: dict[str, Any], stuff: Sequence[str] | None):
        self.path = path
        self.categories = content["categories"]
        self.things: dict[int, bool] = {}
        given = [entry.get("name") for entry in self.categories]
        names: dict[str, int] = {}
        for place, entry in enumerate(self.categories):
            if not _is_number(entry.get("id")):
                raise UserError(f"{path}: categories[{place}]: 'id' is {shown(entry.get('id'))}; write a whole number")
            self.things[entry["id"]] = _is_thing(entry, path)
            if self.things[entry["id"]]:
                continue  # its name is checked where objects are read
            name = entry.get("name")
            if not isinstance(name, str) or not name or given.count(name) > 1:
                raise UserError(
                    f"{path}: the category of stuff with the id {entry['id']} has the name {shown(name)}; give each "
                    "category a name of its own"
                )
            names[name] = entry["id"]
        self.stuff = tuple(sorted(names, key=names.__getitem__)) if stuff is None else tuple(stuff)
        unknown = [name for name in names if name not in self.stuff]
        if unknown:
            raise UserError(
                f"{path}: has the stuff '{unknown[0]}', which is not among the classes of stuff "
                f"{', '.join(self.stuff[:5])}; rename or remove it, or set data.stuff"
            )
        if len(self.stuff) > MOST_STUFF:
            raise UserError(f"{path}: has {len(self.stuff)} classes of stuff; at most {MOST_STUFF} are possible")
        free = max(self.things, default=0)
        # A class that the file does not have gets an id that it does not have.
        self.stuff_ids = tuple(names.get(name, free + place) for place, name in enumerate(self.stuff, start=1))
        labels = {names[name]: place for place, name in enumerate(self.stuff, start=1) if name in names}
        self.values = {number: 0 if thing else labels[number] for number, thing in self.things.items()}
        self._read(content)

    def _read(self, content: dict[str, Any]) -> None:
        """The segments of all images in flat arrays, in the order of the images."""
        listed: dict[int, dict[str, Any]] = {}
        for place, entry in enumerate(content["annotations"]):
            number, name, segments = (entry.get(key) for key in ("image_id", "file_name", "segments_info"))
            if not _is_number(number) or not isinstance(name, str) or not isinstance(segments, list):
                raise UserError(f"{self.path}: annotations[{place}] is no list of segments; {NEEDED}")
            if number in listed:
                raise UserError(f"{self.path}: image {number} has two lists of segments; merge them")
            listed[number] = entry
        self.files: list[str] = []
        self.numbers: list[int] = []  # of the images
        ids: list[int] = []
        categories: list[int] = []
        crowds: list[bool] = []
        first = [0]
        for image in content["images"]:
            if not _is_number(image.get("id")) or image["id"] not in listed:
                raise UserError(f"{self.path}: image {shown(image.get('id'))} has no list of segments; {NEEDED}")
            entry = listed[image["id"]]
            for segment in entry["segments_info"]:
                self._check(segment, f"image {image['id']}")
                ids.append(segment["id"])
                categories.append(segment["category_id"])
                crowds.append(bool(segment.get("iscrowd")))
            if len(set(ids[first[-1] :])) < len(ids) - first[-1]:
                raise UserError(f"{self.path}: image {image['id']} has two segments of one id; give each its own")
            first.append(len(ids))
            self.files.append(entry["file_name"])
            self.numbers.append(image["id"])
        self.first, self.ids, self.crowds = np.array(first), np.array(ids, np.int64), np.array(crowds, bool)
        self.category_ids = np.array(categories, np.int64)
        self.folder = self._folder()

    def _check(self, segment: Any, where: str) -> None:
        if not isinstance(segment, dict):
            raise UserError(f"{self.path}: {where}: a segment is {shown(segment)} instead of an object; {NEEDED}")
        number, category = segment.get("id"), segment.get("category_id")
        if not isinstance(number, int) or not VOID < number < MOST_IDS:
            raise UserError(f"{self.path}: {where}: a segment has the id {shown(number)}; ids go from 1 to 256^3 - 1")
        if not _is_number(category) or category not in self.things:
            raise UserError(
                f"{self.path}: {where}: segment {number} has the unknown category_id {shown(category)}; correct it"
            )

    def _folder(self) -> Path:
        """Where the PNG files lie: a folder beside the list, named like it, with or without "panoptic_"."""
        stem = self.path.stem
        tried = [self.path.with_suffix(""), self.path.with_name(stem.removeprefix("panoptic_")), self.path.parent]
        best, fewest = tried[0], self.files
        for folder in tried:
            present = set(os.listdir(folder)) if folder.is_dir() else set()
            missing = [name for name in self.files if name not in present and not (folder / name).is_file()]
            if not missing:
                return folder
            if len(missing) < len(fewest):
                best, fewest = folder, missing
        places = ", ".join(f"{folder}/" for folder in dict.fromkeys(tried))
        raise UserError(
            f"{best / fewest[0]}: listed in {self.path} but does not exist ({len(fewest)} of {len(self.files)} PNG "
            f"files are missing); put all into one of {places}"
        )

    def objects(self, content: dict[str, Any], *, masks: bool = False) -> dict[str, Any]:
        """The things as the content of an ordinary COCO file.

        Boxes and areas that the list lacks, as lists of other tools do, are taken from the PNG files.

        Args:
            content: of the file.
            masks: with the things' masks, for which every PNG file is read.
        """
        things = [entry for entry in self.categories if self.things[entry["id"]]]
        listed = {entry["image_id"]: entry["segments_info"] for entry in content["annotations"]}
        annotations = []
        for place, number in enumerate(self.numbers):
            segments = [segment for segment in listed[number] if self.things[segment["category_id"]]]
            shapes: list[Any] = [None] * len(segments)
            if masks or not all(segment.get("bbox") and segment.get("area") for segment in segments):
                shapes = self._encodings(place, read_ids(self._file(place)), [segment["id"] for segment in segments])
            for segment, encoding in zip(segments, shapes, strict=True):
                annotation: dict[str, Any] = {"id": self._object(place, segment["id"]), "image_id": number}
                annotation |= {key: segment.get(key) for key in ("category_id", "iscrowd", "bbox", "area")}
                if encoding is not None:
                    height, width = encoding["size"]
                    x1, y1, x2, y2 = visible_box(encoding, (0, 0, width, height)) or (0, 0, 0, 0)
                    annotation["bbox"] = annotation["bbox"] or [x1, y1, x2 - x1, y2 - y1]
                    annotation["area"] = annotation["area"] or int(run_lengths(encoding)[1::2].sum())
                    if masks:
                        annotation["segmentation"] = {**encoding, "counts": encoding["counts"].decode("ascii")}
                annotations.append(annotation)
        return {**content, "categories": things, "annotations": annotations}

    def _encodings(self, place: int, ids: np.ndarray, wanted: Sequence[int]) -> list[dict[str, Any]]:
        found = []
        for number, encoding in zip(wanted, encodings(ids, wanted), strict=True):
            if encoding is None:
                raise UserError(
                    f"{self._file(place)}: has no pixels of segment {number}, which {self.path} lists for it; "
                    "remove the segment there, or draw it"
                )
            found.append(encoding)
        return found

    def complete(self, index: int, record: ImageRecord, objects: ImageAnnotations) -> ImageAnnotations:
        """The objects of an image with their masks and the map of stuff.

        Raises:
            UserError: the PNG cannot be read, is not of the image's size, or lacks a segment.
        """
        ids = self._map(index, record)
        wanted = (objects.ids % MOST_IDS).tolist()
        span = slice(int(self.first[index]), int(self.first[index + 1]))
        values = np.array([self.values[number] for number in self.category_ids[span].tolist()], np.uint8)
        order = np.argsort(self.ids[span])
        listed = np.concatenate([self.ids[span][order], [MOST_IDS]])
        place = np.searchsorted(listed, ids)
        semantic = np.where(listed[place] == ids, np.append(values[order], IGNORED)[place], IGNORED).astype(np.uint8)
        return replace(objects, segmentations=self._encodings(index, ids, wanted), semantic=semantic)

    def truth(self, index: int, record: ImageRecord) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The map of ids [H, W] of an image, and per segment `id`, `category_id` and `iscrowd`."""
        span = slice(int(self.first[index]), int(self.first[index + 1]))
        keys = ("id", "category_id", "iscrowd")
        rows = zip(self.ids[span].tolist(), self.category_ids[span].tolist(), self.crowds[span].tolist(), strict=True)
        return self._map(index, record), [dict(zip(keys, row, strict=True)) for row in rows]

    def _map(self, index: int, record: ImageRecord) -> np.ndarray:
        return _of_size(read_ids(self._file(index)), self._file(index), record)

    def _file(self, place: int) -> Path:
        return self.folder / self.files[place]

    def _object(self, place: int, segment: int) -> int:
        """An id for a thing that is its own among all images: ids of segments are so within an image only."""
        return place * MOST_IDS + segment


class LabelMaps:
    """A folder of grey pictures named like the images: 0 where things are, 1..S for stuff, 255 where nobody said.

    Detectron2's prepare_panoptic_fpn.py writes such maps for COCO.
    """

    def __init__(self, folder: Path, records: Sequence[ImageRecord], stuff: Sequence[str], first_id: int):
        self.folder, self.stuff = folder, tuple(stuff)
        self.stuff_ids = tuple(range(first_id, first_id + len(stuff)))
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of label maps; check data.train.semantic and data.val.semantic")
        missing = [record for record in records if not self._file(record).is_file()]
        if missing:
            raise UserError(
                f"{self._file(missing[0])}: does not exist ({len(missing)} of {len(records)} label maps are missing); "
                "each image needs a PNG of its name there"
            )

    def complete(self, index: int, record: ImageRecord, objects: ImageAnnotations) -> ImageAnnotations:
        """The objects of an image with the map of stuff.

        Raises:
            UserError: the map cannot be read, is not of the image's size, or has labels beyond the classes.
        """
        path = self._file(record)
        semantic = _of_size(read_image(path)[:, :, 0], path, record)
        wrong = np.unique(semantic[(semantic > len(self.stuff)) & (semantic != IGNORED)])
        if len(wrong):
            raise UserError(
                f"{path}: has the label {wrong[0]}, but data.stuff names {len(self.stuff)} classes; a map holds 0 for "
                f"things, 1..{len(self.stuff)} for stuff and {IGNORED} for the rest"
            )
        return replace(objects, semantic=semantic.astype(np.uint8))

    def _file(self, record: ImageRecord) -> Path:
        return (self.folder / record.file_name).with_suffix(".png")


def _of_size(found: np.ndarray, path: Path, record: ImageRecord) -> np.ndarray:
    if found.shape != (record.height, record.width):
        raise UserError(
            f"{path}: is {found.shape[0]} x {found.shape[1]} (height x width), its image {record.file_name} is "
            f"{record.height} x {record.width}; both must be of one size"
        )
    return found


def _is_number(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_thing(category: dict[str, Any], path: Path) -> bool:
    value = category.get("isthing")
    if value not in (0, 1):
        raise UserError(
            f"{path}: category {shown(category.get('name'))} has 'isthing' {shown(value)}; write 1 for things that can "
            "be counted and 0 for stuff"
        )
    return bool(value)
