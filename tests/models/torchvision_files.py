"""Files as torchvision's users have them, and the detectors that they are of."""

import warnings
from functools import cache

import numpy as np
import torch

from tests.models.detectron2_oracle import inputs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchvision.models import detection
    from torchvision.ops.misc import FrozenBatchNorm2d

DETECTORS = (
    *(f"{kind}_resnet50_fpn{version}" for kind in ("fasterrcnn", "maskrcnn") for version in ("", "_v2")),
    "keypointrcnn_resnet50_fpn",
)
# Small pictures and few regions, for tests that are done in seconds: torchvision's argument -> our key and the number.
SMALL = {
    "min_size": ("data.resize.short_side", 200),
    "max_size": ("data.resize.long_side", 300),
    "rpn_post_nms_top_n_test": ("model.rpn.post_nms_top_n", 100),
    "rpn_post_nms_top_n_train": ("model.rpn.post_nms_top_n_train", 100),
    "box_detections_per_img": ("model.box_head.detections_per_image", 40),
}
OVERRIDES = [f"{key}={number}" for key, number in SMALL.values()]
CLASS_SPREAD = 1.5  # standard deviation of the class logits: enough for scores of all sizes


def pictures():
    """Two photographs, uint8 [H, W, 3] in RGB."""
    return [np.ascontiguousarray(inputs()[f"img{index}_bgr"][..., ::-1]) for index in (0, 1)]


def as_theirs(picture):
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255


@cache
def detector(name, seed, **options):
    """A detector with random weights that finds things of many classes.

    Its batch norms know the statistics of the first picture, and its logits are centred and spread by what it says of
    it. In the first versions they are frozen then, with nothing added to the variance, as in the published files.
    """
    torch.manual_seed(seed)
    options = {name: number for name, (_, number) in SMALL.items()} | options
    model = getattr(detection, name)(weights=None, weights_backbone=None, **options)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        torch.nn.init.uniform_(norm.weight, 0.5, 1.0)
        torch.nn.init.normal_(norm.bias, std=0.1)
    picture = [as_theirs(pictures()[0])]
    with torch.no_grad():
        images, _ = model.transform(picture)
        for module in (model.backbone, model.roi_heads):
            module.train()
        features = model.backbone(images.tensors)
        model.eval()
        proposals, _ = model.rpn(images, features)
        spread(model.rpn.head.cls_logits, 1.0, lambda: model.rpn(images, features))
        pooled = model.roi_heads.box_roi_pool(features, proposals, images.image_sizes)
        model.roi_heads.box_head.train()
        hidden = model.roi_heads.box_head(pooled)
        model.eval()
        hidden = model.roi_heads.box_head(pooled)
        predictor = model.roi_heads.box_predictor
        many = predictor.cls_score.out_features > 10  # of few classes one is soon sure
        spread(predictor.cls_score, CLASS_SPREAD if many else 0.5, lambda: predictor(hidden))
        spread(predictor.bbox_pred, 0.5, lambda: predictor(hidden))
        if hasattr(model.roi_heads, "mask_head") and model.roi_heads.mask_head is not None:
            regions = model.roi_heads.mask_roi_pool(features, [p[:50] for p in proposals], images.image_sizes)
            model.roi_heads.mask_head.train()
            model.roi_heads.mask_head(regions)
            model.eval()
            logits = model.roi_heads.mask_predictor.mask_fcn_logits
            spread(logits, 2.0, lambda: model.roi_heads.mask_predictor(model.roi_heads.mask_head(regions)))
        if getattr(model.roi_heads, "keypoint_head", None) is not None:
            regions = model.roi_heads.keypoint_roi_pool(features, [p[:20] for p in proposals], images.image_sizes)
            hidden = model.roi_heads.keypoint_head(regions)
            predictor = model.roi_heads.keypoint_predictor
            spread(predictor.kps_score_lowres, 2.0, lambda: predictor(hidden))
    if not name.endswith("_v2"):
        freeze_norms(model)
    return model.eval()


def spread(layer, deviation, run):
    """Centre the outputs of a layer per channel and scale them to one standard deviation."""
    seen = []
    hook = layer.register_forward_hook(lambda module, arguments, output: seen.append(output))
    run()
    hook.remove()
    outputs = seen[0].movedim(1, -1).flatten(0, -2)
    factor = deviation / outputs.std()
    layer.weight.mul_(factor)
    layer.bias.sub_(outputs.mean(0)).mul_(factor)


def freeze_norms(module):
    """Every batch norm as torchvision's frozen one."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=0.0)
            frozen.load_state_dict({k: v for k, v in child.state_dict().items() if k != "num_batches_tracked"})
            setattr(module, name, frozen)
        else:
            freeze_norms(child)
