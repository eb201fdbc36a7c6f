"""Average recall: how many objects, whatever their classes, some proposal covers.

"What makes for effective detection proposals?" (Hosang et al., 2015), with COCO's thresholds and areas and in the form
that Detectron and Detectron2 state of their region proposal networks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mrcnn_cli.ops import box_iou

LIMITS = (100, 1000)  # so many proposals of an image count, best first
# Pixels of an object's mask, or of its box where there are no masks; both ends belong to it.
AREAS = {"": (0.0, 1e10), "_small": (0.0, 32.0**2), "_medium": (32.0**2, 96.0**2), "_large": (96.0**2, 1e10)}
THRESHOLDS = np.linspace(0.5, 0.95, 10)


class AverageRecall:
    """Takes images one by one and keeps, of each object, how well it is covered.

    Args:
        limits: how many proposals of an image count.
    """

    def __init__(self, limits: Sequence[int] = LIMITS):
        self.limits = tuple(limits)
        self.images = self.objects = self.proposals = 0
        self._covered: dict[str, list[np.ndarray]] = {f"ar{n}{area}": [] for n in limits for area in AREAS}

    def add(self, proposals: np.ndarray, objects: np.ndarray, areas: np.ndarray) -> None:
        """One image.

        Args:
            proposals: [P, 4] x1, y1, x2, y2, best first.
            objects: [G, 4] in the same pixels, crowds left out.
            areas: [G].
        """
        self.images, self.objects = self.images + 1, self.objects + len(objects)
        self.proposals += len(proposals)
        overlaps = box_iou(*(torch.as_tensor(boxes, dtype=torch.float64) for boxes in (proposals, objects))).numpy()
        for area, (low, high) in AREAS.items():
            chosen = overlaps[:, (areas >= low) & (areas <= high)]
            for limit in self.limits:
                self._covered[f"ar{limit}{area}"].append(coverage(chosen[:limit]))

    def counts(self) -> dict[str, Any]:
        """What was counted so far, for `merge` elsewhere: plain numbers and lists."""
        covered = {name: np.concatenate([np.zeros(0), *parts]).tolist() for name, parts in self._covered.items()}
        return {"images": self.images, "objects": self.objects, "proposals": self.proposals, "covered": covered}

    def merge(self, counts: dict[str, Any]) -> None:
        """Adds what was counted of other images."""
        self.images, self.objects = self.images + counts["images"], self.objects + counts["objects"]
        self.proposals += counts["proposals"]
        for name, covered in counts["covered"].items():
            self._covered[name].append(np.array(covered, dtype=np.float64))

    def metrics(self) -> dict[str, Any]:
        """`proposal_ar100`, `proposal_ar100_small`, ... and the same of 1000: recall, 0..1, averaged over the IoU
        thresholds .50:.05:.95; None where there is no such object. And the counts `images`, `objects`, `proposals`."""
        numbers: dict[str, Any] = {}
        for name, parts in self._covered.items():
            covered = np.concatenate(parts) if parts else np.zeros(0)
            recalls = (covered[:, None] >= THRESHOLDS).mean(0) if len(covered) else np.zeros(0)
            numbers[f"proposal_{name}"] = float(recalls.mean()) if len(recalls) else None
        return numbers | {"images": self.images, "objects": self.objects, "proposals": self.proposals}


def coverage(overlaps: np.ndarray) -> np.ndarray:
    """The overlap of each object with the proposal that is given to it: [G], 0 below the lowest threshold.

    Of all pairs the one with the largest overlap first, then the largest of those whose proposal and object are both
    still free, and so on: each proposal covers one object.

    Args:
        overlaps: [P, G] intersection over union.
    """
    covered = np.zeros(overlaps.shape[1])
    rows, columns = (overlaps >= THRESHOLDS[0]).nonzero()
    order = np.argsort(-overlaps[rows, columns], kind="stable")
    taken = np.zeros(len(overlaps), dtype=bool)
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if not taken[row] and covered[column] == 0:
            taken[row], covered[column] = True, overlaps[row, column]
    return covered
