"""The only things that cross between folders: a batch of images, the truth about them, and what was found in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]  # (height, width)

# How many terms a loss is the mean of, told by how many of them this forward pass has: 0-dimensional or a plain number.
# Where a batch is shared by processes or done in parts, the others' are added, so that it is the mean over the batch.
Denominator = Callable[[Any], Any]

IGNORED = 255  # in a map of stuff: a pixel that nobody has labelled


def at_least_one(count: Any) -> Any:
    """The denominator of a batch that is whole: the count itself, and 1 of nothing."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class ImageBatch:
    """Images of one batch, padded with zeros at the bottom and the right to one size.

    Attributes:
        pixels: [N, C, H, W] of any real dtype: 0..255 as uint8, RGB where there are three channels, or as float32 in
            the units of the files (data.normalize = "raw").
        sizes: (height, width) of each image inside `pixels`, without the padding.
        original_sizes: (height, width) of each picture as it lies on disk (upright); detections are reported there.
        proposals: per image [P_i, 4] in pixels of the network's input, best first, for a model that does not find its
            own; None for others, and in training, where they are among the targets.
    """

    pixels: Tensor
    sizes: list[Size]
    original_sizes: list[Size]
    proposals: list[Tensor] | None = None

    @classmethod
    def collate(
        cls, images: Sequence[Tensor], original_sizes: Sequence[Size] | None = None, divisor: int = 32
    ) -> "ImageBatch":
        """One batch from images [C, H_i, W_i]; the padded size is a multiple of `divisor` (0: no rounding)."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        step = max(divisor, 1)
        height, width = (-(-max(size[axis] for size in sizes) // step) * step for axis in (0, 1))
        first = images[0]
        shape = (len(images), first.shape[0], height, width)
        pixels = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=torch.channels_last).zero_()
        for slot, image, (h, w) in zip(pixels, images, sizes, strict=True):
            slot[:, :h, :w] = image
        return cls(pixels, sizes, list(original_sizes) if original_sizes is not None else list(sizes))

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str) -> "ImageBatch":
        proposals = None if self.proposals is None else [boxes.to(device) for boxes in self.proposals]
        return replace(self, pixels=self.pixels.to(device, non_blocking=True), proposals=proposals)

    def pin_memory(self) -> "ImageBatch":
        return replace(self, pixels=self.pixels.pin_memory())

    def padded(self, height: int, width: int) -> "ImageBatch":
        """The same images with at least so many rows and columns."""
        rows, columns = max(height - self.pixels.shape[-2], 0), max(width - self.pixels.shape[-1], 0)
        return replace(self, pixels=functional.pad(self.pixels, (0, columns, 0, rows))) if rows or columns else self

    def part(self, places: range) -> "ImageBatch":
        """Some of the images, which follow each other, with the padding of all."""
        chosen = slice(places.start, places.stop)
        proposals = None if self.proposals is None else self.proposals[chosen]
        return ImageBatch(self.pixels[chosen], self.sizes[chosen], self.original_sizes[chosen], proposals)


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class Masks:
    """Instance masks of one image, kept as polygons or run-length encodings until a RoI is cut out of them.

    Attributes:
        segmentations: per object, as in COCO: a list of polygons [x1, y1, x2, y2, ...], or a run-length encoding
            {"size": [height, width], "counts": ...} with compressed (bytes, str) or plain (list) counts.
        matrix: [2, 3] float64 on the CPU: from the pixels of the annotation to the pixels of the network's input.
    """

    segmentations: list[Any]
    matrix: Tensor

    def __len__(self) -> int:
        return len(self.segmentations)

    def __getitem__(self, index: Tensor | Sequence[int]) -> "Masks":
        chosen = index.tolist() if isinstance(index, Tensor) else index
        return replace(self, segmentations=[self.segmentations[i] for i in chosen])


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class Targets:
    """The truth about one image, in pixels of the network's input.

    Attributes:
        boxes: [G, 4] float32.
        labels: [G] int64, 0..K-1.
        crowds: [I, 4] float32 regions whose anchors and proposals count neither as object nor as background.
        masks: one per box, or None where the data has none.
        semantic: [H, W] uint8, of each pixel 0 for things, 1..S for stuff, 255 (`IGNORED`) for unlabelled; None where
            the data has no stuff.
        image_id: the id in the annotation file, -1 where there is none.
        seed: of the random draws that belong to this image (which anchors, which RoIs), so that they depend neither
            on the batch an image is in nor on the number of processes.
        keypoints: [G, P, 3] float32 x, y and visibility (0: not labelled, 1: hidden, 2: visible); None where the data
            has none.
        proposals: [P, 4] float32, best first, for a model that does not find its own; None for others.
    """

    boxes: Tensor
    labels: Tensor
    crowds: Tensor
    masks: Masks | None = None
    semantic: Tensor | None = None
    image_id: int = -1
    seed: int = 0
    keypoints: Tensor | None = None
    proposals: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> "Targets":
        return replace(
            self,
            boxes=self.boxes.to(device),
            labels=self.labels.to(device),
            crowds=self.crowds.to(device),
            semantic=None if self.semantic is None else self.semantic.to(device),
            keypoints=None if self.keypoints is None else self.keypoints.to(device),
            proposals=None if self.proposals is None else self.proposals.to(device),
        )

    def pin_memory(self) -> "Targets":
        return self  # small tensors: not worth it


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class Segments:
    """A picture divided into things and stuff: "Panoptic Segmentation" (Kirillov et al., 2019).

    Attributes:
        ids: [H, W] int32, of each pixel its segment's place in the lists below plus 1; 0: void.
        labels: [S] int64, 0..K-1 for things, from K on for stuff.
        scores: [S] float32, 0..1; stuff has 1.
    """

    ids: Tensor
    labels: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def above(self, score: float) -> "Segments":
        """Only the segments with at least this score; the others become void."""
        kept = self.scores >= score
        places = torch.zeros(len(kept) + 1, dtype=torch.int32)
        places[1:] = kept.cumsum(0) * kept
        return Segments(places[self.ids.long()], self.labels[kept], self.scores[kept])


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class Detections:
    """What was found in one image, best first, in pixels of the original picture.

    Attributes:
        boxes: [D, 4] float32.
        scores: [D] float32, 0..1.
        labels: [D] int64, 0..K-1.
        size: (height, width) of the picture.
        masks: per detection a COCO run-length encoding {"size": [height, width], "counts": bytes}; None for a model
            without masks.
        keypoints: [D, P, 3] float32 x, y and score of each keypoint; None for a model without keypoints.
        segments: the picture divided without overlap; None but for a panoptic model.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    size: Size
    masks: list[dict[str, Any]] | None = None
    keypoints: Tensor | None = None
    segments: Segments | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: Tensor) -> "Detections":
        """The detections at these places [S] int64, in this order."""
        return replace(
            self,
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            masks=None if self.masks is None else [self.masks[i] for i in index.tolist()],
            keypoints=None if self.keypoints is None else self.keypoints[index],
        )

    def above(self, score: float) -> "Detections":
        """Only the detections with at least this score."""
        segments = None if self.segments is None else self.segments.above(score)
        return replace(self.take((self.scores >= score).nonzero()[:, 0]), segments=segments)
