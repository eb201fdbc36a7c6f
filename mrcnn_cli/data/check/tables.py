"""The annotation file of a split as flat arrays, and the faults of its entries one by one.

Unlike `mrcnn_cli.data.coco`, which refuses a faulty file, everything that makes sense is kept and the rest is named.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_cli.data.check.faults import Finding
from mrcnn_cli.data.image import image_size
from mrcnn_cli.data.shape_faults import box_fault, finite, polygon_fault, read_runs, whole
from mrcnn_cli.errors import UserError
from mrcnn_cli.ops.run_lengths import compressed

BOX_FAULTS = {
    "is no box": "box-malformed",
    "not finite": "box-not-finite",
    "negative size": "box-negative",
    "zero area": "box-degenerate",
    "outside of its image": "box-outside",
    "leaves its image": "box-leaves-image",
}


@dataclass(frozen=True, slots=True)
class Split:
    """A folder of images and the content of its COCO file.

    Attributes:
        name: such as "train".
        folder: in which the file names lie.
        path: of the annotation file.
        content: with the lists "images", "annotations" and "categories".
    """

    name: str
    folder: Path
    path: Path
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """A well-formed entry of "images"; `place` is its index there, height and width are 0 where nobody knows them."""

    id: int
    file_name: str
    height: int
    width: int
    place: int


@dataclass(frozen=True, slots=True)
class Polygons:
    """All sound polygons of a split.

    Attributes:
        coordinates: [V, 2] x, y.
        starts, ends: [P] where each polygon's coordinates begin and end.
        owner: [P] the annotation of each.
        number: [P] its index in the segmentation.
    """

    coordinates: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    owner: np.ndarray
    number: np.ndarray

    def of(self, a: int) -> list[list[float]]:
        """Those of annotation `a`, as in COCO."""
        first, last = np.searchsorted(self.owner, [a, a + 1]).tolist()
        return [self.coordinates[self.starts[p] : self.ends[p]].reshape(-1).tolist() for p in range(first, last)]


@dataclass(frozen=True, slots=True)
class Table:
    """What makes sense of a split: images and categories with an id of their own, annotations that belong to both.

    Attributes:
        split: where it comes from.
        images: one for each id.
        categories: id -> name.
        places: [A] indices into the list "annotations"; so are the next six per annotation.
        ids: [A] int64, -1 where the file has none.
        image: [A] indices into `images`.
        category: [A] ids.
        crowd: [A] bool.
        bboxes: [A, 4] float64 x, y, width, height; NaN where there is no sound one.
        areas: [A] float64; NaN where there is none.
        polygons: those of all annotations.
        encodings: annotation -> {"size", "counts"}, compressed.
    """

    split: Split
    images: list[ImageEntry]
    categories: dict[int, str]
    places: np.ndarray
    ids: np.ndarray
    image: np.ndarray
    category: np.ndarray
    crowd: np.ndarray
    bboxes: np.ndarray
    areas: np.ndarray
    polygons: Polygons
    encodings: dict[int, dict[str, Any]]

    def __len__(self) -> int:
        return len(self.places)

    def entry(self, a: int) -> dict[str, Any]:
        """Annotation `a` as the file has it."""
        return self.split.content["annotations"][self.places[a]]

    def sizes(self) -> np.ndarray:
        """[I, 2] height and width of the images, 0 where nobody knows them."""
        return np.array([(image.height, image.width) for image in self.images], np.int64).reshape(-1, 2)

    def finding(self, fault: str, a: int, words: str, *, polygon: int = -1, value: Any = None) -> Finding:
        """A fault of annotation `a`."""
        image = self.images[self.image[a]]
        return Finding(
            fault,
            self.split.name,
            str(self.split.path),
            words,
            image.file_name,
            image.id,
            int(self.ids[a]),
            ("annotations", int(self.places[a]), polygon),
            value,
        )

    def mask_boxes(self) -> np.ndarray:
        """[A, 4] float64 corners of what the masks cover: of polygons exactly, of runs in whole pixels; else NaN."""
        boxes = np.full((len(self), 4), np.nan)
        polygons = self.polygons
        if len(polygons.ends):
            first = np.flatnonzero(np.diff(polygons.owner, prepend=-1))
            low = np.minimum.reduceat(np.minimum.reduceat(polygons.coordinates, polygons.starts), first)
            high = np.maximum.reduceat(np.maximum.reduceat(polygons.coordinates, polygons.starts), first)
            boxes[polygons.owner[first]] = np.concatenate([low, high], axis=1)
        if self.encodings:
            found = coco_mask.toBbox(list(self.encodings.values()))
            found[:, 2:] += found[:, :2]
            boxes[list(self.encodings)] = found
        return boxes


def numbers(values: Sequence[float]) -> str:
    """In brackets and with six digits."""
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"


def read_table(split: Split) -> tuple[Table, list[Finding]]:
    """What makes sense of a split, and the faults of what does not."""
    reader = _Reader(split)
    reader.categories()
    reader.images()
    reader.annotations()
    return reader.table(), reader.findings


class _Reader:
    def __init__(self, split: Split):
        self.split = split
        self.findings: list[Finding] = []
        self.image_entries: list[ImageEntry] = []
        self.place_of: dict[int, int] = {}  # id of an image -> index in image_entries
        self.names: dict[int, str] = {}
        self.places, self.ids, self.image, self.category = array("q"), array("q"), array("q"), array("q")
        self.crowd, self.bboxes, self.areas = array("b"), array("d"), array("d")
        self.coordinates, self.ends, self.owner, self.number = array("d"), array("q"), array("q"), array("q")
        self.encodings: dict[int, dict[str, Any]] = {}

    def table(self) -> Table:
        ends = np.array(self.ends, np.int64) // 2
        polygons = Polygons(
            np.array(self.coordinates, np.float64).reshape(-1, 2),
            np.concatenate([[0], ends[:-1]])[: len(ends)].astype(np.int64),
            ends,
            np.array(self.owner, np.int64),
            np.array(self.number, np.int64),
        )
        return Table(
            self.split,
            self.image_entries,
            self.names,
            np.array(self.places, np.int64),
            np.array(self.ids, np.int64),
            np.array(self.image, np.int64),
            np.array(self.category, np.int64),
            np.array(self.crowd, bool),
            np.array(self.bboxes, np.float64).reshape(-1, 4),
            np.array(self.areas, np.float64),
            polygons,
            self.encodings,
        )

    def note(
        self,
        fault: str,
        words: str,
        place: tuple[str, int, int],
        *,
        image: ImageEntry | None = None,
        annotation_id: int | None = None,
        value: Any = None,
    ) -> None:
        self.findings.append(
            Finding(
                fault,
                self.split.name,
                str(self.split.path),
                words,
                image.file_name if image else None,
                image.id if image else None,
                annotation_id,
                place,
                value,
            )
        )

    def categories(self) -> None:
        for place, entry in enumerate(self.split.content["categories"]):
            spot = ("categories", place, -1)
            number, name = whole(entry.get("id")), entry.get("name")
            if number is None or not isinstance(name, str) or not name:
                self.note("malformed-entry", f"categories[{place}] needs an id and a name: {shown(entry)}", spot)
            elif number in self.names:
                self.note("duplicate-id", f"categories '{self.names[number]}' and '{name}' have the id {number}", spot)
            else:
                if name in self.names.values():
                    first = next(other for other, known in self.names.items() if known == name)
                    words = f"categories {first} and {number} have the name '{name}'"
                    self.note("duplicate-class", words, spot, value=first)
                self.names[number] = name

    def images(self) -> None:
        by_name: dict[str, int] = {}
        for place, entry in enumerate(self.split.content["images"]):
            spot = ("images", place, -1)
            number, name = whole(entry.get("id")), entry.get("file_name")
            if number is None or not isinstance(name, str) or not name:
                self.note("malformed-entry", f"images[{place}] needs an id and a file_name: {shown(entry)}", spot)
                continue
            image = ImageEntry(number, name, 0, 0, place)
            if number in self.place_of:
                other = self.image_entries[self.place_of[number]].file_name
                self.note("duplicate-id", f"images {other} and {name} have the id {number}", spot, image=image)
                continue
            sides = [whole(entry.get(key)) for key in ("height", "width")]
            if entry.get("height") is None or entry.get("width") is None:
                sides = list(self._size_of_file(name, spot, image))
            elif any(side is None or side < 1 for side in sides):
                said = f"{shown(entry['height'])} x {shown(entry['width'])}"
                self.note("malformed-entry", f"is said to be {said} (height x width)", spot, image=image)
                sides = [0, 0]
            if name in by_name:
                words = f"images {by_name[name]} and {number} are the same file"
                self.note("duplicate-file", words, spot, image=image, value=by_name[name])
            by_name.setdefault(name, number)
            self.place_of[number] = len(self.image_entries)
            self.image_entries.append(ImageEntry(number, name, sides[0] or 0, sides[1] or 0, place))

    def _size_of_file(self, name: str, spot: tuple[str, int, int], image: ImageEntry) -> tuple[int, int]:
        try:
            size = image_size(self.split.folder / name)
        except UserError:  # the look at the pictures will say so
            return 0, 0
        words = f"has no height and width; the file is {size[0]} x {size[1]} (height x width)"
        self.note("size-missing", words, spot, image=image, value=list(size))
        return size

    def annotations(self) -> None:
        seen: set[int] = set()
        for place, entry in enumerate(self.split.content["annotations"]):
            spot = ("annotations", place, -1)
            number = whole(entry.get("id"))
            if number is None:
                if entry.get("id") is not None:
                    words = f"annotations[{place}] has the id {shown(entry['id'])}, which is no whole number"
                    self.note("malformed-entry", words, spot)
                    continue
            elif number in seen:
                self.note("duplicate-id", f"an earlier annotation has the id {number}", spot, annotation_id=number)
            else:
                seen.add(number)
            image_id, category = whole(entry.get("image_id")), whole(entry.get("category_id"))
            known = True
            if image_id not in self.place_of:
                words = f"has the image_id {shown(entry.get('image_id'))}, which no image has"
                self.note("unknown-image", words, spot, annotation_id=number)
                known = False
            image = self.image_entries[self.place_of[image_id]] if known and image_id is not None else None
            if category not in self.names:
                words = f"has the category_id {shown(entry.get('category_id'))}, which no category has"
                self.note("unknown-category", words, spot, image=image, annotation_id=number)
                known = False
            if entry.get("iscrowd") not in (None, 0, 1):
                words = f"'iscrowd' is {shown(entry['iscrowd'])} instead of 0 or 1"
                self.note("malformed-entry", words, spot, image=image, annotation_id=number)
                known = False
            if known and image is not None and category is not None:
                self._annotation(entry, place, -1 if number is None else number, image, category)

    def _annotation(self, entry: dict[str, Any], place: int, number: int, image: ImageEntry, category: int) -> None:
        """Everything of one annotation that can be judged by itself."""
        a = len(self.places)
        self.places.append(place)
        self.ids.append(number)
        self.image.append(self.place_of[image.id])
        self.category.append(category)
        self.crowd.append(bool(entry.get("iscrowd")))
        area: Any = entry.get("area")
        sound = isinstance(area, int | float) and not isinstance(area, bool) and finite([area])
        self.areas.append(float(area) if sound else np.nan)
        if image.height:
            self._segmentation(entry.get("segmentation"), a, place, number, image)
        bbox = entry.get("bbox")
        if bbox is None or bbox == []:
            self.note("box-missing", "has no box", ("annotations", place, -1), image=image, annotation_id=number)
            self.bboxes.extend([np.nan] * 4)
            return
        fault = box_fault(bbox, image.height or 2**31, image.width or 2**31)
        if fault is not None:
            words = f"its box is {shown(bbox) if fault == 'is no box' else numbers(bbox)}"
            if "image" in fault:
                words += f", the image {image.height} x {image.width} (height x width)"
            spot = ("annotations", place, -1)
            self.note(BOX_FAULTS[fault], words, spot, image=image, annotation_id=number)
        self.bboxes.extend(bbox if fault in (None, "leaves its image") else [np.nan] * 4)

    def _segmentation(self, given: Any, a: int, place: int, number: int, image: ImageEntry) -> None:
        spot = ("annotations", place, -1)
        if given is None or given == []:
            return
        if isinstance(given, dict):
            size = [image.height, image.width]
            if given.get("size") != size:
                words = f"its runs are for {shown(given.get('size'))}, its image is {size}, [height, width]"
                self.note("runs-of-other-size", words, spot, image=image, annotation_id=number)
                return
            try:
                runs = read_runs(given)
            except ValueError as error:
                self.note("runs-malformed", f"its runs: {error}", spot, image=image, annotation_id=number)
                return
            if runs[1::2].any():
                self.encodings[a] = {"size": size, "counts": compressed(runs)}
            else:
                self.note("mask-empty", "its runs cover no pixel", spot, image=image, annotation_id=number)
        elif not isinstance(given, list) or not all(isinstance(polygon, list) for polygon in given):
            words = f"its segmentation is {shown(given)}"
            self.note("mask-malformed", words, spot, image=image, annotation_id=number)
        else:
            for place_in, polygon in enumerate(given):
                fault = polygon_fault(polygon, image.height, image.width)
                if fault is None:
                    self.coordinates.extend(polygon)
                    self.ends.append(len(self.coordinates))
                    self.owner.append(a)
                    self.number.append(place_in)
                else:
                    words = f"polygon {place_in} of its mask: {fault}"
                    spot = ("annotations", place, place_in)
                    self.note("polygon-malformed", words, spot, image=image, annotation_id=number)
