"""From the network's input back to the picture."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from mrcnn_cli.models.box_head import Found
from mrcnn_cli.ops import paste_masks
from mrcnn_cli.ops.box_coding import clip_boxes
from mrcnn_cli.structures import Detections, Size

# How a mask is put into the picture: at its box, or at the whole pixels that torchvision cuts boxes to.
Paste = Literal["exact", "whole_pixels"]


@dataclass(frozen=True)
class FoundMasks:
    """The masks of the boxes found in one image, as a mask head gives them.

    Attributes:
        probabilities: [D, M, M], each over its box.
        threshold: a pixel belongs to the mask from this probability on.
        paste: how masks lie in their boxes.
    """

    probabilities: Tensor
    threshold: float
    paste: Paste


def detections(
    found: Found,
    size: Size,
    original_size: Size,
    masks: FoundMasks | None = None,
    keypoints: Tensor | None = None,
) -> Detections:
    """What was found, scaled to the picture and without boxes that are empty there; masks pasted.

    Args:
        found: in pixels of the network's input.
        size: (height, width) of the image there.
        original_size: (height, width) of the picture.
        masks: for models with masks.
        keypoints: [D, P, 3] x, y (in pixels of the network's input) and score, for models with keypoints.
    """
    factor_y, factor_x = original_size[0] / size[0], original_size[1] / size[1]
    boxes = clip_boxes(found.boxes * found.boxes.new_tensor([factor_x, factor_y, factor_x, factor_y]), original_size)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero()[:, 0]
    boxes = boxes[keep]
    if keypoints is not None:
        keypoints = (keypoints[keep] * keypoints.new_tensor([factor_x, factor_y, 1.0])).cpu()
    pasted = None
    if masks is not None:
        pasted = paste_masks(*placed(masks.probabilities[keep], boxes, masks.paste), original_size, masks.threshold)
    return Detections(
        boxes.cpu(),
        found.scores[keep].cpu(),
        found.labels[keep].cpu(),
        original_size,
        pasted,
        keypoints,
    )


def placed(masks: Tensor, boxes: Tensor, paste: Paste) -> tuple[Tensor, Tensor]:
    """The masks and boxes to paste.

    torchvision puts a ring of zeros around a mask, enlarges the box accordingly, cuts its corners to whole pixels and
    lets the mask cover the last one as well: it comes to lie up to a pixel beside its exact place.
    """
    if paste == "exact":
        return masks, boxes
    size = masks.shape[-1]
    centre, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((size + 2) / size)
    return pad(masks, (1, 1, 1, 1)), torch.cat([(centre - half).trunc(), (centre + half).trunc() + 1], 1)
