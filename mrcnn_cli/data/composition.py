"""Pictures made of several: mosaics, and objects pasted from one picture into another.

Both work on samples that are transformed already, in pixels of the network's input. Masks of a composed picture are run
lengths of just these pixels: a pixel belongs to an object if its centre lies in the annotated mask, is within the part
of the picture that is shown, and is not covered by what was pasted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from mrcnn_cli.data.masks import cut_runs, encode, visible_box
from mrcnn_cli.structures import Masks, Size, Targets

Sample = tuple[Tensor, Targets]  # pixels [C, h, w], and the objects in them

THINGS = 0  # in the map of stuff
PASTED = 0.5  # chance of each object to be pasted; "Simple Copy-Paste" (Ghiasi et al., 2021) takes a random subset
CENTRE = (0.25, 0.75)  # where the pictures of a mosaic may meet, in parts of its height and width


@dataclass(frozen=True)
class Visibility:
    """What must be left of an object that is cut or covered: else it is left out.

    Attributes:
        side: of its box in pixels.
        share: of its mask, or of its box where there are no masks.
    """

    side: float
    share: float


@dataclass
class _Object:
    """An object within a picture: its box, its keypoints [P, 3], and its mask within a window at (top, left); None
    where the data has none."""

    box: np.ndarray
    label: int
    keypoints: np.ndarray | None = None
    top: int = 0
    left: int = 0
    mask: np.ndarray | None = None

    def cut(self, window: tuple[int, int, int, int], visibility: Visibility) -> "_Object | None":
        """What a window x1, y1, x2, y2 shows of it, in pixels of the window; None where that is too little."""
        box = np.concatenate([np.maximum(self.box[:2], window[:2]), np.minimum(self.box[2:], window[2:])])
        if not (box[2:] > box[:2]).all():
            return None
        moved = replace(self, box=box).shifted(-window[0], -window[1])
        if moved.keypoints is not None:
            at, limits = moved.keypoints[:, :2], np.subtract(window[2:], window[:2])
            shown = np.all((at >= 0) & (at <= limits), axis=1)
            moved = replace(moved, keypoints=np.where(shown[:, None], moved.keypoints, 0))
        if moved.mask is None:
            whole, left = (math.prod(sides[2:] - sides[:2]) for sides in (self.box, box))
            return moved if (box == self.box).all() or _enough(box, left, whole, visibility) else None
        rows = slice(max(-moved.top, 0), max(window[3] - window[1] - moved.top, 0))
        columns = slice(max(-moved.left, 0), max(window[2] - window[0] - moved.left, 0))
        whole = int(moved.mask.sum())
        mask = moved.mask[rows, columns]
        moved = replace(moved, mask=mask, top=max(moved.top, 0), left=max(moved.left, 0))
        return moved.seen(whole, visibility)

    def covered(self, cover: np.ndarray, visibility: Visibility) -> "_Object | None":
        """What is left of it beside a cover, bool [H, W]; None where that is too little."""
        assert self.mask is not None
        height, width = self.mask.shape
        hidden = cover[self.top : self.top + height, self.left : self.left + width]
        whole = int(self.mask.sum())
        keypoints = self.keypoints
        if keypoints is not None:  # what is covered was visible (2) and is hidden (1)
            column, row = (keypoints[:, axis].astype(int).clip(0, cover.shape[1 - axis] - 1) for axis in (0, 1))
            keypoints = keypoints.copy()
            keypoints[:, 2] = np.minimum(keypoints[:, 2], np.where(cover[row, column], 1, 2))
        return replace(self, mask=self.mask & ~hidden, keypoints=keypoints).seen(whole, visibility)

    def shifted(self, x: int, y: int) -> "_Object":
        """Moved to the right and down by so many pixels."""
        keypoints = self.keypoints
        if keypoints is not None:
            keypoints = np.where(keypoints[:, 2:] > 0, keypoints + np.array([x, y, 0]), 0)
        box = self.box + np.array([x, y, x, y])
        return replace(self, box=box, keypoints=keypoints, top=self.top + y, left=self.left + x)

    def seen(self, whole: int, visibility: Visibility) -> "_Object | None":
        """The object with the box of its mask where that is less than the `whole` number of pixels it had."""
        assert self.mask is not None
        left = int(self.mask.sum())
        if left == 0:
            return None
        if left == whole:
            return self
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        low = np.array([self.left + columns[0], self.top + rows[0]])
        high = np.array([self.left + columns[-1] + 1, self.top + rows[-1] + 1])
        box = np.concatenate([np.maximum(self.box[:2], low), np.minimum(self.box[2:], high)])
        return replace(self, box=box) if _enough(box, left, whole, visibility) else None


def mosaic(samples: Sequence[Sample], generator: np.random.Generator, visibility: Visibility) -> Sample:
    """Four pictures that meet in a point ("YOLOv4", Bochkovskiy et al., 2020), at most as large as the first.

    Of each a part is shown that fills its corner; where pictures are too small for that, the mosaic is smaller.

    Args:
        samples: top left, top right, bottom left and bottom right.
        generator: draws the point and the parts.
        visibility: what must be left of an object that is cut.
    """
    sizes = [(int(pixels.shape[1]), int(pixels.shape[2])) for pixels, _ in samples]
    draws = generator.random(10).tolist()
    above, height = _meet(sizes[0][0], [sizes[0][0], sizes[1][0]], [sizes[2][0], sizes[3][0]], draws[0])
    before, width = _meet(sizes[0][1], [sizes[0][1], sizes[2][1]], [sizes[1][1], sizes[3][1]], draws[1])
    pixels = samples[0][0].new_empty((height, width, samples[0][0].shape[0])).permute(2, 0, 1)
    semantic = samples[0][1].semantic
    semantic = None if semantic is None else semantic.new_empty((height, width))
    objects: list[_Object] = []
    crowds: list[Tensor] = []
    proposals: list[Tensor | None] = []
    for place, (part, targets) in enumerate(samples):
        top, bottom = ((0, above), (above, height))[place // 2]
        left, right = ((0, before), (before, width))[place % 2]
        y = int(draws[2 + 2 * place] * (sizes[place][0] - (bottom - top) + 1))
        x = int(draws[3 + 2 * place] * (sizes[place][1] - (right - left) + 1))
        window = (x, y, x + right - left, y + bottom - top)
        pixels[:, top:bottom, left:right] = part[:, window[1] : window[3], window[0] : window[2]]
        for thing in _objects(targets, sizes[place]):
            cut = thing.cut(window, visibility)
            if cut is not None:
                objects.append(cut.shifted(left, top))
        crowds.append(_cut_boxes(targets.crowds, window, left, top))
        proposals.append(None if targets.proposals is None else _cut_boxes(targets.proposals, window, left, top))
        if semantic is not None and targets.semantic is not None:
            semantic[top:bottom, left:right] = targets.semantic[window[1] : window[3], window[0] : window[2]]
    first = replace(samples[0][1], crowds=torch.cat(crowds), proposals=_by_rank(proposals), semantic=semantic)
    return pixels, _targets(objects, (height, width), first)


def paste(under: Sample, over: Sample, generator: np.random.Generator, visibility: Visibility) -> Sample:
    """Some objects of one picture put in front of another ("Simple Copy-Paste", Ghiasi et al., 2021).

    Args:
        under: the picture that is kept; its objects' masks lose what is covered.
        over: the picture whose objects are pasted, each with a chance of 1/2. It is moved as a whole, so that the
            smaller picture lies within the larger one.
        generator: draws the objects and the move.
        visibility: what must be left of an object that is cut or covered.

    Raises:
        ValueError: the targets have no masks.
    """
    pixels, targets = under
    size, other = ((int(sample[0].shape[1]), int(sample[0].shape[2])) for sample in (under, over))
    if targets.masks is None or over[1].masks is None:
        raise ValueError("paste: objects without masks cannot be cut out of their picture")
    chosen = generator.random(len(over[1])) < PASTED
    y, x = (
        int(draw * (abs(theirs - ours) + 1)) * (1 if theirs > ours else -1)
        for draw, theirs, ours in zip(generator.random(2), other, size, strict=True)
    )
    window = (x, y, x + size[1], y + size[0])  # of the canvas, in pixels of the other picture
    cover = np.zeros(size, bool)
    pasted = []
    for thing, is_chosen in zip(_objects(over[1], other), chosen, strict=True):
        cut = thing.cut(window, visibility) if is_chosen else None
        if cut is not None and cut.mask is not None:
            cover[cut.top : cut.top + cut.mask.shape[0], cut.left : cut.left + cut.mask.shape[1]] |= cut.mask
            pasted.append(cut)
    if not pasted:
        return under
    rows, columns = cover.nonzero()
    result = pixels.clone()
    result.numpy()[:, rows, columns] = over[0].numpy()[:, rows + y, columns + x]
    left = [thing.covered(cover, visibility) for thing in _objects(targets, size)]
    objects = [thing for thing in left if thing is not None] + pasted
    if targets.semantic is not None:
        semantic = targets.semantic.clone()
        semantic.numpy()[cover] = THINGS
        targets = replace(targets, semantic=semantic)
    if targets.proposals is not None and over[1].proposals is not None:
        targets = replace(targets, proposals=_by_rank([targets.proposals, _cut_boxes(over[1].proposals, window, 0, 0)]))
    return result, _targets(objects, size, targets)


def _meet(limit: int, first: Sequence[int], second: Sequence[int], draw: float) -> tuple[int, int]:
    """Where two rows (or columns) of pictures meet, and the extent of both together."""
    room = min(first), min(second)
    extent = min(limit, sum(room))
    place = round(extent * (CENTRE[0] + (CENTRE[1] - CENTRE[0]) * draw))
    return min(max(place, extent - room[1]), room[0]), extent


def _enough(box: np.ndarray, left: float, whole: float, visibility: Visibility) -> bool:
    return bool((box[2:] - box[:2] >= visibility.side).all()) and left >= visibility.share * whole


def _objects(targets: Targets, size: Size) -> list[_Object]:
    """The objects with their masks in pixels of the network's input; an object of no pixel has an empty mask."""
    boxes = targets.boxes.double().numpy()
    keypoints = [None] * len(boxes) if targets.keypoints is None else list(targets.keypoints.double().numpy())
    objects = [_Object(*parts) for parts in zip(boxes, targets.labels.tolist(), keypoints, strict=True)]
    if targets.masks is None:
        return objects
    matrix = targets.masks.matrix.numpy()
    for thing, segmentation in zip(objects, targets.masks.segmentations, strict=True):
        draw = _sampled if isinstance(segmentation, dict) else _filled
        thing.mask, thing.top, thing.left = draw(segmentation, matrix, size)
    return objects


