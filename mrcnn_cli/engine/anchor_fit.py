"""How well a recipe's anchors fit the objects of a data set, and anchors that fit better.

Everything is measured as the network sees it: pictures resized as the recipe says, anchors on the grid of their level.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mrcnn_cli.data.check.geometry import corners
from mrcnn_cli.data.check.tables import Table
from mrcnn_cli.engine.run import RunConfig
from mrcnn_cli.models import build_model
from mrcnn_cli.models.retinanet import RetinaHead
from mrcnn_cli.models.rpn import RPN
from mrcnn_cli.ops import grid_anchors

MOST_SHAPES = 20_000  # that the clusters are made of
RESTARTS, ROUNDS = 8, 50  # of the clustering
BLOCK = 2**16  # objects compared with all anchors at once


@dataclass(frozen=True, slots=True)
class Anchors:
    """The anchors of a model, and which overlaps its matching asks for.

    Attributes:
        sizes: square roots of their areas, per level, finest first.
        ratios: height / width.
        strides: pixels of the network's input from cell to cell, per level.
        rounded, offset: as in `ops.grid_anchors`.
        positive_iou: from which on an anchor stands for an object.
        negative_iou: below which it is background.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]
    strides: tuple[float, ...]
    rounded: bool
    offset: float
    positive_iou: float
    negative_iou: float

    def base(self, level: int) -> np.ndarray:
        """[A, 4] corners of those of cell 0, 0."""
        return grid_anchors(
            self.sizes[level], self.ratios, (1, 1), self.strides[level], rounded=self.rounded, offset=self.offset
        ).numpy()


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of all splits, crowds left out, as the network sees them.

    Attributes:
        boxes: [G, 4] in pixels of the network's input.
        sizes: [G, 2] (height, width) of that input.
        names: [G] their classes.
        split: [G] index of the table, `row` [G] that of the annotation in it.
    """

    boxes: np.ndarray
    sizes: np.ndarray
    names: np.ndarray
    split: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def sides(self) -> np.ndarray:
        """[G, 2] width and height."""
        return self.boxes[:, 2:] - self.boxes[:, :2]


@dataclass(frozen=True, slots=True)
class Fit:
    """How well anchors fit.

    Attributes:
        sizes, ratios: of the anchors.
        recall_50: share of the objects that an anchor overlaps by 0.5 or more.
        recall: the same with the anchors' positive_iou.
        mean_iou: of each object with its best anchor.
        unmatched: share of the objects whose best anchor overlaps them by less than negative_iou.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]
    recall_50: float
    recall: float
    mean_iou: float
    unmatched: float


def anchors_of(config: RunConfig) -> Anchors | None:
    """The anchors of a recipe's model; None for a model without any."""
    with torch.random.fork_rng(devices=[]):  # building one draws weights
        model = build_model(config.model, 1)
    head = next((part for part in model.modules() if isinstance(part, RPN | RetinaHead)), None)
    if head is None:
        return None
    given, matching = head.anchors_config, head.config
    return Anchors(
        given.sizes,
        given.ratios,
        head.strides,
        given.rounded,
        given.offset,
        matching.positive_iou,
        matching.negative_iou,
    )


def objects_of(tables: Sequence[Table], config: RunConfig) -> Objects:
    """The objects of all splits with a sound box in an image of known size."""
    parts = []
    for number, table in enumerate(tables):
        sizes = table.sizes()
        resized = np.array(
            [config.data.resize.size(h, w) if h and w else (0, 0) for h, w in sizes.tolist()], np.int64
        ).reshape(-1, 2)
        boxes = corners(table.bboxes)
        rows = np.flatnonzero(np.isfinite(boxes).all(axis=1) & ~table.crowd & (sizes[table.image, 0] > 0))
        image = table.image[rows]
        scale = resized[image] / sizes[image]  # vertical, horizontal
        names = np.array([table.categories[c] for c in table.category[rows].tolist()], object)
        parts.append((boxes[rows] * scale[:, [1, 0, 1, 0]], resized[image], names, np.full(len(rows), number), rows))
    empty = (np.zeros((0, 4)), np.zeros((0, 2), np.int64), np.zeros(0, object), np.zeros(0, int), np.zeros(0, int))
    return Objects(*(np.concatenate(column) for column in zip(*(parts or [empty]), strict=True)))


