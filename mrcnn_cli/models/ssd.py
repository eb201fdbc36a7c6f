"""SSD300: "SSD: Single Shot MultiBox Detector" (Liu et al., 2015), in the form of torchvision's ssd300_vgg16."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.backbones.vgg import VGG, VGGConfig
from mrcnn_cli.models.box_head import Found
from mrcnn_cli.models.preprocess import PixelsConfig, Preprocess
from mrcnn_cli.models.results import detections
from mrcnn_cli.models.rpn import AnchorsConfig, by_anchor
from mrcnn_cli.ops import batched_nms, box_iou, clip_boxes, decode, encode, match_anchors
from mrcnn_cli.structures import Denominator, Detections, ImageBatch, Size, Targets, at_least_one

# Layers behind VGG's: (channels of the 1x1 and of the 3x3 convolution, stride and padding of the latter).
EXTRAS = ((256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0))
CHANNELS = (512, 1024, *(outputs for _, outputs, _, _ in EXTRAS))


class DefaultBoxesConfig(Config):
    """The boxes that stand at the cells of each map (section 2.2); the finest map comes first."""

    # Of the input's side, per map; a second square has the geometric mean of its map's scale and the next.
    scales: tuple[float, ...] = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
    # Width / height of more boxes; each one has its twin on end.
    ratios: tuple[tuple[float, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    strides: tuple[int, ...] = (8, 16, 32, 64, 100, 300)  # pixels from cell to cell

    @model_validator(mode="after")
    def _one_per_map(self) -> "DefaultBoxesConfig":
        maps = len(CHANNELS)
        if len(self.ratios) != maps or len(self.strides) != maps or len(self.scales) != maps + 1:
            raise ValueError(f"ratios and strides must have {maps} entries, one per map, scales {maps + 1}")
        if min(*self.scales, *self.strides, *(ratio for level in self.ratios for ratio in level)) <= 0:
            raise ValueError("scales, ratios and strides must be positive")
        return self

    def per_cell(self) -> list[int]:
        """Boxes at each cell, by map."""
        return [2 + 2 * len(ratios) for ratios in self.ratios]


class SSDHeadConfig(Config):
    positive_iou: float = Field(0.5, gt=0, le=1)
    negatives_per_positive: float = Field(3.0, ge=0)  # of each image, those of the largest losses
    smooth_l1_beta: float = Field(1.0, ge=0)
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    score_threshold: float = Field(0.01, ge=0, lt=1)
    pre_nms_top_n: int = Field(400, ge=1)  # of each class
    nms_threshold: float = Field(0.45, gt=0, le=1)
    detections_per_image: int = Field(200, ge=1)


class SSDConfig(Config):
    name: Literal["ssd"]
    num_classes: int | None = Field(None, ge=1)  # None: as many as the data has
    input_size: Literal[300] = 300  # both sides of every picture that it sees
    pixels: PixelsConfig = PixelsConfig()
    backbone: VGGConfig
    default_boxes: DefaultBoxesConfig = DefaultBoxesConfig()
    ssd_head: SSDHeadConfig = SSDHeadConfig()

    @model_validator(mode="after")
    def _maps_fit(self) -> "SSDConfig":
        if not self.backbone.round_up:
            raise ValueError("backbone.round_up must be true: SSD's second to last maps are made for 38 x 38 cells")
        return self

    @property
    def anchors(self) -> AnchorsConfig:
        """The sizes of the default boxes per map, for those who ask how large objects may be."""
        return AnchorsConfig(sizes=tuple((scale * self.input_size,) for scale in self.default_boxes.scales[:-1]))


class SSDMaps(nn.Module):
    """VGG's last two maps, the first one rescaled, and four more: [N, CHANNELS[i], ..] at 38, 19, 10, 5, 3 and 1 cells.

    VGG's fully connected layers stand here as convolutions, the first one dilated (section 3).
    """

    def __init__(self) -> None:
        super().__init__()
        # conv4_3 is of another scale than the rest: each cell gets this norm ("ParseNet", Liu et al., 2015).
        self.scale = nn.Parameter(torch.full((CHANNELS[0],), 20.0))
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=6, dilation=6)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.extras, inputs = nn.ModuleList(), 1024
        for middle, outputs, stride, padding in EXTRAS:
            self.extras.append(
                nn.Sequential(
                    nn.Conv2d(inputs, middle, 1),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(middle, outputs, 3, stride, padding),
                    nn.ReLU(inplace=True),
                )
            )
            inputs = outputs
        _initialize(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps conv4_3 [N, 512, 38, 38] and conv5_3 [N, 512, 19, 19] of VGG -> six maps, finest first."""
        fine, coarse = features
        maps = [functional.normalize(fine) * self.scale[:, None, None]]
        x = functional.relu(self.fc6(functional.max_pool2d(coarse, 3, 1, 1)), inplace=True)
        maps.append(functional.relu(self.fc7(x), inplace=True))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return maps


