"""What is known about the objects of a data set, in a few flat arrays: small, and shared by forked processes."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

# The masks of one object: polygons [x1, y1, x2, y2, ...], or the compressed counts of a run-length encoding.
Segmentation = list[list[float]] | bytes


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image that an annotation file lists; height and width are those of the upright picture."""

    id: int
    file_name: str
    height: int
    width: int
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / self.file_name


class ImageRecords(Sequence[ImageRecord]):
    """The images of a data set in one folder, in a few flat arrays.

    Each is made an object when it is asked for. Of objects that are kept, a forked process that only looks at them
    copies the pages, since Python counts who looks.

    Args:
        records: all of them.
        folder: of all.
    """

    def __init__(self, records: Sequence[ImageRecord], folder: Path):
        self.folder = folder
        self._numbers = np.array([(r.id, r.height, r.width) for r in records], np.int64).reshape(-1, 3)
        names = [record.file_name.encode(errors="surrogatepass") for record in records]
        self._first = np.concatenate([[0], np.cumsum([len(name) for name in names], dtype=np.int64)])
        self._names = b"".join(names)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        number, height, width = self._numbers[index].tolist()
        start, end = self._first[:-1][index], self._first[1:][index]
        return ImageRecord(number, self._names[start:end].decode(errors="surrogatepass"), height, width, self.folder)


@dataclass(frozen=True, slots=True)
class ImageAnnotations:
    """The objects of one image, crowds among them, in pixels of the upright picture.

    Attributes:
        image_id: of the annotation file, -1 where there is none.
        boxes: [G, 4] float32, within the picture.
        labels: [G] int64, 0..K-1.
        crowds: [G] bool: a region of many objects rather than one.
        ids: [G] int64, of the annotation file.
        segmentations: per object polygons or a run-length encoding as in COCO; None where the data has no masks.
        keypoints: [G, P, 3] float32 x, y and visibility as in COCO; None where the data has no keypoints.
        semantic: [H, W] uint8, 0 for things, 1..S for stuff, 255 for unlabelled; None where the data has no stuff.
        proposals: [P, 4] float32, best first, where the data set was given any.
    """

    image_id: int
    boxes: np.ndarray
    labels: np.ndarray
    crowds: np.ndarray
    ids: np.ndarray
    segmentations: list[Any] | None = None
    keypoints: np.ndarray | None = None
    semantic: np.ndarray | None = None
    proposals: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)


