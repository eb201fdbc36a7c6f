"""MMDetection, versions 2 and 3: its published names and conventions. Unproven: no figures of it are at hand."""

from typing import Any

from mrcnn_cli.engine.foreign import detectron2
from mrcnn_cli.engine.foreign.layouts import size_by_size
from mrcnn_cli.engine.foreign.names import Renamed, Table

NAME = "MMDetection"

# A convolution of a ConvModule and the norm behind it, which is called after its kind.
_PARTS = (("conv", ""), ("bn", ".norm"), ("gn", ".norm"))


def _modules(theirs: str, ours: str) -> Table:
    return [(f"{theirs}.{part}.{{*}}", f"{ours}{norm}.{{*}}") for part, norm in _PARTS]


NAMES: Table = (
    ("backbone.conv1.{*}", "backbone.stem.{*}"),
    ("backbone.bn1.{*}", "backbone.stem.norm.{*}"),
    ("backbone.gn1.{*}", "backbone.stem.norm.{*}"),
    (
        "backbone.layer{stage+1}.{block}.conv{index}.conv_offset.{*}",
        "backbone.stages.{stage}.{block}.conv{index}.offset.{*}",
    ),
    ("backbone.layer{stage+1}.{block}.conv{index}.{*}", "backbone.stages.{stage}.{block}.conv{index}.{*}"),
    ("backbone.layer{stage+1}.{block}.bn{index}.{*}", "backbone.stages.{stage}.{block}.conv{index}.norm.{*}"),
    ("backbone.layer{stage+1}.{block}.gn{index}.{*}", "backbone.stages.{stage}.{block}.conv{index}.norm.{*}"),
    ("backbone.layer{stage+1}.{block}.downsample.0.{*}", "backbone.stages.{stage}.{block}.shortcut.{*}"),
    ("backbone.layer{stage+1}.{block}.downsample.1.{*}", "backbone.stages.{stage}.{block}.shortcut.norm.{*}"),
    *_modules("neck.lateral_convs.{level}", "fpn.laterals.{level}"),
    *_modules("neck.fpn_convs.{level}", "fpn.outputs.{level}"),
    ("rpn_head.rpn_conv.{part}", "rpn.convs.0.{part}"),
    ("rpn_head.rpn_conv.{index}.conv.{*}", "rpn.convs.{index}.{*}"),
    ("rpn_head.rpn_cls.{*}", "rpn.logits.{*}", size_by_size()),
    ("rpn_head.rpn_reg.{*}", "rpn.deltas.{*}", size_by_size(4)),
    *_modules("roi_head.bbox_head.shared_convs.{index}", "box_head.convs.{index}"),
    ("roi_head.bbox_head.shared_fcs.{index}.{*}", "box_head.fcs.{index}.{*}"),
    ("roi_head.bbox_head.fc_cls.{*}", "box_head.logits.{*}"),
    ("roi_head.bbox_head.fc_reg.{*}", "box_head.deltas.{*}"),
    *_modules("roi_head.mask_head.convs.{index}", "mask_head.convs.{index}"),
    ("roi_head.mask_head.upsample.{*}", "mask_head.upsample.{*}"),
    ("roi_head.mask_head.conv_logits.{*}", "mask_head.logits.{*}"),
    *_modules("bbox_head.cls_convs.{index}", "retina_head.class_convs.{index}"),
    *_modules("bbox_head.reg_convs.{index}", "retina_head.box_convs.{index}"),
    ("bbox_head.retina_cls.{*}", "retina_head.logits.{*}"),
    ("bbox_head.retina_reg.{*}", "retina_head.deltas.{*}", size_by_size(4)),
)

# Of its models with backbones in "pytorch" style; those in "caffe" style have the pixels and strides of Detectron2.
CONVENTIONS: dict[str, Any] = {
    "model.pixels.channels": "rgb",
    "model.pixels.mean": [123.675, 116.28, 103.53],
    "model.pixels.deviation": [58.395, 57.12, 57.375],
    "model.backbone.stride_in_1x1": False,
    "model.backbone.frozen_stages": 2,
    "model.rpn.loss_denominator": "sampled",
    "model.rpn.smooth_l1_beta": 0.0,
    "model.rpn.min_size": 0.0,
    "model.box_head.roi.sampling_ratio": 0,
    "model.box_head.smooth_l1_beta": 0.0,
    "model.mask_head.roi.sampling_ratio": 0,
    "data.resize.method": "torchvision",
    "data.size_divisor": 32,
}


def special_conventions(model: dict[str, Any]) -> dict[str, Any]:
    """Nothing here depends on the architecture."""
    return {}


def complete(renamed: Renamed) -> None:
    """Tell a pyramid's outputs from its extra levels, and bring RetinaNet's class logits into our order of anchors."""
    tensors = renamed.tensors
    laterals = len({name.split(".")[2] for name in tensors if name.startswith("fpn.laterals.")})
    renamed.move(
        r"fpn\.outputs\.(\d+)\.(.*)",
        lambda m: m[0] if int(m[1]) < laterals else f"fpn.tops.{int(m[1]) - laterals}.{m[2]}",
    )
    for part in ("weight", "bias"):
        name = f"retina_head.logits.{part}"
        if name in tensors:
            anchors = len(tensors["retina_head.deltas.bias"]) // 4
            tensors[name] = size_by_size(len(tensors[name]) // anchors)(tensors[name])


categories = detectron2.categories