class SSDHead(nn.Module):
    """Class and box of every default box, by convolutions of each map's own; from them losses and detections.

    Args:
        config: thresholds and numbers.
        boxes: the default boxes.
        input_size: pixels of the picture's sides.
        num_classes: K, without background, which is the last of the K + 1 classes.
    """

    def __init__(self, config: SSDHeadConfig, boxes: DefaultBoxesConfig, input_size: int, num_classes: int):
        super().__init__()
        self.config, self.boxes_config = config, boxes
        self.input_size, self.num_classes = input_size, num_classes
        pairs = list(zip(CHANNELS, boxes.per_cell(), strict=True))
        self.logits = nn.ModuleList(nn.Conv2d(c, count * (num_classes + 1), 3, padding=1) for c, count in pairs)
        self.deltas = nn.ModuleList(nn.Conv2d(c, count * 4, 3, padding=1) for c, count in pairs)
        _initialize(self)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [N, A, K + 1] and deltas [N, A, 4] of all default boxes, in the order map, y, x, box."""
        logits = [conv(map) for conv, map in zip(self.logits, maps, strict=True)]
        deltas = [conv(map) for conv, map in zip(self.deltas, maps, strict=True)]
        return by_anchor(logits, self.num_classes + 1), by_anchor(deltas, 4)

    def default_boxes(self, maps: Sequence[Tensor]) -> Tensor:
        """[A, 4] in pixels, not cut to the picture, but none is larger than it."""
        config, device, boxes = self.boxes_config, maps[0].device, []
        for level, (map, stride) in enumerate(zip(maps, config.strides, strict=True)):
            scale = config.scales[level]
            mean = math.sqrt(scale * config.scales[level + 1])
            sides = [(scale, scale), (mean, mean)]
            for ratio in config.ratios[level]:
                wide, high = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
                sides += [(wide, high), (high, wide)]
            half = torch.tensor(sides, device=device).clamp(max=1) * (self.input_size / 2)
            y, x = ((torch.arange(extent, device=device) + 0.5) * stride for extent in map.shape[-2:])
            centre = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).reshape(-1, 1, 2)
            boxes.append(torch.cat([centre - half, centre + half], -1).reshape(-1, 4))
        return torch.cat(boxes)

    def losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        boxes: Tensor,
        targets: Sequence[Targets],
        denominator: Denominator = at_least_one,
    ) -> dict[str, Tensor]:
        """`loss_class`: cross entropy of the positives and of the hardest negatives; `loss_box`: smooth L1 of the
        positives' deltas; both over the number of positives in the batch."""
        config = self.config
        class_sums, box_sums, positives = [], [], 0
        for target, image_logits, image_deltas in zip(targets, logits.unbind(), deltas.unbind(), strict=True):
            matched = self.match(boxes, target)
            positive = (matched >= 0).nonzero()[:, 0]
            objects = matched[positive]
            labels = torch.full_like(matched, self.num_classes)
            labels[positive] = target.labels[objects]
            losses = functional.cross_entropy(image_logits, labels, reduction="none")
            negative = (matched == -1).nonzero()[:, 0]
            count = min(int(config.negatives_per_positive * len(positive)), len(negative))
            hardest = losses.detach()[negative].sort(descending=True, stable=True).indices[:count]
            class_sums.append(losses[positive].sum() + losses[negative[hardest]].sum())
            wanted = encode(target.boxes[objects], boxes[positive], config.box_weights)
            box_sums.append(
                functional.smooth_l1_loss(image_deltas[positive], wanted, reduction="sum", beta=config.smooth_l1_beta)
            )
            positives += len(positive)
        divisor = denominator(positives)
        return {
            "loss_class": torch.stack(class_sums).sum() / divisor,
            "loss_box": torch.stack(box_sums).sum() / divisor,
        }

    def match(self, boxes: Tensor, target: Targets) -> Tensor:
        """As `ops.match_anchors`, and the best default box of each object is its own, whatever their overlap."""
        threshold = self.config.positive_iou
        matched = match_anchors(boxes, target.boxes, threshold, threshold, ignore=target.crowds)
        if len(target):
            best = box_iou(target.boxes, boxes).max(1).indices
            # Where two objects share their best one the later gets it, as in torchvision.
            order = torch.arange(len(target), device=boxes.device)
            matched.scatter_reduce_(0, best, order, "amax", include_self=False)
        return matched

    @torch.no_grad()
    def found(self, logits: Tensor, deltas: Tensor, boxes: Tensor, sizes: Sequence[Size]) -> list[Found]:
        """The detections of each image: the best of each class above the threshold, clipped, after NMS per class."""
        config, result = self.config, []
        all_scores = functional.softmax(logits, -1)[..., :-1].transpose(1, 2)
        all_boxes = decode(deltas, boxes, config.box_weights)
        for scores, image_boxes, size in zip(all_scores, all_boxes, sizes, strict=True):
            best = scores.topk(min(config.pre_nms_top_n, scores.shape[1]), 1)
            labels, place = (best.values > config.score_threshold).nonzero().unbind(1)
            kept = clip_boxes(image_boxes, size)[best.indices[labels, place]]
            confidences = best.values[labels, place]
            keep = batched_nms(kept, confidences, labels, config.nms_threshold)[: config.detections_per_image]
            result.append(Found(kept[keep], confidences[keep], labels[keep]))
        return result


