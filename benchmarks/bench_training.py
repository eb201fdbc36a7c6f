"""Our Mask R-CNN and torchvision's, trained side by side: the same backbone weights, data, batches, schedule, anchors.

    python benchmarks/bench_training.py --seeds 0 1 2 --steps 300 --json benchmarks/results/training.json

Both take every step in turn in one process, so that a noisy machine disturbs both alike. Timed is the step (forward,
backward, optimiser); loading is not, nor is making the full-image masks that torchvision needs. Then both are evaluated
by the same code on the same images. torchvision gets its own FPN, RPN, heads, losses and operators.
"""

import argparse
import json
import platform
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import nn

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.loader import evaluation_batches, sample_split, training_batches
from mrcnn_cli.engine.optimizer import WeightAverage, build_optimizer, learning_rate, set_learning_rate
from mrcnn_cli.engine.pretrained import load_backbone
from mrcnn_cli.engine.run import read_config
from mrcnn_cli.evaluation import coco
from mrcnn_cli.models import build_model
from mrcnn_cli.structures import Detections, Masks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torchvision
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import LastLevelMaxPool
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign


class Pyramid(nn.Module):
    """The shared backbone under torchvision's own feature pyramid."""

    def __init__(self, body, channels):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            list(body.channels), channels, extra_blocks=LastLevelMaxPool(), norm_layer=nn.BatchNorm2d
        )
        self.out_channels = channels

    def forward(self, x):
        return self.fpn({str(i): feature for i, feature in enumerate(self.body(x))})


class Torchvision(nn.Module):
    """torchvision's MaskRCNN with the numbers of our recipe, behind our two methods."""

    def __init__(self, config, num_classes):
        super().__init__()
        model = config.model
        # An own copy of our backbone, filled with the same weights; everything above it is torchvision's.
        body = build_model(model, num_classes).backbone
        channels = model.fpn.channels
        sizes = tuple(tuple(int(s) for s in level) for level in model.anchors.sizes)
        self.model = MaskRCNN(
            Pyramid(body, channels),
            min_size=config.data.augment.crop if isinstance(config.data.augment.crop, int) else 512,
            max_size=100_000,
            image_mean=[m / 255 for m in model.pixels.mean],
            image_std=[d / 255 for d in model.pixels.deviation],
            rpn_anchor_generator=AnchorGenerator(sizes, (model.anchors.ratios,) * len(sizes)),
            rpn_pre_nms_top_n_train=model.rpn.pre_nms_top_n_train,
            rpn_pre_nms_top_n_test=model.rpn.pre_nms_top_n,
            rpn_post_nms_top_n_train=model.rpn.post_nms_top_n_train,
            rpn_post_nms_top_n_test=model.rpn.post_nms_top_n,
            rpn_batch_size_per_image=model.rpn.samples_per_image,
            box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
            box_head=TwoMLPHead(channels * 49, model.box_head.fc_channels),
            box_predictor=FastRCNNPredictor(model.box_head.fc_channels, num_classes + 1),
            box_batch_size_per_image=model.box_head.samples_per_image,
            box_positive_fraction=model.box_head.positive_fraction,
            box_detections_per_img=model.box_head.detections_per_image,
            mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2),
            mask_head=MaskRCNNHeads(channels, (model.mask_head.conv_channels,) * model.mask_head.num_conv, 1),
            mask_predictor=MaskRCNNPredictor(
                model.mask_head.conv_channels, model.mask_head.conv_channels, num_classes + 1
            ),
        )

    @property
    def backbone(self):
        return self.model.backbone.body

    def forward(self, images, targets):
        return self.model(images, targets)

    @torch.inference_mode()
    def predict(self, images):
        (height, width), (original_height, original_width) = images.sizes[0], images.original_sizes[0]
        self.model.transform.min_size = (min(height, width),)  # as our pipeline has resized it
        [output] = self.model([images.pixels[0, :, :height, :width].float() / 255])
        factors = torch.tensor([original_width / width, original_height / height]).repeat(2)
        masks = torch.nn.functional.interpolate(output["masks"], (original_height, original_width), mode="bilinear")
        encoded = [coco_mask.encode(np.asfortranarray((mask[0] >= 0.5).numpy().astype(np.uint8))) for mask in masks]
        return [
            Detections(
                output["boxes"] * factors, output["scores"], output["labels"] - 1, images.original_sizes[0], encoded
            )
        ]


