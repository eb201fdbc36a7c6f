"""The cascade beside what it is made of."""

import pytest
import torch

from mrcnn_cli.models import build_model
from mrcnn_cli.models.box_head import BoxHead, BoxHeadConfig
from mrcnn_cli.models.cascade_rcnn import CascadeRCNNConfig, refined
from mrcnn_cli.models.faster_rcnn import FasterRCNNConfig
from mrcnn_cli.ops import box_iou
from mrcnn_cli.structures import Targets
from tests.models.test_models import NOTHING, SMALL, SOMETHING, images

AGNOSTIC = {**SMALL, "box_head": {"fc_channels": 32, "class_agnostic": True}}


def cascade(**changes):
    torch.manual_seed(0)
    table = {"name": "cascade_rcnn", **AGNOSTIC, "mask_head": {"conv_channels": 16}, **changes}
    return build_model(CascadeRCNNConfig.model_validate(table), 2)


@pytest.mark.parametrize("batch", [[SOMETHING, NOTHING], [NOTHING, NOTHING]])
def test_images_without_objects_are_trained_on_and_every_parameter_takes_part(batch):
    model = cascade().train()
    losses = model(images(), batch)
    terms = [f"loss_{kind}_stage{stage}" for stage in range(3) for kind in ("class", "box")]
    assert sorted(losses) == sorted([*terms, "loss_mask", "loss_rpn_box", "loss_rpn_objectness"])
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    if not any(len(targets) for targets in batch):
        assert all(losses[f"loss_box_stage{stage}"] == 0 for stage in range(3))


def test_without_a_mask_head_there_are_no_masks():
    model = cascade(mask_head=None)
    assert "loss_mask" not in model.train()(images(), [SOMETHING, SOMETHING])
    with torch.inference_mode():
        assert [found.masks for found in model.eval().predict(images())] == [None, None]


def test_a_cascade_of_one_stage_is_faster_rcnn():
    """With one box for all classes; the same losses, gradients and detections."""
    box_head = {**AGNOSTIC["box_head"], "score_threshold": 0.0}
    first = [{"positive_iou": 0.5, "box_weights": [10, 10, 5, 5]}]
    one = cascade(mask_head=None, stages=first, box_head=box_head)
    table = {"name": "faster_rcnn", **AGNOSTIC, "box_head": box_head}
    plain = build_model(FasterRCNNConfig.model_validate(table), 2)
    plain.load_state_dict({name.replace("box_heads.0", "box_head"): t for name, t in one.state_dict().items()})
    losses, expected = (model.train()(images(), [SOMETHING, SOMETHING]) for model in (one, plain))
    for name, loss in expected.items():
        assert losses[f"{name}_stage0" if name in ("loss_class", "loss_box") else name] == loss
    for total in (losses, expected):
        sum(total.values()).backward()
    gradients = {name: p.grad for name, p in one.named_parameters()}
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name.replace("box_head.", "box_heads.0.")], parameter.grad)
    with torch.inference_mode():
        for ours, theirs in zip(one.eval().predict(images()), plain.eval().predict(images()), strict=True):
            assert len(ours) > 10
            torch.testing.assert_close(ours.boxes, theirs.boxes)
            torch.testing.assert_close(ours.scores, theirs.scores)
            assert torch.equal(ours.labels, theirs.labels)


def test_scores_are_the_mean_of_the_stages_and_boxes_are_the_last_ones():
    model = cascade(mask_head=None, box_head={**AGNOSTIC["box_head"], "score_threshold": 0.0, "nms_threshold": 1.0})
    with torch.no_grad():
        for head in model.box_heads:  # so that the stages differ by more than a fresh model's
            head.deltas.weight.normal_(std=0.5)
            head.logits.weight.normal_(std=0.5)
    model.eval()
    with torch.inference_mode():
        [found] = model.predict(images(1))
        features = model.fpn(model.backbone(model.preprocess(images(1))))
        [boxes] = model.rpn.proposals(*model.rpn(features), [(64, 96)])
        mean = torch.zeros(len(boxes), 2)
        for head in model.box_heads:
            logits, deltas = head(features, [boxes])
            mean += logits.softmax(1)[:, :2] / 3
            [boxes] = refined(head, deltas, [boxes], [(64, 96)])
    assert len(found) == 100
    for box, score, label in zip(found.boxes[:20], found.scores[:20], found.labels[:20], strict=True):
        place = (boxes - box).abs().amax(1).argmin()
        torch.testing.assert_close(boxes[place], box)
        torch.testing.assert_close(mean[place, label], score)


def test_later_stages_take_all_boxes_and_ask_for_more_overlap():
    truth = Targets(
        torch.tensor([[10.0, 10.0, 50.0, 50.0]]), torch.tensor([1]), torch.tensor([[60.0, 0.0, 90.0, 60.0]])
    )
    boxes = torch.tensor(
        [
            [0.0, 0.0, 5.0, 5.0],
            [10.0, 10.0, 50.0, 38.0],  # IoU .7
            [10.0, 10.0, 50.0, 32.0],  # IoU .55
            [62.0, 5.0, 80.0, 50.0],  # in the crowd
            [10.0, 10.0, 50.0, 50.0],
        ]
    )
    assert box_iou(boxes, truth.boxes)[[1, 2], 0].tolist() == pytest.approx([0.7, 0.55])
    expected = {0.5: [1, 2, 4], 0.6: [1, 4], 0.75: [4]}
    for iou, positives in expected.items():
        head = BoxHead(BoxHeadConfig(positive_iou=iou, fc_channels=8), 8, (4,), 3)
        [found] = head.relabel([boxes], [truth])
        negatives = [i for i in range(5) if i not in positives and i != 3]
        assert torch.equal(found.boxes, boxes[positives + negatives])
        assert found.labels.tolist() == [1] * len(positives) + [3] * len(negatives)
        assert found.objects.tolist() == [0] * len(positives)


def test_boxes_that_are_refined_to_nothing_leave_the_training_and_no_loss_is_lost():
    model = cascade(mask_head=None).train()
    with torch.no_grad():
        model.box_heads[0].deltas.bias.copy_(torch.tensor([1000.0, 0, 0, 0]))  # far out of the image
    losses = model(images(), [SOMETHING, SOMETHING])
    assert losses["loss_class_stage1"] == 0
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_head": {"class_agnostic": False}}, "box_head.class_agnostic must be true"),
        ({"box_head": {"class_agnostic": True, "positive_iou": 0.6}}, "box_head.positive_iou differs from stage"),
        ({"box_head": {"class_agnostic": True, "stage": True}}, r"box_head.stage \(the C4 form\) has no cascade"),
        ({"stages": []}, "at least 1 item"),
    ],
)
def test_a_recipe_that_is_no_cascade_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        cascade(**changes)
