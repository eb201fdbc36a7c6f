"""The second stage: "Fast R-CNN" (Girshick, 2015), with the two fully connected layers of FPN (Lin et al., 2017)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrcnn_cli.config import Config
from mrcnn_cli.models.backbones import Backbone, BackboneConfig
from mrcnn_cli.models.backbones.resnet import ResNet
from mrcnn_cli.models.convolution import ConvNorm, Linear, Norm
from mrcnn_cli.models.fpn import FPN, FPNConfig, LastMap
from mrcnn_cli.models.matching import ROI_STREAM, generator, sample
from mrcnn_cli.models.regions import RoIConfig, cut_regions
from mrcnn_cli.ops import batched_nms, decode, encode, match_anchors
from mrcnn_cli.ops.box_coding import clip_boxes
from mrcnn_cli.ops.match_anchors import BACKGROUND
from mrcnn_cli.structures import Denominator, Size, Targets, at_least_one


class BoxHeadConfig(Config):
    roi: RoIConfig = RoIConfig()
    stage: bool = False  # the backbone's next stage works on each region first (the C4 form)
    num_conv: int = Field(0, ge=0)
    conv_channels: int = Field(256, ge=1)
    norm: Norm = "none"  # of the convolutions
    num_fc: int = Field(2, ge=0)  # 0: the mean of each region is classified
    fc_channels: int = Field(1024, ge=1)
    class_agnostic: bool = False  # one box for all classes
    positive_iou: float = Field(0.5, gt=0, le=1)
    samples_per_image: int = Field(512, ge=1)
    positive_fraction: float = Field(0.25, gt=0, le=1)
    smooth_l1_beta: float = Field(1.0, ge=0)  # 1/9 in torchvision, 0 in Detectron2
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    score_threshold: float = Field(0.05, ge=0, lt=1)
    nms_threshold: float = Field(0.5, gt=0, le=1)
    detections_per_image: int = Field(100, ge=1)
    min_size: float = Field(0.0, ge=0)  # pixels; sides of a detection are longer than that; 0.01 in torchvision


@dataclass(frozen=True)
class Sampled:
    """The proposals of one image that train the heads: positives first.

    Attributes:
        boxes: [S, 4].
        labels: [S], background is K.
        objects: [P] index of each positive's object.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor

    @property
    def positive_boxes(self) -> Tensor:
        return self.boxes[: len(self.objects)]

    @property
    def positive_labels(self) -> Tensor:
        return self.labels[: len(self.objects)]


