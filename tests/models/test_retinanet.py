"""RetinaNet against Detectron2's recorded numbers."""

import pytest
import torch

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
