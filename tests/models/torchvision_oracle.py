"""torchvision's Mask R-CNN and ours with the same weights and the same conventions: the oracle of the model tests."""

import warnings

import numpy as np
import torch
from pycocotools import mask as coco_mask

from mrcnn_cli.engine.checkpoint import load_weights
from mrcnn_cli.engine.foreign import torchvision as names
from mrcnn_cli.engine.foreign.names import rename
from mrcnn_cli.models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from mrcnn_cli.structures import ImageBatch, Masks, Targets

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHORT_SIDE = 96
EVERYTHING = 1_000_000  # a mini-batch that takes every anchor and every proposal: no draw is left to chance


def config(backbone="resnet18"):
    """Our recipe in torchvision's conventions."""
    roi = {"sampling_ratio": 2, "aligned": False}
    return MaskRCNNConfig.model_validate(
        {
            "name": "mask_rcnn",
            "pixels": {"mean": [255 * m for m in MEAN], "deviation": [255 * d for d in DEVIATION]},
            "backbone": {"name": backbone, "norm": "batch_norm"},
            "anchors": {"sizes": [[16], [32], [64], [128], [256]], "rounded": True},
            "rpn": {
                "samples_per_image": EVERYTHING,
                "positive_fraction": 0.5,
                "smooth_l1_beta": 1 / 9,
                "pre_nms_top_n_train": 200,
                "post_nms_top_n_train": 100,
                "pre_nms_top_n": 200,
                "post_nms_top_n": 100,
            },
            "box_head": {
                "roi": {"resolution": 7, **roi},
                "fc_channels": 128,
                "samples_per_image": EVERYTHING,
                "smooth_l1_beta": 1 / 9,
                "min_size": 0.01,
            },
            "mask_head": {"roi": {"resolution": 14, **roi}, "target": {"aligned": False, "threshold": 0.0}},
        }
    )


def torchvision_model(num_classes, backbone="resnet18"):
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

    body = resnet_fpn_backbone(
        backbone_name=backbone, weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    return TorchvisionMaskRCNN(
        body,
        min_size=SHORT_SIDE,  # the short side of every test image, so that nothing is resized
        max_size=1000,
        image_mean=MEAN,
        image_std=DEVIATION,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=100,
        rpn_batch_size_per_image=EVERYTHING,
        box_head=TwoMLPHead(256 * 49, 128),
        box_predictor=FastRCNNPredictor(128, num_classes + 1),
        box_batch_size_per_image=EVERYTHING,
        mask_predictor=torch_mask_predictor(num_classes + 1),
    )


def torch_mask_predictor(num_classes):
    from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

    return MaskRCNNPredictor(256, 256, num_classes)


def copy_weights(theirs, ours):
    """Fill our model from torchvision's; every tensor of ours is filled, every one of theirs used."""
    renamed = rename(theirs.state_dict(), names.NAMES)
    assert not renamed.unknown
    assert not renamed.left_out
    load_weights(ours, renamed.tensors, "torchvision")


def pair(num_classes=3, backbone="resnet18", seed=0):
    """(torchvision's model, ours) with the same weights, of which some are larger than fresh ones, so that detections
    and losses are of a size that matters."""
    torch.manual_seed(seed)
    theirs = torchvision_model(num_classes, backbone)
    ours = MaskRCNN(config(backbone), num_classes)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "cls_score" in name or "mask_fcn_logits" in name:
                parameter.mul_(5 if backbone == "resnet18" else 0.5)
            elif "cls_logits" in name:  # sigmoids that saturate at 1 would tie, and torchvision ranks by them
                parameter.mul_(0.3)
    norms = [module for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():  # statistics of real activations, used as they are from now on
        theirs.backbone.body(torch.randn(2, 3, 128, 160))
    copy_weights(theirs, ours)
    return theirs, ours


def training(model):
    """In training mode, but with the batch norms' statistics fixed: over two tiny images they amplify rounding."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model


def batch(sizes=((SHORT_SIDE, 160), (128, SHORT_SIDE)), num_classes=3, objects=4, seed=1):
    """The same random images with elliptic objects for both: (their images, their targets, our batch, our targets)."""
    random = np.random.default_rng(seed)
    pictures, their_targets, our_targets = [], [], []
    for number, (height, width) in enumerate(sizes):
        picture = torch.from_numpy(random.integers(0, 256, (3, height, width), dtype=np.uint8))
        y, x = np.mgrid[:height, :width] + 0.5
        masks, boxes = [], []
        for _ in range(objects):
            cy, cx = random.uniform(20, height - 20), random.uniform(20, width - 20)
            ry, rx = random.uniform(6, 30), random.uniform(6, 30)
            mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            masks.append(mask)
            boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        boxes = torch.tensor(boxes, dtype=torch.float32)
        labels = torch.from_numpy(random.integers(0, num_classes, objects))
        pictures.append(picture)
        their_targets.append(
            {"boxes": boxes, "labels": labels + 1, "masks": torch.from_numpy(np.stack(masks)).to(torch.uint8)}
        )
        encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
        our_targets.append(
            Targets(boxes, labels, torch.zeros(0, 4), Masks(encoded, torch.eye(2, 3, dtype=torch.float64)), number)
        )
    return [p.float() / 255 for p in pictures], their_targets, ImageBatch.collate(pictures), our_targets
