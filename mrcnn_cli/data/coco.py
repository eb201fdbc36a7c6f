"""Data sets in COCO's format (https://cocodataset.org/#format-data), checked and repaired as they are read."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from reprlib import repr as shown  # cut short where it is long
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_cli.data.annotations import (
    AnnotationBuilder,
    Annotations,
    ImageAnnotations,
    ImageRecord,
    ImageRecords,
    Segmentation,
)
from mrcnn_cli.data.coco_file import read_content, some, without_collecting
from mrcnn_cli.data.image import image_size, read_image
from mrcnn_cli.data.keypoints import OUTSIDE, KeypointsConfig, read_categories, read_object
from mrcnn_cli.data.masks import visible_box
from mrcnn_cli.data.panoptic import LabelMaps, PanopticMaps, is_panoptic
from mrcnn_cli.data.proposals import MatchedProposals
from mrcnn_cli.data.shape_faults import box_fault, finite, polygon_fault, read_runs, whole
from mrcnn_cli.errors import UserError
from mrcnn_cli.ops.run_lengths import compressed

_LEFT_OUT = {
    "not finite": "annotation with a box that is not finite",
    "negative size": "annotation with a box of negative size",
    "zero area": "annotation with a box of zero area",
    "outside of its image": "annotation with a box outside of its image",
}


class Dataset:
    """Images and their annotated objects.

    Attributes:
        classes: names, in label order.
        category_ids: label -> id of the annotation file.
        images: the images, in the file's order.
        annotations: per image its objects.
        warnings: what was repaired or left out, one counted line for each kind of fault.
        has_masks: whether each object has a mask (else none has).
        keypoints: what the objects' keypoints are; None where there are none, or they were not asked for.
        names_keypoints: whether the file names keypoints.
        maps: what each pixel is, beside the objects; None where the data has no stuff.
        proposals: per image [P_i, 4], best first, where they were given.
    """

    def __init__(
        self,
        source: Path,
        classes: Sequence[str],
        category_ids: Sequence[int],
        images: Sequence[ImageRecord],
        annotations: Annotations,
        warnings: list[str],
        keypoints: KeypointsConfig | None = None,
        names_keypoints: bool = False,
        maps: PanopticMaps | LabelMaps | None = None,
    ):
        self.source = source
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids)
        self.images = images
        self.annotations = annotations
        self.warnings = warnings
        self.keypoints = keypoints
        self.names_keypoints = names_keypoints
        self.mirror = keypoints.mirror() if keypoints is not None else None
        self.has_masks = annotations.has_masks or isinstance(maps, PanopticMaps)
        self.maps = maps
        self.proposals: MatchedProposals | None = None

    @classmethod
    def read(
        cls,
        images: str | Path,
        annotations: str | Path,
        *,
        classes: Sequence[str] | None = None,
        keypoints: KeypointsConfig | None = None,
        stuff: Sequence[str] | None = None,
        semantic: str | Path | None = None,
    ) -> "Dataset":
        """The data set of a folder of images and a COCO file, of objects or in the panoptic format.

        Boxes without area, outside of the image or not finite, and annotations without a mask in a file that has masks
        are left out; boxes that leave the image are clipped; what is missing and can be computed is computed. Each is
        counted in `warnings`. Images without objects stay: they show what is background.

        Args:
            images: the folder in which the file's `file_name`s lie.
            annotations: the JSON file.
            classes: names in label order, of a model or of the training images; None: the file's, by category id.
            keypoints: read them too, and what is known of them beforehand; None: they are passed over.
            stuff: the same for the classes of stuff.
            semantic: a folder of label maps of `stuff`, for a file of objects; see `LabelMaps`.

        Raises:
            UserError: a file that is missing, not COCO or contradicts itself; a listed image that does not exist;
                a category that is not among `classes` or `stuff`.
        """
        with without_collecting():
            return _Reader(Path(images), Path(annotations)).read(classes, keypoints, stuff, semantic)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int) -> tuple[np.ndarray, ImageAnnotations]:
        """One picture as `read_image` gives it, and its objects.

        Raises:
            UserError: the file is no image, or of another size than the annotation file says.
        """
        return self.read_image(index), self.objects(index)

    def objects(self, index: int) -> ImageAnnotations:
        """The objects of one picture, with the map of stuff and the proposals where the data has them.

        Raises:
            UserError: that map cannot be read, or contradicts the annotation file.
        """
        found: ImageAnnotations = self.annotations[index]
        if self.proposals is not None:
            found = replace(found, proposals=self.proposals[index])
        return found if self.maps is None else self.maps.complete(index, self.images[index], found)

    @property
    def stuff(self) -> tuple[str, ...] | None:
        """Names of the classes of stuff, in label order; None where the data has none."""
        return None if self.maps is None else self.maps.stuff

    @property
    def categories(self) -> list[dict[str, Any]]:
        """label -> {"id", "name"}; where the data has stuff, its classes follow and each says whether it "isthing"."""
        things = zip(self.category_ids, self.classes, strict=True)
        if self.maps is None:
            return [{"id": number, "name": name} for number, name in things]
        stuff = zip(self.maps.stuff_ids, self.maps.stuff, strict=True)
        kinds = ((things, 1), (stuff, 0))
        return [{"id": number, "name": name, "isthing": kind} for pairs, kind in kinds for number, name in pairs]

    def panoptic_truth(self, index: int) -> tuple[np.ndarray, list[dict[str, Any]]] | None:
        """The map of segment ids of one picture and what they are, as in the file; None without a panoptic file."""
        return self.maps.truth(index, self.images[index]) if isinstance(self.maps, PanopticMaps) else None

    def read_image(self, index: int, channels: int | None = None) -> np.ndarray:
        """One picture [H, W, C] as `mrcnn_cli.data.image.read_image` gives it.

        Raises:
            UserError: the file is no image, or of another size than the annotation file says.
        """
        record = self.images[index]
        image = read_image(record.path, channels)
        if image.shape[:2] != (record.height, record.width):
            raise UserError(self._wrong_size(record, image.shape[0], image.shape[1]))
        return image

    def boxes_by_image(self) -> Iterator[tuple[ImageRecord, np.ndarray]]:
        """Each image with the boxes [G, 4] of its objects, crowds left out, in pixels of the picture."""
        store = self.annotations
        for record, start, end in zip(self.images, store.first[:-1], store.first[1:], strict=True):
            yield record, store.boxes[start:end][~store.crowds[start:end]]

    def check_trainable(self) -> None:
        """Nothing, where there is something to learn.

        Raises:
            UserError: no image has an object.
        """
        if self.annotations.crowds.all():
            left_out = f" ({'; '.join(self.warnings)})" if self.warnings else ""
            raise UserError(
                f"{self.source}: no image has an object to learn from{left_out}; add annotations (crowds do not count)"
            )

    def coco(self) -> dict[str, Any]:
        """The data set after all repairs as a COCO file's content: the truth for evaluation, crowds included.

        pycocotools takes an object of id 0 for one that was not found; here it has another id.
        """
        store = self.annotations
        free = int(store.ids.max(initial=0)) + 1
        annotations: list[dict[str, Any]] = []
        for index, record in enumerate(self.images):
            start, segmentations = int(store.first[index]), self.objects(index).segmentations
            for a in range(start, int(store.first[index + 1])):
                annotation = {
                    "id": int(store.ids[a]) or free,
                    "image_id": record.id,
                    "category_id": self.category_ids[store.labels[a]],
                    "bbox": store.bboxes[a].tolist(),
                    "area": float(store.areas[a]),
                    "iscrowd": int(store.crowds[a]),
                }
                if segmentations is not None:
                    segmentation = segmentations[a - start]
                    if isinstance(segmentation, dict):
                        segmentation["counts"] = segmentation["counts"].decode("ascii")
                    annotation["segmentation"] = segmentation
                if self.keypoints is not None:
                    annotation["keypoints"] = store.keypoints[a].reshape(-1).tolist()
                    annotation["num_keypoints"] = int((store.keypoints[a, :, 2] > 0).sum())
                annotations.append(annotation)
        return {
            "info": {},
            "licenses": [],
            "images": [
                {"id": record.id, "file_name": record.file_name, "height": record.height, "width": record.width}
                for record in self.images
            ],
            "categories": [category | self._named_keypoints() for category in self.categories[: len(self.classes)]],
            "annotations": annotations,
        }

    def _named_keypoints(self) -> dict[str, Any]:
        if self.keypoints is None:
            return {}
        skeleton = [[one + 1, other + 1] for one, other in self.keypoints.lines()]
        return {"keypoints": list(self.keypoints.names or ()), "skeleton": skeleton}

    def _wrong_size(self, record: ImageRecord, height: int, width: int) -> str:
        said = (record.height, record.width)
        message = f"{record.path}: is {height} x {width} (height x width), but {self.source} says {said[0]} x {said[1]}"
        if image_size(record.path, upright=False) == said:
            return (
                f"{message}, its size before the file's EXIF orientation turns it; remove that tag if the annotations "
                "were made on the unturned picture, else turn the annotations"
            )
        return f"{message}; annotations only fit the picture they were made on: put it back, or correct the file"


class Repairs:
    """Counts of what was repaired or left out, with the first example of each."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], tuple[int, str]] = {}

    def note(self, what: str, remedy: str, example: str) -> None:
        """`what` in the singular, its first word the thing that is counted."""
        count, first = self.found.get((what, remedy), (0, example))
        self.found[what, remedy] = (count + 1, first)

    def merge(self, other: "Repairs") -> None:
        """Adds what another has counted."""
        for key, (count, first) in other.found.items():
            mine, example = self.found.get(key, (0, first))
            self.found[key] = (mine + count, example)

    def lines(self) -> list[str]:
        lines = []
        for (what, remedy), (count, first) in self.found.items():
            thing, _, rest = what.partition(" ")
            lines.append(f"{count} {thing}{'s' if count > 1 else ''} {rest} {remedy} (first: {first})")
        return lines


