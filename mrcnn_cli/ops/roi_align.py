"""RoIAlign: "Mask R-CNN" (He et al., 2017), and its levels: "Feature Pyramid Networks" (Lin et al., 2017).

Linear in the features: the backward operator is the transpose of the forward one and the other way round, so
gradients of any order exist. Boxes get no gradient, as in the paper.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def roi_align(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Features of each box, pooled to one size by bilinear sampling.

    The values of torchvision.ops.roi_align: levels, samples and their weights are equal to the bit, but samples that
    share a pixel are merged before they are summed, so float32 differs by up to 2e-6 times the largest feature. A box
    with a coordinate that is NaN or infinite gives zeros; with adaptive sampling so does an inverted one.

    Args:
        input: [N, C, H, W] float32, float64, float16 or bfloat16, contiguous or channels last; the result has its type
            and memory format. Sums are made in float32 (float64 for float64).
        boxes: [R, 5] image index, x1, y1, x2, y2, or N tensors [R_i, 4]. In pixels of the image; any floating type,
            computed in float32 (float64 for float64 input).
        output_size: bins per side, or (height, width).
        spatial_scale: pixels of the feature map per pixel of the image.
        sampling_ratio: samples per bin and axis; 0 or less takes as many as the bin has pixels, rounded up.
        aligned: shift by half a pixel, so that pixel centres lie at .5 and boxes smaller than a pixel stay small.

    Returns:
        [R, C, height, width].

    Raises:
        RuntimeError: a shape or type does not fit, or (on the CPU) a box lies on an image that is not there. On a GPU
            such a box gives zeros.
    """
    return multilevel_roi_align([input], boxes, output_size, [spatial_scale], sampling_ratio, aligned)


def multilevel_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    canonical_size: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """Features of each box, pooled to one size from the level of a pyramid that fits the box.

    A box with sqrt(area) = canonical_size belongs to canonical_level, one of half that size to the level below, and so
    on (equation 1 of the FPN paper), clamped to the levels there are. The first map's level is -log2 of its scale.

    Args:
        features: up to 8 maps [N, C, H_l, W_l], finest first, each half the size of the one before. If their types
            differ, as under autocast, they are brought to the widest.
        boxes: [R, 5] image index, x1, y1, x2, y2, or N tensors [R_i, 4], in pixels of the image.
        output_size: bins per side, or (height, width).
        spatial_scales: pixels of each map per pixel of the image.
        sampling_ratio: as for `roi_align`.
        aligned: as for `roi_align`.
        canonical_size: in pixels of the image; 224 is the crop of ImageNet training.
        canonical_level: the level of that size; 4 is the stride of 16 that C4 models use.

    Returns:
        [R, C, height, width], in the order of `boxes`.

    Raises:
        RuntimeError: as for `roi_align`.
    """
    features = list(features)
    if not features:
        raise RuntimeError("roi_align: features must hold at least one map, got none")
    if any(map.dtype != features[0].dtype for map in features):
        widest = features[0].dtype
        for map in features[1:]:
            widest = torch.promote_types(widest, map.dtype)
        features = [map.to(widest) for map in features]
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    rois = boxes if isinstance(boxes, Tensor) else _with_image_index(boxes, features[0])
    scales = [float(scale) for scale in spatial_scales]
    return torch.ops.mrcnn.roi_align(
        features, rois.detach(), scales, height, width, sampling_ratio, aligned, float(canonical_size), canonical_level
    )


def _with_image_index(boxes: Sequence[Tensor], features: Tensor) -> Tensor:
    """[R, 5] of one [R_i, 4] per image. Half-precision boxes become float32: it can't hold every image index."""
    if features.ndim == 4 and len(boxes) != features.shape[0]:
        raise RuntimeError(f"roi_align: boxes must be one [R, 4] per image, got {len(boxes)} for {features.shape[0]}")
    for image, box in enumerate(boxes):
        if box.ndim != 2 or box.shape[1] != 4:
            raise RuntimeError(f"roi_align: boxes[{image}] must be [R, 4], got {list(box.shape)}")
    if not boxes:
        return features.new_empty((0, 5), dtype=torch.float32)
    wide = [box if box.dtype == torch.float64 else box.float() for box in boxes]
    index = [torch.full_like(box[:, :1], image) for image, box in enumerate(wide)]
    return torch.cat([torch.cat(index), torch.cat(wide)], 1)


def _prefers_channels_last(features: Tensor) -> bool:
    # The rule of csrc/roi_align/roi_align.cpp: a map that is both (one channel, one pixel) counts as contiguous.
    return features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()


def _memory_format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


@torch.library.register_fake("mrcnn::roi_align")
def _roi_align_shape(features: list[Tensor], rois: Tensor, scales: list[float], height: int, width: int, *_: Any):
    first = features[0]
    size = (rois.shape[0], first.shape[1], height, width)
    memory_format = _memory_format(_prefers_channels_last(first))
    return torch.empty(size, dtype=first.dtype, device=first.device, memory_format=memory_format)


@torch.library.register_fake("mrcnn::roi_align_backward")
def _roi_align_backward_shape(
    grad: Tensor, rois: Tensor, images: int, heights: list[int], widths: list[int], *rest: Any
) -> list[Tensor]:
    memory_format = _memory_format(rest[-1])
    return [
        torch.empty(
            (images, grad.shape[1], height, width), dtype=grad.dtype, device=grad.device, memory_format=memory_format
        )
        for height, width in zip(heights, widths, strict=True)
    ]


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, scales, _, _, *geometry = inputs
    ctx.save_for_backward(rois)
    ctx.maps = (features[0].shape[0], [map.shape[2] for map in features], [map.shape[3] for map in features])
    ctx.pooling = (scales, *geometry)
    ctx.channels_last = _prefers_channels_last(features[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    grads = torch.ops.mrcnn.roi_align_backward(grad, rois, *ctx.maps, *ctx.pooling, ctx.channels_last)
    return grads, *[None] * 8


def _save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, rois, _, _, _, *pooling, _ = inputs
    ctx.save_for_backward(rois)
    ctx.size = grad.shape[2:]
    ctx.pooling = pooling


def _double_backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    (rois,) = ctx.saved_tensors
    scales, *geometry = ctx.pooling
    return torch.ops.mrcnn.roi_align(grads, rois, scales, *ctx.size, *geometry), *[None] * 10


torch.library.register_autograd("mrcnn::roi_align", _backward, setup_context=_save_for_backward)
torch.library.register_autograd("mrcnn::roi_align_backward", _double_backward, setup_context=_save_for_double_backward)
