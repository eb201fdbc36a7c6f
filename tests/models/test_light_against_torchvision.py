"""Our one-stage detectors and light backbones against torchvision's, on the same weights and photographs."""

import copy

import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision, the oracle of these tests, is not installed")

from mrcnn_cli.data.loader import images_batch
from mrcnn_cli.engine.foreign import torchvision
from mrcnn_cli.engine.foreign.names import rename
from mrcnn_cli.structures import Targets
from tests.models.light_oracle import DETECTORS, compare, objects, pair, pictures, their_batch

LOSSES = {
    "classification": "loss_class",
    "bbox_regression": "loss_box",
    "loss_classifier": "loss_class",
    "loss_box_reg": "loss_box",
    "loss_objectness": "loss_rpn_objectness",
    "loss_rpn_box_reg": "loss_rpn_box",
}
THRESHOLDS = {"ssd300_vgg16": 0.01}
RELATIVE = 1e-4


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DETECTORS)
def test_detections_in_photographs_are_torchvisions(name, seed):
    theirs, ours, config = pair(name, seed)
    with torch.inference_mode():
        found = ours.predict(images_batch(pictures(), config.data))
        for expected, detections in zip(theirs(their_batch()), found, strict=True):
            compare(expected, detections, THRESHOLDS.get(name, 0.05))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        "retinanet_resnet50_fpn",
        pytest.param("retinanet_resnet50_fpn_v2", marks=pytest.mark.slow),
        pytest.param("ssd300_vgg16", marks=pytest.mark.slow),
        "fasterrcnn_mobilenet_v3_large_fpn",
    ],
)
def test_losses_and_gradients_are_torchvisions(name, seed, monkeypatch):
    """In double precision, where hardly any activation switches on rounding."""
    theirs, ours, config = pair(name, seed)
    theirs, ours = training(copy.deepcopy(theirs)).double(), training(copy.deepcopy(ours)).double()
    for parameter in ours.parameters():  # those that our recipe freezes too
        parameter.requires_grad_(True)
    images, their_truths = images_batch(pictures(), config.data), objects()
    inputs, shrunk = theirs.transform([picture.double() for picture in their_batch()], copy.deepcopy(their_truths))
    assert inputs.image_sizes == images.sizes
    monkeypatch.setattr(ours.preprocess, "forward", lambda batch: inputs.tensors)
    our_truths = [Targets(truth["boxes"], truth["labels"] - 1, truth["boxes"][:0]) for truth in shrunk]
    expected = theirs([picture.double() for picture in their_batch()], their_truths)
    losses = ours(images, our_truths)
    assert {LOSSES[key] for key in expected} == set(losses)
    for key, value in expected.items():
        assert losses[LOSSES[key]].item() == pytest.approx(value.item(), rel=RELATIVE), key
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    wanted = rename({key: parameter.grad for key, parameter in theirs.named_parameters()}, torchvision.NAMES).tensors
    gradients = {key: parameter.grad for key, parameter in ours.named_parameters() if parameter.grad is not None}
    assert len(gradients) >= 20
    for key, gradient in gradients.items():
        assert (gradient - wanted[key]).norm() <= RELATIVE * wanted[key].norm() + 1e-7, key


def training(model):
    """In training mode, but with the batch norms' statistics fixed."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model