class Annotations(Sequence[ImageAnnotations]):
    """The objects of each image, in the order of the images; made by `AnnotationBuilder`.

    Attributes:
        records: the images.
        ids: [A] int64 of all objects, image by image, in the file's order within an image; so are the next four.
        bboxes: [A, 4] float64 x, y, width, height as in the file, for evaluation.
        boxes: [A, 4] float32 x1, y1, x2, y2 within the picture.
        areas: [A] float64.
        labels, crowds: [A] int64 and bool.
        keypoints: [A, P, 3] float64 as in the file, for evaluation; P is 0 where they were not asked for.
        first: [I + 1] where each image's objects start.
        has_masks: whether each object has one (else none has).
    """

    def __init__(self, records: Sequence[ImageRecord], builder: "AnnotationBuilder", keep: np.ndarray):
        image = np.frombuffer(builder.image, np.int64)
        order = np.argsort(image, kind="stable")
        order = order[keep[order]]
        self.records = records
        self.first = np.concatenate([[0], np.bincount(image[order], minlength=len(records)).cumsum()]).astype(np.int64)
        self.ids = np.frombuffer(builder.ids, np.int64)[order]
        self.labels = np.frombuffer(builder.labels, np.int64)[order]
        self.crowds = np.frombuffer(builder.crowds, np.int8)[order].astype(bool)
        self.areas = np.frombuffer(builder.areas, np.float64)[order]
        self.bboxes = np.frombuffer(builder.bboxes, np.float64).reshape(-1, 4)[order]
        self.boxes = np.frombuffer(builder.boxes, np.float32).reshape(-1, 4)[order]
        self.keypoints = np.frombuffer(builder.keypoints, np.float64).reshape(len(image), builder.points, 3)[order]
        self._offset = builder.offset
        # Polygons and encodings stay where they were read: object a has polygons first_polygon[a]..last_polygon[a],
        # polygon p has coordinates first_coordinate[p]..first_coordinate[p + 1], and so on.
        polygons, encodings = (np.frombuffer(part, np.int64) for part in (builder.polygon_ends, builder.encoding_ends))
        self._polygons = np.stack([np.concatenate([[0], polygons[:-1]])[: len(polygons)], polygons], axis=1)[order]
        self._encodings = np.stack([np.concatenate([[0], encodings[:-1]])[: len(encodings)], encodings], axis=1)[order]
        self._first_coordinate = np.concatenate([[0], np.frombuffer(builder.coordinate_ends, np.int64)])
        self._coordinates = np.frombuffer(builder.coordinates, np.float64)
        self._encoded = bytes(builder.encoded)
        self.has_masks = bool(len(order)) and bool(np.frombuffer(builder.masked, np.int8)[order].all())

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        record = self.records[index]
        index %= len(self)
        start, end = int(self.first[index]), int(self.first[index + 1])
        return ImageAnnotations(
            record.id,
            self.boxes[start:end],
            self.labels[start:end],
            self.crowds[start:end],
            self.ids[start:end],
            [self.segmentation(a, record) for a in range(start, end)] if self.has_masks else None,
            self._continuous(self.keypoints[start:end]) if self.keypoints.shape[1] else None,
        )

    def boxes_and_areas(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [G, 4] x1, y1, x2, y2 float64 as the file has them, and areas [G], of one image; crowds left out."""
        part = slice(int(self.first[index]), int(self.first[index + 1]))
        boxes, areas = (values[part][~self.crowds[part]] for values in (self.bboxes, self.areas))
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), areas

    def segmentation(self, a: int, record: ImageRecord) -> Any:
        """Object `a` of the whole set as in COCO; `record` is its image."""
        start, end = self._encodings[a]
        if start < end:
            return {"size": [record.height, record.width], "counts": self._encoded[start:end]}
        first, last = self._polygons[a]
        ends = self._first_coordinate[first : last + 1].tolist()
        return [self._coordinates[i:j].tolist() for i, j in pairwise(ends)]

    def labelled_keypoints(self) -> np.ndarray:
        """[I] int64: how many keypoints of each image's objects are labelled."""
        total = np.concatenate([[0], (self.keypoints[..., 2] > 0).sum(1).cumsum()])
        return total[self.first[1:]] - total[self.first[:-1]]

    def _continuous(self, keypoints: np.ndarray) -> np.ndarray:
        return (keypoints + np.array([self._offset, self._offset, 0])).astype(np.float32)


class AnnotationBuilder:
    """Takes objects one by one, in any order of images.

    Args:
        points: keypoints of each object.
        offset: from the keypoints' coordinates in the file to ours, in pixels.
    """

    def __init__(self, points: int = 0, offset: float = 0.0) -> None:
        self.points, self.offset, self.keypoints = points, offset, array("d")
        self.image, self.ids, self.labels = array("q"), array("q"), array("q")
        self.crowds, self.masked = array("b"), array("b")
        self.areas, self.bboxes, self.boxes = array("d"), array("d"), array("f")
        self.coordinates, self.coordinate_ends, self.polygon_ends = array("d"), array("q"), array("q")
        self.encoded, self.encoding_ends = bytearray(), array("q")

    def add(
        self,
        image: int,
        annotation_id: int,
        label: int,
        crowd: bool,
        bbox: Sequence[float],
        box: Sequence[float],
        area: float,
        segmentation: Segmentation | None,
        keypoints: Sequence[float] = (),
    ) -> None:
        """One object; `image` is the image's place in the list of records, the rest as in `Annotations`."""
        self.image.append(image)
        self.ids.append(annotation_id)
        self.labels.append(label)
        self.crowds.append(crowd)
        self.bboxes.extend(bbox)
        self.boxes.extend(box)
        self.areas.append(area)
        self.masked.append(segmentation is not None)
        self.keypoints.extend(keypoints)
        if isinstance(segmentation, bytes):
            self.encoded += segmentation
        elif segmentation is not None:
            for polygon in segmentation:
                self.coordinates.extend(polygon)
                self.coordinate_ends.append(len(self.coordinates))
        self.polygon_ends.append(len(self.coordinate_ends))
        self.encoding_ends.append(len(self.encoded))

    def build(self, records: Sequence[ImageRecord]) -> Annotations:
        """All objects; where any has a mask, those without one are left out."""
        masked = np.frombuffer(self.masked, np.int8).astype(bool)
        return Annotations(records, self, masked if masked.any() else np.ones(len(masked), bool))
