"""Masks of a fixed resolution put back into the image: "Mask R-CNN" (He et al., 2017), section 3.1."""

from typing import Any

import torch
from torch import Tensor

from mrcnn_cli import _C

# Room that is made for the pixels where runs begin and end, per mask and column of the image. Masks that need more
# are few and are done a second time, with the room that they were found to need.
EDGES_PER_COLUMN = 2


def paste_masks(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Run-length encodings of masks resampled from their boxes into the image, for `pycocotools` and results files.

    Bilinear sampling at pixel centres in float32, zero outside of the mask's grid, as in Detectron2. Straight from
    probabilities to runs: no image is made, of one mask or of all. The encodings are byte for byte those that
    pycocotools makes of `paste_masks_dense`. Masks on a GPU stay there until their runs are found; the runs then come
    to the host, which is the only wait.

    Args:
        masks: [N, M, M] probabilities. NaN belongs to no mask.
        boxes: [N, 4] in pixels of the image. One that is empty, inverted or not finite gets an empty mask.
        image_size: (height, width), less than 2^31 pixels.
        threshold: a pixel belongs to the mask from this probability on, compared in float32. Pixels that are more than
            half a value's width outside of the box never do.

    Returns:
        Per mask a compressed COCO encoding {"size": [height, width], "counts": bytes}.

    Raises:
        ValueError: a shape does not fit.
        RuntimeError: a type or a size does not fit.
    """
    masks, boxes = _checked("paste_masks", masks, boxes)
    height, width = image_size
    # a mask alone may need an edge in every row of its grid, and one more
    capacity = width * (EDGES_PER_COLUMN * len(masks) + masks.shape[1] + 2)
    edges, starts = torch.ops.mrcnn.paste_masks(masks, boxes, height, width, threshold, capacity)
    starts = starts.cpu()
    found = int(starts[-1])
    if found > capacity:
        edges, _ = torch.ops.mrcnn.paste_masks(masks, boxes, height, width, threshold, found)
    texts = _C.rle_from_edges(edges[:found].cpu().numpy().tobytes(), starts.numpy().tobytes(), height * width)
    return [{"size": [height, width], "counts": text} for text in texts]


def paste_masks_dense(masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """As `paste_masks`, but whole images: [N, height, width] bool on the device of `masks`."""
    masks, boxes = _checked("paste_masks_dense", masks, boxes)
    return torch.ops.mrcnn.paste_masks_dense(masks, boxes, *image_size, threshold)


def _checked(name: str, masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"{name}: masks must be [N, M, M], got {list(masks.shape)}")
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"{name}: boxes must be [{len(masks)}, 4] as there are masks, got {list(boxes.shape)}")
    return masks.detach(), boxes.detach()


@torch.library.register_fake("mrcnn::paste_masks")
def _edges_shape(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float, capacity: int
) -> list[Tensor]:
    starts = masks.new_empty(masks.shape[0] + 1, dtype=torch.int64)
    return [masks.new_empty(capacity, dtype=torch.int32), starts]


@torch.library.register_fake("mrcnn::paste_masks_dense")
def _images_shape(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    return masks.new_empty((masks.shape[0], height, width), dtype=torch.bool)