def _filled(polygons: Sequence[Sequence[float]], matrix: np.ndarray, size: Size) -> tuple[np.ndarray, int, int]:
    """Polygons moved by a matrix and filled by the rule of pycocotools: a window of the picture, its top and left."""
    moved = [np.asarray(polygon).reshape(-1, 2) @ matrix[:, :2].T + matrix[:, 2] for polygon in polygons]
    points = np.concatenate(moved)
    # Moved by whole pixels, so that the rule rounds as it does in the picture, to where nothing is negative, which it
    # rounds the other way.
    x1, y1 = np.floor(points.min(0)).astype(int).tolist()
    x2, y2 = np.minimum(np.ceil(points.max(0)).astype(int), size[::-1]).tolist()
    left, top = max(x1, 0), max(y1, 0)
    if x2 <= left or y2 <= top:
        return np.zeros((0, 0), bool), 0, 0
    shifted = [(points - (x1, y1)).reshape(-1).tolist() for points in moved]
    encoding = coco_mask.merge(coco_mask.frPyObjects(shifted, y2 - y1, x2 - x1))
    return cut_runs(encoding, slice(top - y1, y2 - y1), slice(left - x1, x2 - x1)), top, left


def _sampled(encoding: dict[str, Any], matrix: np.ndarray, size: Size) -> tuple[np.ndarray, int, int]:
    """A run-length encoding looked up at pixels' centres: a window of the picture, its top and left.

    Args:
        encoding: as annotated.
        matrix: flips, quarter turns, scales and moves, nothing else.
        size: (height, width) of the picture.
    """
    height, width = encoding["size"]
    extent = visible_box(encoding, (0, 0, width, height))
    if extent is None:
        return np.zeros((0, 0), bool), 0, 0
    corners = np.array(extent).reshape(2, 2) @ matrix[:, :2].T + matrix[:, 2]
    left, top = np.floor(corners.min(0)).astype(int).clip(0).tolist()
    right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int), size[::-1]).tolist()
    if right <= left or bottom <= top:
        return np.zeros((0, 0), bool), 0, 0
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    x, y = np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5
    if turned := abs(inverse[0, 1]) > abs(inverse[0, 0]):
        column, row = inverse[0, 1] * y + inverse[0, 2], inverse[1, 0] * x + inverse[1, 2]
    else:
        column, row = inverse[0, 0] * x + inverse[0, 2], inverse[1, 1] * y + inverse[1, 2]
    column, row = (np.floor(at).astype(int).clip(0, most - 1) for at, most in ((column, width), (row, height)))
    rows, columns = slice(row.min(), row.max() + 1), slice(column.min(), column.max() + 1)
    found = cut_runs(encoding, rows, columns)[np.ix_(row - rows.start, column - columns.start)]
    return found.T if turned else found, top, left