def best_overlaps(objects: Objects, anchors: Anchors) -> np.ndarray:
    """[G] the highest IoU of each object with any anchor of the grid.

    For one shape the best anchor is the one whose centre is nearest, since the overlap of two boxes only falls as their
    centres move apart, across or down.
    """
    best = np.zeros(len(objects))
    for begin in range(0, len(objects), BLOCK):
        part = slice(begin, begin + BLOCK)
        box, size = objects.boxes[part], objects.sizes[part]
        centre = (box[:, :2] + box[:, 2:]) / 2
        area = (box[:, 2:] - box[:, :2]).prod(axis=1)
        for level, stride in enumerate(anchors.strides):
            cells = np.ceil(size[:, ::-1] / stride)
            for base in anchors.base(level):
                middle = (base[:2] + base[2:]) / 2
                cell = np.clip(np.round((centre - middle) / stride), 0, cells - 1)
                low, high = base[:2] + cell * stride, base[2:] + cell * stride
                common = np.clip(np.minimum(high, box[:, 2:]) - np.maximum(low, box[:, :2]), 0, None).prod(axis=1)
                overlap = common / (area + (base[2:] - base[:2]).prod() - common)
                best[part] = np.maximum(best[part], overlap)
    return best


def fit(objects: Objects, anchors: Anchors) -> Fit:
    """How well anchors fit the objects, of which there is at least one."""
    best = best_overlaps(objects, anchors)
    recalls = [float((best >= bound).mean()) for bound in (0.5, anchors.positive_iou)]
    unmatched = float((best < anchors.negative_iou).mean())
    return Fit(anchors.sizes, anchors.ratios, recalls[0], recalls[1], float(best.mean()), unmatched)


def suggestion(objects: Objects, anchors: Anchors) -> Anchors:
    """As many anchors as there are, of the sizes and ratios that the objects have.

    k-means with 1 - IoU as the distance ("YOLO9000", Redmon and Farhadi, 2016): of the objects' shapes for the sizes,
    which are dealt out to the levels from the finest on, and of their shapes at equal area for the ratios.
    """
    random = np.random.default_rng(0)
    shapes = objects.sides
    if len(shapes) > MOST_SHAPES:
        shapes = shapes[random.choice(len(shapes), MOST_SHAPES, replace=False)]
    per_level = [len(level) for level in anchors.sizes]
    extent = np.sqrt(shapes.prod(axis=1, keepdims=True))
    remaining = iter(sorted(_rounded(np.sqrt(clusters(shapes, sum(per_level), random).prod(axis=1)))))
    sizes = tuple(tuple(next(remaining) for _ in range(count)) for count in per_level)
    means = clusters(shapes / extent, len(anchors.ratios), random)
    return replace(anchors, sizes=sizes, ratios=tuple(sorted(_rounded(means[:, 1] / means[:, 0]))))


def clusters(shapes: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """[count, 2] mean widths and heights of the clusters of shapes [N, 2], by k-means with the distance 1 - IoU.

    The best of several starts. Where there are fewer different shapes than clusters, some repeat.
    """
    best, best_score = np.zeros((count, 2)), -1.0
    for _ in range(RESTARTS):
        centres = shapes[random.choice(len(shapes), count, replace=len(shapes) < count)]
        nearest = np.full(len(shapes), -1)
        for _ in range(ROUNDS):
            overlaps = shape_overlaps(shapes, centres)
            chosen = overlaps.argmax(axis=1)
            if (chosen == nearest).all():
                break
            nearest = chosen
            counts = np.bincount(nearest, minlength=count)
            sums = np.stack([np.bincount(nearest, weights=side, minlength=count) for side in shapes.T], axis=1)
            centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
        score = float(shape_overlaps(shapes, centres).max(axis=1).mean())
        if score > best_score:
            best, best_score = centres, score
    return best


def shape_overlaps(shapes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """[N, K] IoU of boxes [N, 2] and [K, 2], each given by width and height, laid on one centre."""
    common = np.minimum(shapes[:, None], centres[None]).prod(axis=2)
    return common / (shapes.prod(axis=1)[:, None] + centres.prod(axis=1)[None] - common)


def _rounded(values: np.ndarray) -> list[float]:
    """Three digits are more than a mean of objects knows."""
    return [float(f"{value:.3g}") for value in values.tolist()]