class SSD(nn.Module):
    """Pixels -> backbone -> six maps -> class and box of all default boxes, in one stage.

    Args:
        config: the parts' recipes.
        num_classes: K, without background.
    """

    def __init__(self, config: SSDConfig, num_classes: int):
        super().__init__()
        self.preprocess = Preprocess(config.pixels)
        self.backbone = VGG(config.backbone, len(config.pixels.mean))
        self.maps = SSDMaps()
        self.ssd_head = SSDHead(config.ssd_head, config.default_boxes, config.input_size, num_classes)

    def forward(
        self, images: ImageBatch, targets: Sequence[Targets], denominator: Denominator = at_least_one
    ) -> dict[str, Tensor]:
        """The losses of a batch, by name; their sum is what training makes small."""
        logits, deltas, boxes = self._said(images)
        return self.ssd_head.losses(logits, deltas, boxes, targets, denominator)

    def predict(self, images: ImageBatch) -> list[Detections]:
        """What is in each image, in pixels of the original pictures."""
        found = self.ssd_head.found(*self._said(images), images.sizes)
        return [
            detections(f, size, original)
            for f, size, original in zip(found, images.sizes, images.original_sizes, strict=True)
        ]

    def _said(self, images: ImageBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, deltas and the default boxes that they are of."""
        height, width = images.pixels.shape[-2:]
        size = self.ssd_head.input_size
        if (height, width) != (size, size):
            raise ValueError(f"SSD sees images of {size} x {size} alone, got {height} x {width}")
        maps = self.maps(self.backbone(self.preprocess(images))[-2:])
        return *self.ssd_head(maps), self.ssd_head.default_boxes(maps)


def _initialize(module: nn.Module) -> None:
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.xavier_uniform_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