@dataclass(frozen=True)
class Found:
    """Boxes found in one image, best first, in pixels of the network's input: [D, 4], [D], [D]."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def check_stage(config: BoxHeadConfig, backbone: BackboneConfig, fpn: FPNConfig) -> None:
    """ValueError if the head shall go on with a stage that the backbone does not leave to it."""
    if config.stage and (fpn.pyramid or getattr(backbone, "stages", 4) != 3):
        raise ValueError("box_head.stage (the C4 form) needs backbone.stages = 3 of a ResNet and fpn.pyramid = false")


class BoxHead(nn.Module):
    """Class and box of each proposal.

    Args:
        config: layers, thresholds and numbers.
        channels: of the regions, after the stage where there is one.
        strides: of the feature maps that regions are cut from, finest first.
        num_classes: K, without background.
        stage: the backbone's next stage if config.stage; it halves the regions' resolution.
    """

    def __init__(
        self,
        config: BoxHeadConfig,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        stage: nn.Module | None = None,
    ):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.strides = tuple(strides)
        self.channels, self.stage = channels, stage
        self.convs, inputs = nn.Sequential(), channels
        for _ in range(config.num_conv):
            self.convs.append(ConvNorm(inputs, config.conv_channels, 3, norm=config.norm, activation="relu"))
            inputs = config.conv_channels
        if config.num_fc:
            inputs *= (config.roi.resolution // (2 if stage else 1)) ** 2
        self.fcs = nn.ModuleList()
        for _ in range(config.num_fc):
            self.fcs.append(Linear(inputs, config.fc_channels))
            inputs = config.fc_channels
        self.logits = nn.Linear(inputs, num_classes + 1)
        self.deltas = nn.Linear(inputs, 4 * (1 if config.class_agnostic else num_classes))
        for layer, deviation in ((self.logits, 0.01), (self.deltas, 0.001)):  # "Fast R-CNN", section 4
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [R, K + 1] and deltas [R, K or 1, 4] of all boxes of the batch, image after image.

        Args:
            features: maps [N, C, H_l, W_l] at the strides given.
            boxes: per image [R_i, 4].
        """
        return self.of_regions(cut_regions(features, boxes, self.strides, self.config.roi))

    def of_regions(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """The same of regions [R, C, h, w] that are cut out already."""
        if self.stage is not None:
            regions = self.stage(regions)
        hidden = self.convs(regions)
        # Row-major over (channel, y, x), as every other implementation flattens, so that weights can be exchanged.
        hidden = hidden.flatten(1) if self.fcs else hidden.mean((2, 3))
        for fc in self.fcs:
            hidden = functional.relu(fc(hidden), inplace=True)
        return self.logits(hidden).float(), self.deltas(hidden).float().unflatten(1, (-1, 4))

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Targets]) -> list[Sampled]:
        """Proposals and the objects' own boxes, matched and sampled, per image."""
        config, samples = self.config, []
        for boxes, target in zip(proposals, targets, strict=True):
            boxes = torch.cat([boxes, target.boxes])
            matched = self._match(boxes, target)
            random = generator(target, ROI_STREAM)
            positives, negatives = sample(matched, config.samples_per_image, config.positive_fraction, random)
            samples.append(self._sampled(boxes, matched, positives, negatives, target))
        return samples

    @torch.no_grad()
    def relabel(self, proposals: Sequence[Tensor], targets: Sequence[Targets]) -> list[Sampled]:
        """All proposals, matched by this head's threshold, per image; those that lie in crowds are left out."""
        samples = []
        for boxes, target in zip(proposals, targets, strict=True):
            matched = self._match(boxes, target)
            positives, negatives = (matched >= 0).nonzero()[:, 0], (matched == BACKGROUND).nonzero()[:, 0]
            samples.append(self._sampled(boxes, matched, positives, negatives, target))
        return samples

    def _match(self, boxes: Tensor, target: Targets) -> Tensor:
        iou = self.config.positive_iou
        return match_anchors(boxes, target.boxes, iou, iou, ignore=target.crowds)

    def _sampled(
        self, boxes: Tensor, matched: Tensor, positives: Tensor, negatives: Tensor, target: Targets
    ) -> Sampled:
        objects = matched[positives]
        labels = torch.cat([target.labels[objects], torch.full_like(negatives, self.num_classes)])
        return Sampled(boxes[torch.cat([positives, negatives])], labels, objects)

    def losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        samples: Sequence[Sampled],
        targets: Sequence[Targets],
        denominator: Denominator = at_least_one,
    ) -> dict[str, Tensor]:
        """`loss_class`: mean cross entropy; `loss_box`: smooth L1 of the positives' deltas over all samples."""
        config = self.config
        labels = torch.cat([s.labels for s in samples])
        positive = (labels < self.num_classes).nonzero()[:, 0]
        slot = torch.zeros_like(labels[positive]) if config.class_agnostic else labels[positive]
        wanted = encode(
            torch.cat([target.boxes[s.objects] for s, target in zip(samples, targets, strict=True)]),
            torch.cat([s.positive_boxes for s in samples]),
            config.box_weights,
        )
        count = denominator(len(labels))
        box = functional.smooth_l1_loss(deltas[positive, slot], wanted, reduction="sum", beta=config.smooth_l1_beta)
        return {
            "loss_class": functional.cross_entropy(logits, labels, reduction="sum") / count,
            "loss_box": box / count,
        }

    @torch.no_grad()
    def found(self, logits: Tensor, deltas: Tensor, proposals: Sequence[Tensor], sizes: Sequence[Size]) -> list[Found]:
        """The detections of each image: decoded, clipped, above the threshold, after NMS per class."""
        scores = functional.softmax(logits, -1)[:, :-1]
        boxes = decode(deltas, torch.cat(list(proposals))[:, None], self.config.box_weights)
        return self.best(scores, boxes, [len(p) for p in proposals], sizes)

    def best(self, scores: Tensor, boxes: Tensor, counts: Sequence[int], sizes: Sequence[Size]) -> list[Found]:
        """The detections of each image: clipped, above the threshold, after NMS per class.

        Args:
            scores: [R, K] probabilities, image after image.
            boxes: [R, K or 1, 4].
            counts: how many of the R belong to each image.
            sizes: (height, width) of each image.
        """
        config, result = self.config, []
        for scores_i, boxes_i, size in zip(scores.split(list(counts)), boxes.split(list(counts)), sizes, strict=True):
            clipped = clip_boxes(boxes_i, size).expand(-1, self.num_classes, 4)
            sides = clipped[..., 2:] - clipped[..., :2]
            usable = (scores_i > config.score_threshold) & (sides > config.min_size).all(-1)
            row, label = usable.nonzero().unbind(1)
            chosen, chosen_scores = clipped[row, label], scores_i[row, label]
            keep = batched_nms(chosen, chosen_scores, label, config.nms_threshold)[: config.detections_per_image]
            result.append(Found(chosen[keep], chosen_scores[keep], label[keep]))
        return result


def build_box_head(config: BoxHeadConfig, backbone: Backbone, neck: FPN | LastMap, num_classes: int) -> BoxHead:
    """The head on a neck's maps; in the C4 form it takes over the backbone's next stage."""
    if not config.stage:
        return BoxHead(config, neck.channels, neck.roi_strides, num_classes)
    assert isinstance(backbone, ResNet)  # see check_stage
    stage, channels = backbone.next_stage()
    return BoxHead(config, channels, neck.roi_strides, num_classes, stage)