class _Reader:
    """Reads one file."""

    def __init__(self, folder: Path, path: Path):
        self.folder, self.path = folder, path
        self.repairs = Repairs()

    def read(
        self,
        classes: Sequence[str] | None,
        keypoints: KeypointsConfig | None,
        stuff: Sequence[str] | None,
        semantic: str | Path | None,
    ) -> Dataset:
        content = read_content(self.path)
        maps: PanopticMaps | LabelMaps | None = None
        if is_panoptic(content):
            maps = PanopticMaps(self.path, content, stuff)
            content = maps.objects(content)
        names = self._categories(content["categories"])
        records = self._images(content["images"])
        if classes is None:
            classes = [names[number] for number in sorted(names)]
        unknown = [name for name in names.values() if name not in classes]
        if unknown:
            raise UserError(
                f"{self.path}: has the categories {some(unknown)}, which are not among the classes {some(classes)}; "
                "rename or remove them, or set data.classes"
            )
        numbers = {name: number for number, name in names.items()}
        free = max(numbers.values(), default=0)
        category_ids = []
        for name in classes:  # a class that the file does not have gets an id that it does not have
            free += name not in numbers
            category_ids.append(numbers.get(name, free))
        labels = {number: classes.index(name) for number, name in names.items()}
        names_keypoints = any(category.get("keypoints") for category in content["categories"])
        if keypoints is not None:
            keypoints, fault = read_categories(self.path, content["categories"], keypoints)
            if fault is not None:
                self.repairs.note("skeleton with a line to a keypoint that is not there", "left out", fault)
        annotations = self._annotations(content["annotations"], records, labels, keypoints)
        if maps is None and semantic is not None:
            maps = LabelMaps(Path(semantic), records, stuff or (), max(category_ids) + 1)
        return Dataset(
            self.path,
            classes,
            category_ids,
            annotations.records,
            annotations,
            self.repairs.lines(),
            keypoints,
            names_keypoints,
            maps,
        )

    def _categories(self, entries: list[dict[str, Any]]) -> dict[int, str]:
        names: dict[int, str] = {}
        for place, entry in enumerate(entries):
            where = f"categories[{place}]"
            number = self._whole(entry, "id", where)
            name = self._text(entry, "name", where)
            if number in names:
                raise UserError(f"{self.path}: two categories have the id {number}; give each its own")
            if name in names.values():
                raise UserError(f"{self.path}: two categories have the name '{name}'; merge or rename them")
            names[number] = name
        if not names:
            raise UserError(f"{self.path}: 'categories' is empty; name at least one class of objects there")
        return names

    def _images(self, entries: list[dict[str, Any]]) -> list[ImageRecord]:
        if not entries:
            raise UserError(f"{self.path}: 'images' is empty; list at least one image")
        seen: set[int] = set()
        names: list[str] = []
        for place, entry in enumerate(entries):
            number = self._whole(entry, "id", f"images[{place}]")
            if number in seen:
                raise UserError(f"{self.path}: two images have the id {number}; give each its own")
            seen.add(number)
            names.append(self._text(entry, "file_name", f"image {number}"))
        self._check_presence(names)
        return [self._record(entry, name) for entry, name in zip(entries, names, strict=True)]

    def _record(self, entry: dict[str, Any], name: str) -> ImageRecord:
        if entry.get("height") is None or entry.get("width") is None:
            height, width = image_size(self.folder / name)
            self.repairs.note("image without height and width", "taken from the file", name)
        else:
            height, width = (self._whole(entry, key, f"image {name}") for key in ("height", "width"))
            if height < 1 or width < 1:
                raise UserError(f"{self.path}: image {name} is said to be {height} x {width}; correct its size")
        return ImageRecord(int(entry["id"]), name, height, width, self.folder)

    def _check_presence(self, names: list[str]) -> None:
        """One listing of each folder: asking for each file takes minutes on a network drive."""
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder of images; check the path")
        present: dict[str, set[str]] = {}
        missing = []
        for name in names:
            parent, _, last = name.rpartition("/")
            if parent not in present:
                try:
                    with os.scandir(self.folder / (parent or ("/" if name.startswith("/") else ""))) as entries:
                        present[parent] = {entry.name for entry in entries}
                except OSError:
                    present[parent] = set()
            if last not in present[parent]:
                missing.append(name)
        if missing:
            raise UserError(
                f"{self.folder / missing[0]}: listed in {self.path} but does not exist "
                f"({len(missing)} of {len(names)} images are missing); check the folder, or remove them from the file"
            )

    def _annotations(
        self,
        entries: list[dict[str, Any]],
        records: list[ImageRecord],
        labels: dict[int, int],
        keypoints: KeypointsConfig | None,
    ) -> Annotations:
        names = keypoints.names or () if keypoints is not None else ()
        builder = AnnotationBuilder(len(names), keypoints.offset if keypoints is not None else 0.0)
        places = {record.id: place for place, record in enumerate(records)}
        ids = self._annotation_ids(entries)
        without_mask: list[str] = []
        for number, entry in zip(ids, entries, strict=True):
            where = f"annotation {number}"
            image_id, category = self._whole(entry, "image_id", where), self._whole(entry, "category_id", where)
            if image_id not in places:
                raise UserError(f"{self.path}: {where} has the unknown image_id {image_id}; correct or remove it")
            if category not in labels:
                raise UserError(f"{self.path}: {where} has the unknown category_id {category}; correct or remove it")
            place = places[image_id]
            record = records[place]
            example = f"{where} of image {record.file_name}"
            if entry.get("iscrowd") not in (None, 0, 1):
                raise UserError(f"{self.path}: {where}: 'iscrowd' is {shown(entry['iscrowd'])}; write 0 or 1")
            segmentation = self._segmentation(entry.get("segmentation"), record, where, example)
            bbox = self._bbox(entry.get("bbox"), segmentation, record, where, example)
            if bbox is None:
                continue
            given, box = bbox
            area = entry.get("area")
            if not isinstance(area, int | float) or not finite([area]) or area < 0:
                area = _area(segmentation, given, record)
            crowd = bool(entry.get("iscrowd"))
            points = self._keypoints(entry.get("keypoints"), names, record, where, example)
            builder.add(place, number, labels[category], crowd, given, box, float(area), segmentation, points)
            if segmentation is None:
                without_mask.append(example)
        store = builder.build(ImageRecords(records, self.folder))
        if store.has_masks:
            for example in without_mask:
                self.repairs.note("annotation without a mask", "left out", example)
        return store

    def _annotation_ids(self, entries: list[dict[str, Any]]) -> list[int]:
        """The ids; where one is missing, the next that is free."""
        given = [
            None if entry.get("id") is None else self._whole(entry, "id", f"annotations[{place}]")
            for place, entry in enumerate(entries)
        ]
        seen: set[int] = set()
        for number in given:
            if number is not None and number in seen:
                raise UserError(f"{self.path}: two annotations have the id {number}; give each its own")
            if number is not None:
                seen.add(number)
        free = max(seen, default=0)
        numbers = []
        for number in given:
            free += number is None
            numbers.append(free if number is None else number)
        return numbers

    def _segmentation(self, given: Any, record: ImageRecord, where: str, example: str) -> Segmentation | None:
        if given is None or given == []:
            return None
        if isinstance(given, dict):
            return self._encoding(given, record, where)
        if not isinstance(given, list) or not all(isinstance(polygon, list) for polygon in given):
            raise UserError(
                f"{self.path}: {where}: 'segmentation' is neither a list of polygons [[x1, y1, x2, y2, ...], ...] nor "
                "a run-length encoding {'size': [height, width], 'counts': ...}; convert it"
            )
        polygons = []
        for polygon in given:
            fault = polygon_fault(polygon, record.height, record.width)
            if fault is None:
                polygons.append(polygon)
            elif fault == "holds something else than numbers":
                raise UserError(f"{self.path}: {where}: a polygon {fault}; correct it")
            else:
                self.repairs.note(f"polygon with {fault}", "left out", example)
        return polygons or None

    def _encoding(self, given: dict[str, Any], record: ImageRecord, where: str) -> bytes | None:
        if given.get("size") != [record.height, record.width]:
            raise UserError(
                f"{self.path}: {where}: its run-length encoding has the size {shown(given.get('size'))}, "
                f"its image {record.file_name} has [{record.height}, {record.width}]; encode it again"
            )
        try:
            runs = read_runs(given)
        except ValueError as error:
            raise UserError(
                f"{self.path}: {where}: its run-length encoding cannot be read: {error}; encode it again"
            ) from None
        return compressed(runs) if runs[1::2].any() else None

    def _bbox(
        self, given: Any, segmentation: Segmentation | None, record: ImageRecord, where: str, example: str
    ) -> tuple[list[float], list[float]] | None:
        """The box as x, y, width, height for evaluation, and as corners within the image; None to leave it out."""
        if given is None or given == []:
            if segmentation is None:
                self.repairs.note("annotation without box and mask", "left out", example)
                return None
            x1, y1, x2, y2 = _box_of(segmentation, record)
            given = [x1, y1, x2 - x1, y2 - y1]
        fault = box_fault(given, record.height, record.width)
        if fault == "is no box":
            raise UserError(f"{self.path}: {where}: 'bbox' is {shown(given)}; write [x, y, width, height]")
        if fault is not None and fault != "leaves its image":
            self.repairs.note(_LEFT_OUT[fault], "left out", example)
            return None
        x, y, width, height = map(float, given)
        box = [max(x, 0.0), max(y, 0.0), min(x + width, record.width), min(y + height, record.height)]
        if fault == "leaves its image":
            self.repairs.note("annotation with a box that leaves its image", "clipped", example)
            return [box[0], box[1], box[2] - box[0], box[3] - box[1]], box
        return [x, y, width, height], box

    def _keypoints(
        self, given: Any, names: Sequence[str], record: ImageRecord, where: str, example: str
    ) -> list[float]:
        if not names:
            return []
        values, lost = read_object(given, names, f"{self.path}: {where}")
        for _ in range(lost):
            self.repairs.note("keypoint with values that are not finite", "taken as not labelled", example)
        for x, y, visibility in zip(values[0::3], values[1::3], values[2::3], strict=True):
            if visibility and not (-OUTSIDE < x < record.width + OUTSIDE and -OUTSIDE < y < record.height + OUTSIDE):
                self.repairs.note("keypoint outside of its image", "not learnt", example)
        return values

    def _whole(self, entry: dict[str, Any], key: str, where: str) -> int:
        value = whole(entry.get(key))
        if value is None:
            found = f"'{key}' is {shown(entry[key])}" if key in entry else f"has no '{key}'"
            raise UserError(f"{self.path}: {where}: {found}; COCO needs a whole number there")
        return value

    def _text(self, entry: dict[str, Any], key: str, where: str) -> str:
        value = entry.get(key)
        if not isinstance(value, str) or not value:
            found = f"'{key}' is {shown(value)}" if key in entry else f"has no '{key}'"
            raise UserError(f"{self.path}: {where}: {found}; COCO needs a name there")
        return value


def _box_of(segmentation: Segmentation, record: ImageRecord) -> tuple[float, float, float, float]:
    if isinstance(segmentation, bytes):
        window = (0.0, 0.0, float(record.width), float(record.height))
        encoding = {"size": [record.height, record.width], "counts": segmentation}
        return visible_box(encoding, window) or (0.0, 0.0, 0.0, 0.0)
    x = [value for polygon in segmentation for value in polygon[0::2]]
    y = [value for polygon in segmentation for value in polygon[1::2]]
    return min(x), min(y), max(x), max(y)


def _area(segmentation: Segmentation | None, bbox: Sequence[float], record: ImageRecord) -> float:
    """In pixels: of the mask where there is one, else of the box."""
    if segmentation is None:
        return bbox[2] * bbox[3]
    size = [record.height, record.width]
    if isinstance(segmentation, bytes):
        return float(coco_mask.area({"size": size, "counts": segmentation}))
    return float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))))
