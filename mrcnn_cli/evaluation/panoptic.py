"""Panoptic quality: "Panoptic Segmentation" (Kirillov et al., 2019), counted as COCO's panoptic task counts it."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mrcnn_cli.errors import UserError
from mrcnn_cli.evaluation.coco import Metrics, class_names
from mrcnn_cli.structures import Segments

VOID = 0  # the id of pixels that belong to no segment
# Which categories count, by the end of the metrics' names.
GROUPS = {"": (True, False), "_things": (True,), "_stuff": (False,)}


def segments_info(segments: Segments, category_ids: Sequence[int], num_things: int) -> list[dict[str, Any]]:
    """The segments as entries of `segments_info` in COCO's panoptic format.

    Args:
        segments: of one picture.
        category_ids: the category id of each label, things first.
        num_things: K.

    Returns:
        Per segment `id`, `category_id`, `isthing`, `area`, `bbox` [x, y, width, height] and `iscrowd` 0; `score`, which
        is no part of the format, for things.
    """
    ids = segments.ids.numpy()
    entries = []
    for number, (label, score) in enumerate(zip(segments.labels.tolist(), segments.scores.tolist(), strict=True), 1):
        inside = ids == number
        columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
        x, y = int(columns[0]), int(rows[0])
        entry = {
            "id": number,
            "category_id": category_ids[label],
            "isthing": int(label < num_things),
            "area": int(inside.sum()),
            "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
            "iscrowd": 0,
        }
        entries.append({**entry, "score": round(score, 6)} if label < num_things else entry)
    return entries


class PanopticQuality:
    """Counts matches of segments picture by picture.

    A predicted and a true segment of one category match where their intersection over union is above 0.5, void left
    aside. Pixels that the truth leaves void do not count against a prediction, nor does a prediction most of which lies
    in void or in a crowd of its category; crowds themselves need not be found.

    Args:
        categories: of the truth, with `id`, `name` and `isthing` (1 where it is missing).
    """

    def __init__(self, categories: Sequence[dict[str, Any]]):
        self.categories = list(categories)
        self.places = {category["id"]: place for place, category in enumerate(categories)}
        # The matches' intersections over unions: kept, for their sum shall not depend on the order of the pictures.
        self.overlaps: list[list[float]] = [[] for _ in categories]
        self.matched, self.wrong, self.missed = (np.zeros(len(categories), np.int64) for _ in range(3))
        self.counted = 0  # pictures

    def add(
        self,
        truth: np.ndarray,
        truth_info: Sequence[dict[str, Any]],
        found: np.ndarray,
        found_info: Sequence[dict[str, Any]],
        name: str = "a picture",
    ) -> None:
        """Counts one picture.

        Args:
            truth: [H, W] ids of true segments; 0 is void.
            truth_info: per true segment `id`, `category_id` and maybe `iscrowd`.
            found: [H, W] ids of predicted segments; 0 is void.
            found_info: per predicted segment `id` and `category_id`.
            name: of the picture, for errors.

        Raises:
            UserError: maps of different sizes; a category that is none of the truth's; predicted ids of the map that
                are not listed, or listed ones that the map does not have.
        """
        if truth.shape != found.shape:
            raise UserError(
                f"{name}: the truth is {truth.shape[0]} x {truth.shape[1]} (height x width), the prediction "
                f"{found.shape[0]} x {found.shape[1]}; predict pictures of the size that is annotated"
            )
        truth_ids, found_ids = ([entry["id"] for entry in info] for info in (truth_info, found_info))
        truth_class, found_class = (self._classes(info, name) for info in (truth_info, found_info))
        crowd = np.array([bool(entry.get("iscrowd")) for entry in truth_info], bool)
        # Pixels by true and by predicted segment; then void, then what is in the map but not in the list.
        shared = _shared(truth, truth_ids, found, found_ids)
        if shared[:, -1].any():
            raise UserError(f"{name}: predicted ids of the map are not in 'segments_info'; list each segment there")
        areas, true_areas = shared.sum(0)[:-2], shared.sum(1)[:-2]
        if not areas.all():
            raise UserError(f"{name}: predicted segment {found_ids[int(areas.argmin())]} has no pixels; leave it out")
        in_void, shared = shared[-2, :-2], shared[:-2, :-2]
        union = true_areas[:, None] + areas[None] - shared - in_void[None]
        overlap = shared / np.maximum(union, 1)
        pairs = (overlap > 0.5) & (truth_class[:, None] == found_class[None]) & ~crowd[:, None]
        true_place, found_place = pairs.nonzero()
        for place, value in zip(truth_class[true_place], overlap[true_place, found_place].tolist(), strict=True):
            self.overlaps[place].append(value)
        np.add.at(self.matched, truth_class[true_place], 1)
        np.add.at(self.missed, truth_class[~pairs.any(1) & ~crowd], 1)
        excused = in_void.copy()
        # Of several crowds of a category the last counts, as in COCO's own evaluation.
        for place in {int(truth_class[place]): place for place in crowd.nonzero()[0].tolist()}.values():
            excused += np.where(found_class == truth_class[place], shared[place], 0)
        np.add.at(self.wrong, found_class[~pairs.any(0) & (excused / areas <= 0.5)], 1)
        self.counted += 1

    def counts(self) -> dict[str, Any]:
        """What was counted so far, for `merge` elsewhere: plain numbers and lists."""
        arrays = {name: getattr(self, name).tolist() for name in ("matched", "wrong", "missed")}
        return {"counted": self.counted, "overlaps": self.overlaps, **arrays}

    def merge(self, counts: dict[str, Any]) -> None:
        """Adds what was counted of other pictures."""
        self.counted += counts["counted"]
        for mine, others in zip(self.overlaps, counts["overlaps"], strict=True):
            mine += others
        for name in ("matched", "wrong", "missed"):
            setattr(self, name, getattr(self, name) + np.array(counts[name]))

    def metrics(self) -> Metrics:
        """`pq`, `sq` and `rq` (panoptic, segmentation and recognition quality, 0..1), means over the categories.

        Also of things (`pq_things`, ...) and stuff (`pq_stuff`, ...) alone; `pq_categories` and the like are the number
        of categories that the mean is of: those that are in the truth or were predicted. `classes` has by name {"pq",
        "sq", "rq"}. None stands where there is nothing to count.
        """
        seen = self.matched + self.wrong + self.missed > 0
        overlaps = np.array([math.fsum(values) for values in self.overlaps])
        weight = np.maximum(self.matched + 0.5 * self.wrong + 0.5 * self.missed, 0.5)
        values = {
            "pq": overlaps / weight,
            "sq": overlaps / np.maximum(self.matched, 1),
            "rq": self.matched / weight,
        }
        thing = np.array([bool(category.get("isthing", 1)) for category in self.categories], bool)
        result: Metrics = {}
        for end, kinds in GROUPS.items():
            chosen = seen & np.isin(thing, kinds)
            for key, value in values.items():
                result[f"{key}{end}"] = float(value[chosen].mean()) if chosen.any() else None
            result[f"pq_categories{end}"] = int(chosen.sum())
        names = class_names(self.categories)
        result["classes"] = {
            names[category["id"]]: {key: float(value[place]) if seen[place] else None for key, value in values.items()}
            for place, category in enumerate(self.categories)
        }
        return result

    def _classes(self, info: Iterable[dict[str, Any]], name: str) -> np.ndarray:
        try:
            return np.array([self.places[entry["category_id"]] for entry in info], np.int64)
        except KeyError as error:
            raise UserError(f"{name}: a segment has the unknown category_id {error}; correct it") from None


def _shared(truth: np.ndarray, truth_ids: list[int], found: np.ndarray, found_ids: list[int]) -> np.ndarray:
    """[T + 2, P + 2] pixels that each true segment shares with each predicted one; then void, then unlisted ids."""
    rows, columns = _places(truth, truth_ids), _places(found, found_ids)
    width = len(found_ids) + 2
    counts = np.bincount(rows * width + columns, minlength=(len(truth_ids) + 2) * width)
    return counts.reshape(len(truth_ids) + 2, width)


def _places(ids: np.ndarray, known: list[int]) -> np.ndarray:
    """[H * W] each pixel's place in the list of known ids; behind it void, then unlisted ids."""
    listed = np.array([*known, VOID], np.int64)
    order = np.argsort(listed, kind="stable")
    flat = ids.reshape(-1).astype(np.int64)
    place = order[np.searchsorted(listed, flat, sorter=order).clip(max=len(listed) - 1)]
    return np.where(listed[place] == flat, place, len(listed))
