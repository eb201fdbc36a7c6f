"""RetinaNet against Detectron2's recorded numbers, and what it is beside them."""

import pytest
import torch

from mrcnn_cli.engine.checkpoint import load_weights
from mrcnn_cli.models import build_model
from mrcnn_cli.models.retinanet import RetinaNetConfig
from mrcnn_cli.structures import ImageBatch, Targets
from tests.models.detectron2_oracle import FEATURES, IMAGES, LOSS, Reference, extras, target, without_objects
from tests.models.test_against_detectron2 import (
    LOSSES,
    both_images,
    check_losses_and_gradients,
    compare,
)

NAME, RECIPE = "retinanet_R_50_FPN_3x", "retinanet_r50_fpn_3x"
PIXELS = 0.1  # of detections, before they are enlarged to the picture


@pytest.fixture(scope="module")
def case():
    reference = Reference(NAME, RECIPE)
    return reference, reference.model()


@pytest.mark.parametrize("index", IMAGES)
def test_pixels_features_and_what_the_head_says_are_detectron2s(case, index):
    reference, model = case
    with torch.inference_mode():
        pixels = model.preprocess(reference.images(index))
        reference.check(f"img{index}/input", pixels, 1e-5)
        maps = model.backbone(pixels)
        features = model.fpn(maps)
        logits, deltas = model.retina_head(features)
    for level, found in enumerate(maps[1:], start=3):
        reference.check(f"img{index}/feat/res{level}", found, FEATURES)
    for level, (feature, logit, delta) in enumerate(zip(features, logits, deltas, strict=True), start=3):
        reference.check(f"img{index}/feat/p{level}", feature, FEATURES)
        reference.check(f"img{index}/head/logits/p{level}", logit, FEATURES)
        reference.check(f"img{index}/head/deltas/p{level}", delta, FEATURES)


@pytest.mark.parametrize("index", IMAGES)
def test_detections_are_detectron2s(case, index):
    reference, model = case
    images = reference.images(index)
    with torch.inference_mode():
        features = model.fpn(model.backbone(model.preprocess(images)))
        [found] = model.retina_head.found(*model.retina_head(features), images.sizes)
        [scaled] = model.predict(images)
    compare(found, reference.record, f"img{index}/det", PIXELS, 1e-3)  # boxes still reach out of the image
    factor = max(scaled.size[0] / images.sizes[0][0], 1.0)
    compare(scaled, reference.record, f"img{index}/post", PIXELS * factor, 1e-3)


def test_a_batch_of_two_images_is_detectron2s(case):
    reference, model = case
    images = both_images(reference)
    with torch.inference_mode():
        for index, found in enumerate(model.predict(images)):
            factor = max(found.size[0] / images.sizes[index][0], 1.0)
            compare(found, extras(), f"{NAME}/batch2/post{index}", PIXELS * factor, 1e-3)


def test_losses_gradients_and_the_running_average_are_detectron2s(case):
    reference, model = case
    model.retina_head.loss_normalizer.fill_(model.retina_head.START)
    check_losses_and_gradients(reference, model)
    assert model.retina_head.loss_normalizer.item() == pytest.approx(reference.record["train/loss/normalizer"])
    with torch.no_grad():
        model.train()(reference.images(0), [target()])
    model.eval()
    steps = extras()[f"{NAME}/ema_normalizer_steps"]
    assert model.retina_head.loss_normalizer.item() == pytest.approx(steps[1])


@pytest.mark.parametrize(
    ("key", "targets"),
    [
        ("train_empty_gt", [without_objects(target())]),
        ("train_batch2_second_empty", [target(), without_objects(target())]),
    ],
)
def test_losses_without_objects_are_detectron2s(case, key, targets):
    reference, model = case
    model.retina_head.loss_normalizer.fill_(model.retina_head.START)
    images = both_images(reference) if len(targets) == 2 else reference.images(0)
    try:
        with torch.no_grad():
            losses = model.train()(images, targets)
    finally:
        model.eval()
    record = extras()
    for name, value in zip(*(record[f"{NAME}/{key}/loss_{part}"] for part in ("names", "values")), strict=True):
        assert abs(losses[LOSSES[name]].item() - value) <= LOSS * abs(value), name


# ---- what no record shows


def small(**head):
    torch.manual_seed(0)
    table = {
        "name": "retinanet",
        "backbone": {"name": "mobilenet_v2"},
        "fpn": {"channels": 64},
        "retina_head": {"num_conv": 1, **head},
    }
    return build_model(RetinaNetConfig.model_validate(table), 2)


def image():
    pixels = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return ImageBatch.collate([pixels])


SOMETHING = Targets(torch.tensor([[10.0, 10, 50, 60]]), torch.tensor([1]), torch.zeros(0, 4))
NOTHING = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))


@pytest.mark.parametrize("truth", [SOMETHING, NOTHING])
@pytest.mark.parametrize("head", [{}, {"norm": "group_norm", "normalizer": "image", "box_loss": "giou"}])
def test_losses_are_finite_and_every_parameter_takes_part(head, truth):
    model = small(**head).train()
    losses = model(image(), [truth])
    assert all(torch.isfinite(loss) and loss >= 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_before_training_every_class_scores_the_prior():
    with torch.inference_mode():
        logits, _ = small().eval().retina_head([torch.zeros(1, 64, 4, 4)] * 5)
    assert logits[0].sigmoid().mean().item() == pytest.approx(0.01, rel=1e-4)


def test_the_running_average_is_kept_with_the_weights_and_not_asked_of_foreign_ones():
    model = small().train()
    model(image(), [SOMETHING])
    state = model.state_dict()
    assert 90 < state["retina_head.loss_normalizer"].item() < 100
    fresh = small()
    load_weights(fresh, state, "ours")
    assert torch.equal(fresh.retina_head.loss_normalizer, model.retina_head.loss_normalizer)
    fresh = small()
    load_weights(fresh, {k: v for k, v in state.items() if k != "retina_head.loss_normalizer"}, "theirs")
    assert fresh.retina_head.loss_normalizer.item() == fresh.retina_head.START


def test_the_average_moves_in_training_only():
    model = small().eval()
    model(image(), [SOMETHING])
    assert model.retina_head.loss_normalizer.item() == model.retina_head.START


def test_what_each_score_threshold_lets_through_is_found():
    model = small(score_threshold=0.0, detections_per_image=10_000, nms_threshold=1.0).eval()
    with torch.inference_mode():
        [everything] = model.predict(image())
    anchors = 9 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1)
    assert len(everything) <= 1000 + 2 * (anchors - 9 * 8 * 12)  # the finest level has more pairs than count
    assert len(everything) > 1000
    assert everything.scores.min() > 0
