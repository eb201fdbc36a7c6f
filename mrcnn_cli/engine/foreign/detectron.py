"""Detectron (Caffe2): its names and its conventions, and those of the ImageNet backbones that Detectron2 starts from.

Its boxes have whole pixels as corners, both inside, and its anchors are rounded at the scale of the feature map: what
is found differs from Detectron's own by up to a pixel or so.
"""

from typing import Any

import torch

from mrcnn_cli.engine.foreign import detectron2
from mrcnn_cli.engine.foreign.layouts import (
    background_last,
    boxes_without_background,
    size_by_size,
    without_background,
)
from mrcnn_cli.engine.foreign.names import Renamed, Row, Table

NAME = "Detectron"

# A batch norm of Caffe2 is a scale and a shift; with mean 0 and variance 1 - eps it is a batch norm again.
EPS = 1e-5

# A blob's last word -> the tensor of a layer here.
_WORDS = (
    ("_w", ".weight"),
    ("_b", ".bias"),
    ("_bn_s", ".norm.weight"),
    ("_bn_b", ".norm.bias"),
    ("_bn_rm", ".norm.running_mean"),
    ("_bn_riv", ".norm.running_var"),
    ("_gn_s", ".norm.weight"),
    ("_gn_b", ".norm.bias"),
)

# What a layer is called there -> here, with what is done to its tensors. Layers that the levels of a pyramid share are
# named after the finest one.
_LAYERS: tuple[Any, ...] = (
    ("conv1", "backbone.stem"),
    ("res_conv1", "backbone.stem"),
    ("res{stage+2}_{block+0}_branch1", "backbone.stages.{stage}.{block}.shortcut"),
    ("res{stage+2}_{block+0}_branch2a", "backbone.stages.{stage}.{block}.conv1"),
    ("res{stage+2}_{block+0}_branch2b", "backbone.stages.{stage}.{block}.conv2"),
    ("res{stage+2}_{block+0}_branch2c", "backbone.stages.{stage}.{block}.conv3"),
    # the pyramid
    ("fpn_inner_res{level+2}_{block+0}_sum_lateral", "fpn.laterals.{level}"),
    ("fpn_inner_res{level+2}_{block+0}_sum", "fpn.laterals.{level}"),
    ("fpn_res{level+2}_{block+0}_sum", "fpn.outputs.{level}"),
    ("fpn_{level+6}", "fpn.tops.{level}"),
    # the region proposal network
    ("conv_rpn_fpn2", "rpn.convs.0"),
    ("conv_rpn", "rpn.convs.0"),
    ("rpn_cls_logits_fpn2", "rpn.logits"),
    ("rpn_cls_logits", "rpn.logits", size_by_size()),
    ("rpn_bbox_pred_fpn2", "rpn.deltas"),
    ("rpn_bbox_pred", "rpn.deltas", size_by_size(4)),
    # boxes
    ("head_conv{index+1}", "box_head.convs.{index}"),
    ("fc{index+6}", "box_head.fcs.{index}"),
    ("cls_score", "box_head.logits", background_last),
    ("bbox_pred", "box_head.deltas", boxes_without_background),
    # masks
    ("_[mask]_fcn{index+1}", "mask_head.convs.{index}"),
    ("conv5_mask", "mask_head.upsample"),
    ("mask_fcn_logits", "mask_head.logits", without_background),
    # keypoints
    ("conv_fcn{index+1}", "keypoint_head.convs.{index}"),
    ("kps_score_lowres", "keypoint_head.logits"),
    # RetinaNet
    ("retnet_cls_conv_n{index+0}_fpn3", "retina_head.class_convs.{index}"),
    ("retnet_bbox_conv_n{index+0}_fpn3", "retina_head.box_convs.{index}"),
    ("retnet_cls_pred_fpn3", "retina_head.logits"),
    ("retnet_bbox_pred_fpn3", "retina_head.deltas"),
)


def _rows() -> list[Row]:
    rows: list[Row] = [
        ("{*}_momentum", None, "is of the optimiser"),
        ("conv1_b", None, "is without effect before a norm"),
        ("fc1000_{*}", None, detectron2.CLASSIFIER),
        ("pred_{*}", None, detectron2.CLASSIFIER),
        ("kps_score_{part}", None, "is a fixed enlargement"),
    ]
    for theirs, ours, *change in _LAYERS:
        rows += [(f"{theirs}{word}", f"{ours}{tensor}", *change) for word, tensor in _WORDS]
    return rows


NAMES: Table = _rows()

CONVENTIONS: dict[str, Any] = {
    **detectron2.CONVENTIONS,
    "model.pixels.mean": [102.9801, 115.9465, 122.7717],
    "model.anchors.offset": 0.5,
    "model.box_head.roi.sampling_ratio": 2,
    "model.box_head.roi.aligned": False,
    "model.mask_head.roi.sampling_ratio": 2,
    "model.mask_head.roi.aligned": False,
    "model.keypoint_head.roi.sampling_ratio": 2,
    "model.keypoint_head.roi.aligned": False,
    "data.resize.method": "torchvision",
}


def special_conventions(model: dict[str, Any]) -> dict[str, Any]:
    """As in Detectron2, but that all its backbones saw pixels without any deviation."""
    special = detectron2.special_conventions(model)
    special.pop("model.pixels.deviation", None)
    return special


def complete(renamed: Renamed) -> None:
    """Give frozen norms the statistics that Caffe2 left out, and move what one name stands for in several models."""
    tensors, sources = renamed.tensors, renamed.sources
    for name in [name for name in tensors if name.endswith(".norm.weight") and sources[name].endswith("_bn_s")]:
        layer = name.removesuffix(".weight")
        tensors.setdefault(f"{layer}.running_mean", torch.zeros_like(tensors[name]))
        tensors.setdefault(f"{layer}.running_var", torch.full_like(tensors[name], 1 - EPS))
    if "fpn.laterals.1.weight" in tensors and "fpn.laterals.0.weight" not in tensors:  # RetinaNet begins with level 3
        renamed.move(r"fpn\.(laterals|outputs)\.(\d+)\.(.*)", lambda m: f"fpn.{m[1]}.{int(m[2]) - 1}.{m[3]}")
    if "box_head.logits.weight" in tensors and not any(name.startswith("box_head.fcs.") for name in tensors):
        renamed.move(r"backbone\.stages\.3\.(.*)", lambda m: f"box_head.stage.{m[1]}")  # the C4 form


categories = detectron2.categories
