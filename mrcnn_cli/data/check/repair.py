"""Copies of annotation files in which every fault is mended that can be mended without a person."""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mrcnn_cli.data.check.classes import new_numbers
from mrcnn_cli.data.check.faults import Finding
from mrcnn_cli.data.check.tables import Table
from mrcnn_cli.data.shape_faults import whole

LEAVE_OUT = {
    "malformed-entry",
    "unknown-image",
    "unknown-category",
    "box-outside",
    "mask-malformed",
    "mask-empty",
    "runs-malformed",
    "duplicate-annotation",
}
LEAVE_IMAGE_OUT = {"image-missing", "image-unreadable", "image-truncated"}
LEAVE_POLYGON_OUT = {"polygon-malformed", "polygon-tiny"}
BOX_FROM_MASK = {
    "box-missing",
    "box-malformed",
    "box-not-finite",
    "box-negative",
    "box-degenerate",
    "box-disagrees",
}
LABEL_NO_MORE = {"keypoint-not-finite", "keypoint-outside"}
RENUMBER = {"category-gap", "class-order", "duplicate-class"}


def repaired(tables: Sequence[Table], findings: Iterable[Finding]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The content of each split's annotation file after repairs, and how often each fault was mended.

    Args:
        tables: of all splits, as the findings were made from.
        findings: of these splits; those that take a person are passed over.
    """
    mended: Counter[str] = Counter()
    contents = []
    renumber = any(finding.fault in RENUMBER for finding in findings)
    numbers = new_numbers(tables) if renumber else None
    for table in tables:
        own = [finding for finding in findings if finding.source == str(table.split.path)]
        repair = _Repair(table, mended)
        for finding in own:
            repair.apply(finding)
        contents.append(repair.finished(numbers))
    mended.update(finding.fault for finding in findings if finding.fault in RENUMBER)
    return contents, mended


class _Repair:
    """Repairs of one annotation file."""

    def __init__(self, table: Table, mended: Counter[str]):
        self.table, self.mended = table, mended
        self.content = copy.deepcopy(table.split.content)
        self.gone: dict[str, set[int]] = {"images": set(), "annotations": set(), "categories": set()}
        self.gone_images: set[int] = set()  # ids, with their annotations
        self.joined: dict[int, int] = {}  # id of an image -> id of the entry that it is joined with
        self.left_out_polygons: dict[int, set[int]] = {}  # annotation's place -> indices
        self.row = {place: a for a, place in enumerate(table.places.tolist())}
        self.mask_boxes = table.mask_boxes()
        self.free = max([0, *(whole(entry.get("id")) or 0 for entry in self.content["annotations"])])

    def apply(self, finding: Finding) -> None:
        """Mend one fault, where that is possible."""
        if finding.place is None:
            return
        key, place, polygon = finding.place
        entry = self.content[key][place]
        fault = finding.fault
        if fault in LEAVE_OUT:
            self.gone[key].add(place)
            if key == "images":
                self.gone_images |= {number for number in [whole(entry.get("id"))] if number is not None}
        elif fault in LEAVE_IMAGE_OUT:
            self.gone["images"].add(place)
            self.gone_images.add(finding.image_id if finding.image_id is not None else -1)
        elif fault in LEAVE_POLYGON_OUT:
            self.left_out_polygons.setdefault(place, set()).add(polygon)
        elif fault in BOX_FROM_MASK:
            self._box_from_mask(entry, place)
        elif fault == "box-leaves-image":
            self._clip(entry, place)
        elif fault == "area-disagrees":
            entry["area"] = finding.value
        elif fault == "keypoints-malformed":
            entry["keypoints"], entry["num_keypoints"] = [0] * finding.value, 0
        elif fault in LABEL_NO_MORE:
            for point in finding.value:
                entry["keypoints"][3 * point : 3 * point + 3] = [0, 0, 0]
            entry["num_keypoints"] = _labelled(entry)
        elif fault == "keypoint-count-disagrees":
            entry["num_keypoints"] = _labelled(entry)
        elif fault == "skeleton-malformed":
            entry["skeleton"] = finding.value
        elif fault == "size-missing":
            entry["height"], entry["width"] = finding.value
        elif fault == "duplicate-id" and key == "annotations":
            self.free += 1
            entry["id"] = self.free
        elif fault == "duplicate-file" and finding.image_id is not None:
            self.joined[finding.image_id] = finding.value
            self.gone["images"].add(place)
        else:
            return
        self.mended[fault] += 1

    def finished(self, numbers: dict[str, int] | None) -> dict[str, Any]:
        """The content; with classes numbered anew where `numbers` (name -> id) is given."""
        content = self.content
        for place, indices in self.left_out_polygons.items():
            entry = content["annotations"][place]
            entry["segmentation"] = [p for i, p in enumerate(entry["segmentation"]) if i not in indices]
            if not entry["segmentation"]:
                self.gone["annotations"].add(place)
        for place, entry in enumerate(content["annotations"]):
            image_id = whole(entry.get("image_id"))
            if image_id in self.joined:
                entry["image_id"] = image_id = self.joined[image_id]
            if image_id in self.gone_images:
                self.gone["annotations"].add(place)
        for key, places in self.gone.items():
            content[key] = [entry for place, entry in enumerate(content[key]) if place not in places]
        if numbers is not None:
            self._renumber(numbers)
        return content

    def _box_from_mask(self, entry: dict[str, Any], place: int) -> None:
        row = self.row.get(place)
        box = self.mask_boxes[row] if row is not None else np.full(4, np.nan)
        if np.isfinite(box).all() and (box[2:] > box[:2]).all():
            self._set_box(entry, place, *box.tolist())
        else:
            self.gone["annotations"].add(place)

    def _clip(self, entry: dict[str, Any], place: int) -> None:
        x, y, width, height = entry["bbox"]
        self._set_box(entry, place, x, y, x + width, y + height)
        if np.isnan(self.mask_boxes[self.row[place], 0]):  # else the area is that of the mask
            entry["area"] = entry["bbox"][2] * entry["bbox"][3]

    def _set_box(self, entry: dict[str, Any], place: int, x1: float, y1: float, x2: float, y2: float) -> None:
        """Within the image."""
        image = self.table.images[self.table.image[self.row[place]]]
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(image.width)), min(y2, float(image.height))
        entry["bbox"] = [round(number, 2) for number in (x1, y1, x2 - x1, y2 - y1)]

    def _renumber(self, numbers: dict[str, int]) -> None:
        content, names = self.content, self.table.categories
        for entry in content["annotations"]:
            entry["category_id"] = numbers[names[whole(entry["category_id"])]]  # type: ignore[index]
        kept: dict[int, dict[str, Any]] = {}
        for entry in content["categories"]:
            name = entry.get("name")
            if isinstance(name, str) and name in numbers and names.get(whole(entry.get("id"))) == name:  # type: ignore[arg-type]
                kept.setdefault(numbers[name], entry | {"id": numbers[name]})
        content["categories"] = [kept[number] for number in sorted(kept)]


def _labelled(entry: dict[str, Any]) -> int:
    return sum(visibility > 0 for visibility in entry["keypoints"][2::3])
