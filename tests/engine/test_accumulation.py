"""Losses and gradients of a batch that is done in parts are those of the whole batch, for every model."""

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from mrcnn_cli.engine.accumulation import losses_in_parts
from mrcnn_cli.engine.distributed import ALONE
from mrcnn_cli.models import MODELS, ModelConfig, build_model
from mrcnn_cli.structures import ImageBatch, Masks, Targets

FPN = {"channels": 16, "norm": "group_norm"}
RPN = {"pre_nms_top_n_train": 200, "post_nms_top_n_train": 60}
BOX_HEAD = {"fc_channels": 32, "samples_per_image": 24}
MASK_HEAD = {"conv_channels": 16, "num_conv": 1}
PARTS = {
    "cascade_rcnn": {"rpn": RPN, "box_head": {**BOX_HEAD, "class_agnostic": True}, "mask_head": MASK_HEAD},
    "fast_rcnn": {"box_head": BOX_HEAD},
    "faster_rcnn": {"rpn": RPN, "box_head": BOX_HEAD},
    "mask_rcnn": {"rpn": RPN, "box_head": BOX_HEAD, "mask_head": MASK_HEAD},
    "keypoint_rcnn": {
        "rpn": RPN,
        "box_head": BOX_HEAD,
        "mask_head": MASK_HEAD,
        "keypoint_head": {"conv_channels": 16, "num_conv": 1},
        "num_keypoints": 3,
    },
    "panoptic_fpn": {
        "rpn": RPN,
        "box_head": BOX_HEAD,
        "mask_head": MASK_HEAD,
        "semantic_head": {"conv_channels": 16},
        "num_stuff": 2,
    },
    "proposal_network": {"rpn": RPN},
    "retinanet": {"retina_head": {"num_conv": 1}},
    "ssd": {"backbone": {"name": "vgg16", "round_up": True}},  # VGG-16 as it is: it has no smaller form
}
VARIANTS = [pytest.param(name, {}, marks=pytest.mark.slow if name == "ssd" else ()) for name in PARTS] + [
    ("proposal_network", {"rpn": {**RPN, "loss_denominator": "samples_per_image"}}),
    ("retinanet", {"retina_head": {"num_conv": 1, "normalizer": "image"}}),
]


def model_of(name, more):
    """In double: in single a value beside a ReLU's corner falls to either side, by the batch's size and the machine."""
    torch.manual_seed(0)
    backbone = {"name": "resnet18", "width": 32, "norm": "group_norm"}
    table = {"name": name, "backbone": backbone, **({} if name == "ssd" else {"fpn": FPN}), **PARTS[name], **more}
    return build_model(TypeAdapter(ModelConfig).validate_python(table), 2).train().double()


def batch(side=None):
    """Five images of different sizes, or of one, with different numbers of objects, one without any."""
    random = torch.Generator().manual_seed(3)
    images, targets = [], []
    for number, (size, count) in enumerate([((64, 96), 3), ((96, 64), 0), ((80, 80), 1), ((64, 64), 5), ((90, 70), 2)]):
        height, width = size = size if side is None else (side, side)
        images.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=random))
        corners = torch.rand(count, 2, generator=random) * torch.tensor([width - 40.0, height - 40.0])
        boxes = torch.cat([corners, corners + 15 + 25 * torch.rand(count, 2, generator=random)], 1)
        outlines = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()]
        centres = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 + torch.tensor([[-4.0, 0.0], [0.0, 4.0], [300.0, 0.0]])
        proposals = torch.rand(40, 2, generator=random) * torch.tensor([width - 30.0, height - 30.0])
        targets.append(
            Targets(
                boxes,
                torch.arange(count) % 2,
                torch.zeros(0, 4),
                Masks(outlines, torch.eye(2, 3, dtype=torch.float64)),
                torch.randint(0, 3, size, dtype=torch.uint8, generator=random),
                seed=number,
                keypoints=torch.cat([centres, torch.ones(count, 3, 1)], 2),
                proposals=torch.cat([proposals, proposals + 25], 1),
            )
        )
    return ImageBatch.collate(images, divisor=32 if side is None else 0), targets


def test_every_model_is_among_those_that_are_tested():
    assert set(PARTS) == set(MODELS)


@pytest.mark.parametrize(("name", "more"), VARIANTS)
def test_losses_and_gradients_in_parts_are_those_of_the_whole_batch(name, more):
    images, targets = batch(300 if name == "ssd" else None)
    whole = model_of(name, more)
    expected = whole(images, targets)
    sum(expected.values()).backward()

    model = model_of(name, more)
    found = dict.fromkeys(expected, 0.0)
    for losses in losses_in_parts(ALONE, model, model, images, targets, 2):
        sum(losses.values()).backward()
        found = {key: found[key] + float(losses[key].detach()) for key in found}
    assert found == pytest.approx({key: float(loss.detach()) for key, loss in expected.items()}, rel=1e-6, abs=1e-8)
    gradients = {key: weight.grad for key, weight in whole.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[key], rtol=1e-4, atol=1e-7 * largest, msg=key)
    for (key, one), other in zip(whole.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(other, one, msg=key)  # RetinaNet's running average moves once


def test_without_the_counts_of_the_whole_batch_the_losses_would_differ():
    """The check above can fail: equal shares of the batch are no equal shares of what losses are means of."""
    images, targets = batch()
    model = model_of("mask_rcnn", {})
    expected = float(model(images, targets)["loss_box"].detach())
    halves = [model(images.part(part), targets[part.start : part.stop]) for part in (range(2), range(2, 5))]
    assert sum(float(losses["loss_box"].detach()) for losses in halves) / 2 != pytest.approx(expected, rel=1e-3)


def test_running_statistics_move_once_in_a_step_of_parts():
    images, targets = batch()
    fpn = {"fpn": {"channels": 16, "norm": "batch_norm"}}
    model, other = model_of("proposal_network", fpn), model_of("proposal_network", fpn)
    before = dict(model.named_buffers())["fpn.laterals.0.norm.num_batches_tracked"].item()
    for losses in losses_in_parts(ALONE, model, model, images, targets, 2):
        sum(losses.values()).backward()
    other(images.part(range(2, 5)), targets[2:])
    found, expected = dict(model.named_buffers()), dict(other.named_buffers())
    assert found["fpn.laterals.0.norm.num_batches_tracked"] == before + 1
    for key in found:
        torch.testing.assert_close(found[key], expected[key])


def test_a_part_of_a_batch_keeps_its_padding_and_its_proposals():
    images, targets = batch()
    images = replace(images, proposals=[target.proposals for target in targets])
    part = images.part(range(1, 3))
    assert len(part) == 2
    assert torch.equal(part.pixels, images.pixels[1:3])
    assert part.sizes == images.sizes[1:3]
    assert part.proposals is not None
    assert torch.equal(part.proposals[1], targets[2].proposals)
    larger = part.padded(128, 100)
    assert larger.pixels.shape[-2:] == (128, 100)
    assert larger.pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(larger.pixels[:, :, : images.pixels.shape[-2], : images.pixels.shape[-1]], part.pixels)
    assert not larger.pixels[:, :, images.pixels.shape[-2] :].any()
    assert part.padded(10, 10) is part
