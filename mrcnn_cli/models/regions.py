"""Regions of interest, cut out of a feature pyramid at one resolution."""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from mrcnn_cli.config import Config
from mrcnn_cli.ops import multilevel_roi_align


class RoIConfig(Config):
    """How a head cuts its regions out of the pyramid."""

    resolution: int = Field(7, ge=1)
    sampling_ratio: int = Field(2, ge=0)  # points per bin and axis; 0: as many as the bin has cells (Detectron2)
    aligned: bool = True  # the half-pixel shift of Detectron2's ROIAlignV2; torchvision's models have none
    canonical_size: float = Field(224.0, gt=0)  # a box of this size is cut from the level ...
    canonical_level: int = 4  # ... of stride 2**canonical_level


def cut_regions(features: Sequence[Tensor], boxes: Sequence[Tensor], strides: Sequence[int], roi: RoIConfig) -> Tensor:
    """[R, C, resolution, resolution] of all boxes of the batch, image after image.

    Args:
        features: maps [N, C, H_l, W_l], finest first; those beyond `strides` are for the RPN alone.
        boxes: per image [R_i, 4] in pixels of the network's input.
        strides: of the maps that regions are cut from.
        roi: resolution and sampling.
    """
    return multilevel_roi_align(
        list(features[: len(strides)]),
        list(boxes),
        roi.resolution,
        [1 / stride for stride in strides],
        roi.sampling_ratio,
        roi.aligned,
        roi.canonical_size,
        roi.canonical_level,
    )
