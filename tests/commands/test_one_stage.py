"""One-stage detectors and light backbones from the command line, on data that has masks as well."""

import pytest

from tests.commands.conftest import assignments

SMALL = ("train.steps=2", "train.batch_size=2", "train.warmup_steps=1", "data.workers=0", "train.save_every=2")
RECIPES = {
    "retinanet_r50_fpn_1x": (
        'model.backbone={name="resnet18", width=8, norm="batch_norm"}',
        "model.fpn.channels=16",
        "data.resize={scale=1.0}",
        "data.augment={crop=64}",
    ),
    "retinanet_mobilenet_v2_fpn": (
        'model.backbone={name="mobilenet_v2"}',
        "model.fpn.channels=64",
        "data.resize={scale=1.0}",
        "data.augment={crop=64}",
    ),
    "faster_rcnn_mobilenet_v3_large_fpn": (
        'model.backbone={name="mobilenet_v3_large", taps=[13, 16]}',
        "model.fpn.channels=16",
        "model.box_head.fc_channels=32",
        "data.resize={scale=1.0}",
        "data.augment={crop=64}",
    ),
    "ssd300_vgg16": ('model.backbone={name="vgg16", round_up=true}',),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_trains_evaluates_and_predicts_boxes(mrcnn, shapes, own_data, recipe):
    trained = mrcnn("train", recipe, *own_data, "--out", "run", "--json", *assignments(*SMALL, *RECIPES[recipe]))
    assert trained.status == 0, trained.err
    metrics = trained.json["metrics"]
    assert metrics["box_ap"] is not None
    assert "mask_ap" not in metrics
    assert mrcnn("evaluate", "run", "--json").json == metrics
    found = mrcnn("predict", shapes, "--weights", "run", "--score", "0.001", "--json")
    assert len(found.json["images"]) == 4