def _cut_boxes(boxes: Tensor, window: tuple[int, int, int, int], left: int, top: int) -> Tensor:
    """The parts of boxes [B, 4] in a window x1, y1, x2, y2 that is put at (left, top); those without area left out."""
    corner, limits = torch.tensor(window[:2]), torch.tensor(window[2:])
    cut = boxes.reshape(-1, 2, 2).clamp(corner, limits) + (torch.tensor([left, top]) - corner)
    return cut.reshape(-1, 4)[(cut[:, 1] > cut[:, 0]).all(1)]


def _by_rank(proposals: Sequence[Tensor | None]) -> Tensor | None:
    """Several pictures' proposals, the best of each first, then the second best, and so on."""
    given = [boxes for boxes in proposals if boxes is not None]
    if not given:
        return None
    ranks = torch.cat([torch.arange(len(boxes)) for boxes in given])
    return torch.cat(given)[ranks.argsort(stable=True)]


def _targets(objects: Sequence[_Object], size: Size, like: Targets) -> Targets:
    """These objects, and all else as it is."""
    masks = None
    if like.masks is not None:
        encodings = [encode(thing.mask, thing.top, thing.left, size) for thing in objects if thing.mask is not None]
        masks = Masks(encodings, torch.eye(2, 3, dtype=torch.float64))
    keypoints = None
    if like.keypoints is not None:
        found = np.array([thing.keypoints for thing in objects]).reshape(-1, *like.keypoints.shape[1:])
        keypoints = torch.tensor(found, dtype=torch.float32)
    return replace(
        like,
        boxes=torch.tensor(np.array([thing.box for thing in objects]), dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([thing.label for thing in objects], dtype=torch.int64),
        masks=masks,
        keypoints=keypoints,
    )
