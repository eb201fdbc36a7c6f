"""A recipe and data small enough to train on in a test."""

import json

import pytest

from mrcnn_cli.data.loader import SAMPLE
from mrcnn_cli.engine.run import prepare, read_config

TINY = {
    "model.backbone": {"name": "resnet18", "width": 8, "norm": "batch_norm"},
    "model.fpn.channels": 16,
    "model.rpn.pre_nms_top_n_train": 100,
    "model.rpn.pre_nms_top_n": 50,
    "model.rpn.post_nms_top_n_train": 50,
    "model.rpn.post_nms_top_n": 20,
    "model.box_head.fc_channels": 32,
    "model.box_head.samples_per_image": 16,
    "model.box_head.detections_per_image": 10,
    "model.mask_head.conv_channels": 16,
    "model.mask_head.num_conv": 1,
    "data.resize": {"scale": 0.5},
    "data.augment.crop": 96,
    "data.workers": 0,
    "train.steps": 4,
    "train.batch_size": 2,
    "train.warmup_steps": 1,
    "train.save_every": 2,
}


def few_images(split, count, folder):
    """The first `count` images of the embedded sample's split, as a COCO file of their own."""
    table = json.loads((SAMPLE / f"{split}.json").read_text())
    images = table["images"][:count]
    numbers = {image["id"] for image in images}
    annotations = [a for a in table["annotations"] if a["image_id"] in numbers]
    path = folder / f"{split}.json"
    path.write_text(json.dumps({**table, "images": images, "annotations": annotations}))
    return {f"data.{split}.images": str(SAMPLE / split), f"data.{split}.annotations": str(path)}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Overrides for the recipe nuclei_scratch."""
    folder = tmp_path_factory.mktemp("data")
    return {**TINY, **few_images("train", 5, folder), **few_images("val", 2, folder)}


@pytest.fixture(scope="session")
def prepared(tiny):
    """Makes a run in a folder, with changes to the recipe: data__workers=2."""

    def make(folder, recipe="nuclei_scratch", **changes):
        overrides = {**tiny, **{key.replace("__", "."): value for key, value in changes.items()}}
        return prepare(read_config(recipe, overrides), folder, "cpu")

    return make
