"""Cascade R-CNN from the command line."""

import json

import pytest

from tests.commands.conftest import TINY, assignments

SMALL = (
    *(pair for pair in TINY if not pair.startswith("model.backbone")),
    'model.backbone={name="resnet18", width=8, norm="batch_norm"}',
    "data.resize={scale=1.0}",
    "data.augment={crop=64}",
    "train.steps=2",
)


@pytest.mark.slow
@pytest.mark.parametrize("masks", [True, False])
def test_a_cascade_trains_predicts_and_evaluates(mrcnn, shapes, own_data, masks):
    recipe, pairs = "cascade_mask_rcnn_r50_fpn_1x", SMALL
    if not masks:
        recipe = "cascade_rcnn_r50_fpn_1x"
        pairs = tuple(pair for pair in SMALL if not pair.startswith("model.mask_head"))
    trained = mrcnn("train", recipe, *own_data, "--out", "run", "--json", *assignments(*pairs))
    assert trained.status == 0, trained.err
    metrics = trained.json["metrics"]
    assert ("mask_ap" in metrics) == masks
    assert mrcnn("evaluate", "run", "--json").json == metrics
    found = mrcnn("predict", shapes, "--weights", "run", "--score", "0.05", "--json")
    assert len(found.json["images"]) == 4


def test_a_cascade_of_masks_needs_data_with_masks(mrcnn, shapes, tmp_path):
    truth = json.loads((shapes / "shapes.json").read_text())
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(truth))
    failed = mrcnn("train", "cascade_mask_rcnn_r50_fpn_1x", "--train", shapes, "boxes.json", *assignments(*SMALL))
    assert failed.status == 1
    assert "has boxes but no masks (no 'segmentation'), which cascade_rcnn needs" in failed.error
