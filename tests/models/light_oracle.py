"""torchvision's one-stage and light detectors and ours, with the same weights: the oracle of their tests."""

import re
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch

from mrcnn_cli.engine import foreign
from mrcnn_cli.engine.checkpoint import load_weights
from mrcnn_cli.engine.foreign import torchvision
from mrcnn_cli.engine.foreign.names import rename
from mrcnn_cli.models import build_model
from tests.models.detectron2_oracle import inputs, pairs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchvision.models import detection

CLASSES = 7
SHORT_SIDE = 224  # of what the detectors see, but for SSD; the pictures are larger
PIXELS, SCORE = 0.02, 1e-4
EVERYTHING = 1_000_000  # a mini-batch that takes every anchor and every proposal: no draw is left to chance

RETINANETS = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2")
MOBILENETS = ("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn_mobilenet_v3_large_320_fpn")
DETECTORS = (*RETINANETS, "ssd300_vgg16", *MOBILENETS)


def options(name):
    """(how torchvision's is built, what of our recipe differs from the one that its weights tell)."""
    if name.startswith("ssd"):
        return {}, ()
    resize = ({"min_size": SHORT_SIDE, "max_size": 1000}, (f"data.resize.short_side={SHORT_SIDE}",))
    if name in RETINANETS:
        return resize
    theirs = {"rpn_batch_size_per_image": EVERYTHING, "box_batch_size_per_image": EVERYTHING}
    ours = [f"model.rpn.samples_per_image={EVERYTHING}", f"model.box_head.samples_per_image={EVERYTHING}"]
    theirs |= {"rpn_pre_nms_top_n_train": 200, "rpn_post_nms_top_n_train": 100}
    ours += ["model.rpn.pre_nms_top_n_train=200", "model.rpn.post_nms_top_n_train=100"]
    if name == "fasterrcnn_mobilenet_v3_large_320_fpn":
        ours += [f"model.rpn.{key}=150" for key in ("pre_nms_top_n", "post_nms_top_n")]
        ours.append("model.rpn.score_threshold=0.05")
    return {**resize[0], **theirs}, (*resize[1], *ours)


@cache
def pair(name, seed):
    """(torchvision's detector, ours, our recipe) with random weights that make it find things of many classes."""
    torch.manual_seed(seed)
    theirs_options, overrides = options(name)
    theirs = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=CLASSES + 1, **theirs_options)
    liven(theirs, their_batch())
    renamed = rename(theirs.state_dict(), torchvision.NAMES)
    assert not renamed.left_out
    converted = foreign.convert(foreign.Foreign(Path(name), torchvision, renamed, {}), overrides)
    ours = build_model(converted.config.model, CLASSES)
    load_weights(ours, renamed.tensors, name)
    return theirs.eval(), ours.to(memory_format=torch.channels_last).eval(), converted.config


@torch.no_grad()
def liven(model, images):
    """Statistics of real activations for its batch norms; the outputs of all other layers centred and spread.

    Without that the signal drowns in the constant part of the activations, and rounding shows in what is left.
    """
    outputs, head = {}, getattr(model, "head", None)
    if head is None:
        outputs[model.rpn.head.cls_logits] = (1.0, 0.0)
        outputs[model.rpn.head.bbox_pred] = (0.2, 0.0)
        outputs[model.roi_heads.box_predictor.cls_score] = (0.7, 0.0)
        outputs[model.roi_heads.box_predictor.bbox_pred] = (0.3, 0.0)
    elif hasattr(head.classification_head, "cls_logits"):
        outputs[head.classification_head.cls_logits] = (1.5, -6.5)
        outputs[head.regression_head.bbox_reg] = (0.2, 0.0)
    else:
        outputs |= dict.fromkeys(head.classification_head.module_list, (2.0, 0.0))
        outputs |= dict.fromkeys(head.regression_head.module_list, (0.5, 0.0))
    hooks = []
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0.3, 0.1)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.bias is not None:
            hooks.append(module.register_forward_hook(spread(*outputs.get(module, (1.0, 0.0)))))
    for name, parameter in model.named_parameters():
        if re.search(r"\.bn3\.weight$|\.block\.[23]\.1\.weight$", name):
            parameter.mul_(0.2)  # at the end of a residual branch: else a deep random network is chaotic
    model.eval()
    model.backbone.train()
    model(images)
    model.eval()
    for hook in hooks:
        hook.remove()
    if head is None:
        return
    if hasattr(head.classification_head, "cls_logits"):  # class 0, which COCO's numbers never use, is not carried over
        head.classification_head.cls_logits.weight.view(9, CLASSES + 1, -1)[:, 0] = 0
        head.classification_head.cls_logits.bias.view(9, CLASSES + 1)[:, 0] = -30
    else:
        for logits in head.classification_head.module_list:
            logits.bias.view(-1, CLASSES + 1)[:, 0] += 3.0


def spread(deviation, mean):
    """A hook that scales what a layer says at first to a mean per channel and a standard deviation over all."""

    def hook(layer, arguments, output):
        if layer in done:
            return output
        done.add(layer)
        channels_last = output.movedim(1, -1)
        centre = channels_last.flatten(0, -2).mean(0)
        factor = deviation / (channels_last - centre).std()
        if not factor.isfinite():  # a map of one cell
            return output
        layer.weight.mul_(factor)
        layer.bias.sub_(centre).mul_(factor).add_(mean)
        return ((channels_last - centre) * factor + mean).movedim(-1, 1)

    done = set()
    return hook


def pictures():
    """Two photographs, uint8 [H, W, 3] in RGB."""
    return [np.ascontiguousarray(inputs()[f"img{index}_bgr"][..., ::-1]) for index in (0, 1)]


def their_batch():
    return [torch.from_numpy(picture).permute(2, 0, 1).float() / 255 for picture in pictures()]


def objects():
    """The truth about both for torchvision, in double precision; its labels count from 1."""
    boxes, labels = torch.from_numpy(inputs()["gt/boxes"]).double(), torch.tensor([1, 4, CLASSES])
    return [{"boxes": boxes, "labels": labels}, {"boxes": boxes[1:] * 0.9, "labels": labels[1:]}]


def compare(expected, found, threshold):
    """The same detections as a set, but for those whose score is so near to a threshold that rounding decides."""
    labels, sides = expected["labels"] - 1, expected["boxes"][:, 2:] - expected["boxes"][:, :2]
    real = (sides > 0).all(1)  # those that clipping left nothing of are no detections here
    boxes, scores, labels = expected["boxes"][real], expected["scores"][real], labels[real]
    assert len(scores) >= 20
    assert len(labels.unique()) >= 3
    least = max(threshold, min(scores.min().item(), found.scores.min().item()))
    places, back = (
        pairs(found.boxes, found.labels, boxes, labels, PIXELS),
        pairs(boxes, labels, found.boxes, found.labels, PIXELS),
    )
    assert (places[scores > least + SCORE] >= 0).all(), "detections of torchvision are missing"
    assert (back[found.scores > least + SCORE] >= 0).all(), "there are detections that torchvision does not have"
    both = places >= 0
    assert (found.scores[places[both]] - scores[both]).abs().max() <= SCORE
