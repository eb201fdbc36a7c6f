"""What a model looks like, told from its tensors by our names: the tables of a recipe that would build it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mrcnn_cli.models.backbones.resnet import DEPTHS

Tensors = Mapping[str, Tensor]
Table = dict[str, Any]

# The parts beside backbone and pyramid -> the model that has just these.
MODELS = {
    frozenset({"rpn"}): "proposal_network",
    frozenset({"box_head"}): "fast_rcnn",
    frozenset({"rpn", "box_head"}): "faster_rcnn",
    frozenset({"rpn", "box_head", "mask_head"}): "mask_rcnn",
    frozenset({"rpn", "box_head", "keypoint_head"}): "keypoint_rcnn",
    frozenset({"rpn", "box_head", "keypoint_head", "mask_head"}): "keypoint_rcnn",
    frozenset({"rpn", "box_heads"}): "cascade_rcnn",
    frozenset({"rpn", "box_heads", "mask_head"}): "cascade_rcnn",
    frozenset({"rpn", "box_head", "mask_head", "semantic_head"}): "panoptic_fpn",
    frozenset({"retina_head"}): "retinanet",
    frozenset({"maps", "ssd_head"}): "ssd",
}

# The layers that torchvision builds pyramids on: the first at stride 32, and the last.
MOBILENET_TAPS = {"mobilenet_v2": [14, 18], "mobilenet_v3_large": [13, 16]}


def model_table(tensors: Tensors) -> Table:
    """The table [model] of a recipe for these weights, as far as names and shapes tell it.

    What they cannot tell - strides, sampling, thresholds, pixels - follows from the system that they come from.

    Raises:
        ValueError: no model here has these parts, or they are of no known shape.
    """
    parts = parts_of(tensors) - {"backbone", "fpn"}
    if parts not in MODELS:
        known = "; ".join(f"{name}: {', '.join(sorted(key))}" for key, name in MODELS.items())
        raise ValueError(f"no model here has the parts {', '.join(sorted(parts)) or 'of a backbone alone'} ({known})")
    table: Table = {"name": MODELS[parts], "backbone": _backbone(tensors)}
    if "ssd_head" in parts:  # whose maps are all of one design
        return table
    table["fpn"] = _fpn(tensors)
    if "taps" in table["backbone"]:
        table["fpn"]["skip"] = 0
        table["anchors"] = {"sizes": [[32, 64, 128, 256, 512]] * (_count(tensors, "fpn.laterals") + 1)}
    if table["fpn"]["pyramid"] is False:
        table["backbone"] |= {"dilated": True} if "backbone.stages.3.0.conv1.weight" in tensors else {"stages": 3}
        if "rpn" in parts:
            table["anchors"] = {"sizes": [[32, 64, 128, 256, 512]]}
    for part in sorted(parts):
        table |= HEADS[part](tensors)
    return table


def backbone_table(tensors: Tensors) -> Table:
    """The table [model] as far as a backbone alone tells it."""
    return {"name": "", "backbone": _backbone(tensors), "fpn": {"pyramid": True}}


def parts_of(tensors: Tensors) -> frozenset[str]:
    """The top modules that the tensors belong to: backbone, fpn, rpn, box_head, ..."""
    return frozenset(name.partition(".")[0] for name in tensors)


def number_of_classes(tensors: Tensors) -> int:
    """K, without background; 1 of a region proposal network alone.

    Raises:
        ValueError: no layer has as many outputs as there are classes.
    """
    if not parts_of(tensors) - {"backbone", "fpn", "rpn"}:
        return 1
    if "retina_head.logits.weight" in tensors:  # which has no background, but the classes of several anchors
        return 4 * len(tensors["retina_head.logits.weight"]) // len(tensors["retina_head.deltas.weight"])
    if "ssd_head.logits.0.weight" in tensors:
        return 4 * len(tensors["ssd_head.logits.0.weight"]) // len(tensors["ssd_head.deltas.0.weight"]) - 1
    name = next((name for name in tensors if re.fullmatch(r"box_head(s\.\d+)?\.logits\.weight", name)), None)
    if name is None:
        raise ValueError("no layer tells its number of classes")
    return len(tensors[name]) - 1


def number_of_stuff(tensors: Tensors) -> int:
    """Classes of stuff of a panoptic model, 0 of others; the first logit is that of all things."""
    logits = tensors.get("semantic_head.logits.weight")
    return 0 if logits is None else len(logits) - 1


def _backbone(tensors: Tensors) -> Table:
    if "backbone.stages.0.0.weight" in tensors:
        return {"name": "vgg16", "weights": "given"}
    if "backbone.layers.0.weight" in tensors:
        name = "mobilenet_v3_large" if len(tensors["backbone.layers.0.weight"]) == 16 else "mobilenet_v2"
        return {
            "name": name,
            "taps": MOBILENET_TAPS[name],
            "norm": _norm(tensors, "backbone.layers.0"),
            "weights": "given",
        }
    return _resnet(tensors)


def _resnet(tensors: Tensors) -> Table:
    """Depth, groups, normalisation and deformable convolutions of a ResNet.

    Its fourth stage may be the box head's, and is nowhere in a C4 model's region proposal network alone.
    """
    where = ["backbone.stages.0", "backbone.stages.1", "backbone.stages.2", "backbone.stages.3"]
    if "box_head.stage.0.conv1.weight" in tensors:
        where[3] = "box_head.stage"
    depths, bottleneck = tuple(_count(tensors, prefix) for prefix in where), f"{where[0]}.0.conv3.weight" in tensors
    stages = 4 if depths[3] else 3
    known = {name: (blocks[:stages], kind) for name, (blocks, kind) in DEPTHS.items()}
    name = next((name for name, shape in known.items() if shape == (depths[:stages], bottleneck)), None)
    if name is None:
        raise ValueError(f"stages of {', '.join(map(str, depths))} blocks are no ResNet of {', '.join(DEPTHS)}")
    width, middle = len(tensors["backbone.stem.weight"]), tensors[f"{where[0]}.0.conv2.weight"]
    offsets = tensors.get(f"{where[1]}.0.conv2.offset.weight")
    groups = len(middle) // middle.shape[1]
    return {
        "name": name,
        "width": width,
        "groups": groups,
        "width_per_group": len(middle) * 64 // (width * groups),
        "norm": _norm(tensors, "backbone.stem"),
        "deformable": "none" if offsets is None else {18: "v1", 27: "v2"}[len(offsets)],
        "weights": "given",
    }


def _fpn(tensors: Tensors) -> Table:
    if "fpn.laterals.0.weight" not in tensors:
        return {"pyramid": False}
    channels, top = len(tensors["fpn.outputs.0.weight"]), "pool"
    skip = 4 - _count(tensors, "fpn.laterals")
    if "fpn.tops.0.weight" in tensors:
        top = "pyramid_convs" if tensors["fpn.tops.0.weight"].shape[1] == channels else "backbone_convs"
    return {"pyramid": True, "skip": skip, "channels": channels, "norm": _norm(tensors, "fpn.outputs.0"), "top": top}


def _rpn(tensors: Tensors) -> Table:
    return {"rpn": {"num_conv": _count(tensors, "rpn.convs"), "norm": _norm(tensors, "rpn.convs.0")}}


def _box_head(tensors: Tensors, head: str = "box_head") -> Table:
    table: Table = {"stage": f"{head}.stage.0.conv1.weight" in tensors} | _convolutions(tensors, f"{head}.convs")
    table["num_fc"] = _count(tensors, f"{head}.fcs")
    table["class_agnostic"] = len(tensors[f"{head}.deltas.weight"]) == 4 and number_of_classes(tensors) > 1
    table["roi"] = {"resolution": 14}  # of the C4 form
    if table["num_fc"]:
        first = tensors[f"{head}.fcs.0.weight"]
        channels = table.get("conv_channels", _region_channels(tensors))
        table |= {"fc_channels": len(first), "roi": {"resolution": round((first.shape[1] / channels) ** 0.5)}}
    return {"box_head": table}


def _region_channels(tensors: Tensors) -> int:
    """Of the maps that regions are cut from: the pyramid's, or those of the backbone's last stage (DC5)."""
    if "fpn.outputs.0.weight" in tensors:
        return len(tensors["fpn.outputs.0.weight"])
    return max(len(t) for name, t in tensors.items() if name.startswith("backbone.stages.3.0.") and t.ndim == 4)


def _cascade(tensors: Tensors) -> Table:
    table = _box_head(tensors, "box_heads.0")
    table["box_head"]["class_agnostic"] = True
    return table


def _mask_head(tensors: Tensors) -> Table:
    table = _convolutions(tensors, "mask_head.convs") | {"conv_channels": tensors["mask_head.upsample.weight"].shape[1]}
    table["class_agnostic"] = len(tensors["mask_head.logits.weight"]) == 1 and number_of_classes(tensors) > 1
    return {"mask_head": table | CONVOLUTIONAL}


def _keypoint_head(tensors: Tensors) -> Table:
    keypoints = tensors["keypoint_head.logits.weight"].shape[1]
    return {
        "keypoint_head": _convolutions(tensors, "keypoint_head.convs") | CONVOLUTIONAL,
        "num_keypoints": keypoints,
    }


def _semantic_head(tensors: Tensors) -> Table:
    first, logits = "semantic_head.levels.0.0", tensors["semantic_head.logits.weight"]
    table = {"conv_channels": logits.shape[1], "norm": _norm(tensors, first)}
    return {"semantic_head": table, "num_stuff": number_of_stuff(tensors)}


def _retina_head(tensors: Tensors) -> Table:
    first = "retina_head.class_convs.0"
    return {"retina_head": {"num_conv": _count(tensors, "retina_head.class_convs"), "norm": _norm(tensors, first)}}


# A head of convolutions does not tell the resolution of its regions, but all systems take that.
CONVOLUTIONAL: Table = {"roi": {"resolution": 14}}

# How the tables of each part are told from the tensors.
HEADS: dict[str, Callable[[Tensors], Table]] = {
    "rpn": _rpn,
    "box_head": _box_head,
    "box_heads": _cascade,
    "mask_head": _mask_head,
    "keypoint_head": _keypoint_head,
    "semantic_head": _semantic_head,
    "retina_head": _retina_head,
}


def _convolutions(tensors: Tensors, convs: str) -> Table:
    count = _count(tensors, convs)
    table: Table = {"num_conv": count}
    if count:
        table |= {"conv_channels": len(tensors[f"{convs}.0.weight"]), "norm": _norm(tensors, f"{convs}.0")}
    return table


def _count(tensors: Tensors, prefix: str) -> int:
    """How many modules a list of modules has."""
    return len({name[len(prefix) + 1 :].partition(".")[0] for name in tensors if name.startswith(f"{prefix}.")})


def _norm(tensors: Tensors, layer: str) -> str:
    if f"{layer}.norm.weight" not in tensors:
        return "none"
    if f"{layer}.norm.running_mean" not in tensors:
        return "group_norm"
    # Frozen ones never count batches.
    return "batch_norm" if f"{layer}.norm.num_batches_tracked" in tensors else "frozen_batch_norm"
