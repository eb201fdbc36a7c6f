"""From the network's input back to the picture."""

from torch import Tensor

from mrcnn_cli.models.box_head import Found
from mrcnn_cli.ops import paste_masks
from mrcnn_cli.ops.box_coding import clip_boxes
from mrcnn_cli.structures import Detections, Size


def detections(
    found: Found,
    size: Size,
    original_size: Size,
    masks: Tensor | None = None,
    threshold: float = 0.5,
    keypoints: Tensor | None = None,
) -> Detections:
    """What was found, scaled to the picture and without boxes that are empty there; masks pasted.

    Args:
        found: in pixels of the network's input.
        size: (height, width) of the image there.
        original_size: (height, width) of the picture.
        masks: [D, M, M] probabilities, for models with masks.
        threshold: of the masks.
        keypoints: [D, P, 3] x, y (in pixels of the network's input) and score, for models with keypoints.
    """
    factor_y, factor_x = original_size[0] / size[0], original_size[1] / size[1]
    boxes = clip_boxes(found.boxes * found.boxes.new_tensor([factor_x, factor_y, factor_x, factor_y]), original_size)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero()[:, 0]
    boxes = boxes[keep]
    if keypoints is not None:
        keypoints = (keypoints[keep] * keypoints.new_tensor([factor_x, factor_y, 1.0])).cpu()
    return Detections(
        boxes.cpu(),
        found.scores[keep].cpu(),
        found.labels[keep].cpu(),
        original_size,
        None if masks is None else paste_masks(masks[keep], boxes, original_size, threshold),
        keypoints,
    )