def full_masks(masks: Masks, size):
    """[G, H, W]: each object's mask as an image of the network's input, which torchvision trains on."""
    height, width = size
    inverse = np.linalg.inv(np.vstack([masks.matrix.numpy(), [0, 0, 1]]))
    y, x = np.mgrid[:height, :width] + 0.5
    source_x = np.floor(inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]).astype(int)
    source_y = np.floor(inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]).astype(int)
    result = torch.zeros(len(masks), height, width, dtype=torch.uint8)
    for slot, segmentation in zip(result, masks.segmentations, strict=True):
        mask = coco_mask.decode(segmentation)
        inside = (source_x >= 0) & (source_x < mask.shape[1]) & (source_y >= 0) & (source_y < mask.shape[0])
        slot[torch.from_numpy(inside)] = torch.from_numpy(mask[source_y[inside], source_x[inside]])
    return result


def their_batch(images, targets):
    pictures = [p[:, :h, :w].float() / 255 for p, (h, w) in zip(images.pixels, images.sizes, strict=True)]
    return pictures, [
        {"boxes": t.boxes, "labels": t.labels + 1, "masks": full_masks(t.masks, size)}
        for t, size in zip(targets, images.sizes, strict=True)
    ]


class Contestant:
    def __init__(self, name, model, config, convert):
        self.name, self.model, self.convert, self.config = name, model.train(), convert, config
        load_backbone_of(model, config)
        self.model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(config.train, Renamed(model))
        self.average = WeightAverage(model, config.train.average)
        self.seconds = []

    def step(self, number, images, targets):
        batch = self.convert(images, targets)
        started = time.perf_counter()
        set_learning_rate(self.optimizer, learning_rate(self.config.train, number))
        loss = sum(self.model(*batch).values())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - started)
        self.average.update(self.model, number + 1)
        return float(loss.detach())

    def metrics(self, dataset):
        results = []
        for images, records in evaluation_batches(dataset, self.config.data):
            with torch.inference_mode():
                [found] = self.average.model.predict(images)
            results += coco.results(found, records[0].id, dataset.category_ids, records[0].file_name)
        return coco.evaluate(dataset.coco(), results, masks=True)


class Renamed:
    """named_parameters() with the backbone's called so, so that both get the same groups in the optimiser."""

    def __init__(self, model):
        self.model = model

    def named_parameters(self):
        for name, parameter in self.model.named_parameters():
            yield name.replace("model.backbone.body.", "backbone."), parameter


def load_backbone_of(model, config):
    holder = nn.Module()
    holder.backbone = model.backbone
    load_backbone(holder, config)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="nuclei")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    train_split, val_split = sample_split("train"), sample_split("val")
    train = Dataset.read(train_split.images, train_split.annotations)
    val = Dataset.read(val_split.images, val_split.annotations, classes=train.classes)
    rows = []
    for seed in arguments.seeds:
        config = read_config(arguments.recipe, {"train.steps": arguments.steps, "train.seed": seed})
        torch.manual_seed(seed)
        ours = Contestant("mrcnn", build_model(config.model, len(train.classes)), config, lambda *b: b)
        torch.manual_seed(seed)
        theirs = Contestant("torchvision", Torchvision(config, len(train.classes)), config, their_batch)
        both = [ours, theirs]
        batches = training_batches(
            train, config.data, batch_size=config.train.batch_size, seed=seed, steps=arguments.steps
        )
        for number, (images, targets) in enumerate(batches):
            # Who goes first changes with every step: neither always finds the caches warm.
            losses = {c.name: c.step(number, images, targets) for c in (both if number % 2 else both[::-1])}
            if (number + 1) % 50 == 0:
                print(
                    f"seed {seed} step {number + 1}: " + ", ".join(f"{k} {v:.3f}" for k, v in losses.items()),
                    flush=True,
                )
        for contestant in both:
            metrics = contestant.metrics(val)
            rows.append(
                {
                    "name": contestant.name,
                    "seed": seed,
                    "steps": arguments.steps,
                    **{key: metrics[key] for key in ("mask_ap", "mask_ap50", "box_ap", "box_ap50")},
                    "step_seconds": statistics.median(contestant.seconds[5:]),
                }
            )
            print(rows[-1], flush=True)
    summary = {}
    for name in ("mrcnn", "torchvision"):
        mine = [row for row in rows if row["name"] == name]
        summary[name] = {
            key: statistics.mean(row[key] for row in mine)
            for key in ("mask_ap", "mask_ap50", "box_ap", "box_ap50", "step_seconds")
        }
    summary["step_ratio"] = summary["torchvision"]["step_seconds"] / summary["mrcnn"]["step_seconds"]
    report = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
        "summary": summary,
    }
    print(json.dumps(summary, indent=1))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
