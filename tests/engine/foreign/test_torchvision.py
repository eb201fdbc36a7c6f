"""torchvision's files: every version of its names, and what its weights take for granted."""

import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision, whose files these are, is not installed")

from mrcnn_cli.engine import foreign
from mrcnn_cli.errors import UserError
from tests.models.torchvision_files import detection, detector

# What a name in the files that torchvision published before version 0.14 has in place of today's.
OLD = (
    (".inner_blocks.{}.0.", ".inner_blocks.{}."),
    (".layer_blocks.{}.0.", ".layer_blocks.{}."),
    ("rpn.head.conv.0.0.", "rpn.head.conv."),
)


def saved(tensors, path):
    torch.save(tensors, path)
    return foreign.read(path)


def old_name(name):
    for today, before in OLD:
        for level in range(4):
            name = name.replace(today.format(level), before.format(level))
    for index in range(4):
        name = name.replace(f"mask_head.{index}.0.", f"mask_head.mask_fcn{index + 1}.")
    return name


def test_the_names_of_the_published_files_and_of_today_are_the_same_here(tmp_path):
    tensors = detector("maskrcnn_resnet50_fpn", 0).state_dict()
    today = saved(tensors, tmp_path / "today.pth")
    before = saved({old_name(name): tensor for name, tensor in tensors.items()}, tmp_path / "before.pth")
    assert today.renamed.sources != before.renamed.sources
    assert today.tensors.keys() == before.tensors.keys()
    assert not before.renamed.unknown
    assert all(torch.equal(before.tensors[name], tensor) for name, tensor in today.tensors.items())


def test_frozen_norms_add_nothing_to_the_variance_and_learning_ones_do(tmp_path):
    first = foreign.convert(saved(detector("fasterrcnn_resnet50_fpn", 0).state_dict(), tmp_path / "a.pth")).config.model
    second = foreign.convert(saved(detector("fasterrcnn_resnet50_fpn_v2", 0).state_dict(), tmp_path / "b.pth")).config
    assert (first.backbone.norm, first.backbone.norm_eps) == ("frozen_batch_norm", 0.0)
    assert (second.model.backbone.norm, second.model.backbone.norm_eps) == ("batch_norm", 1e-5)
    assert (second.model.rpn.num_conv, second.model.box_head.num_conv, second.model.box_head.norm) == (
        2,
        4,
        "batch_norm",
    )


def test_classes_keep_coco_s_ids_and_gaps(tmp_path):
    categories = foreign.convert(
        saved(detector("fasterrcnn_resnet50_fpn", 0).state_dict(), tmp_path / "a.pth")
    ).categories
    assert [c["id"] for c in categories] == list(range(1, 91))
    assert categories[0]["name"] == "person"
    assert categories[11]["name"] == "N/A 12"
    assert categories[89]["name"] == "toothbrush"
    assert len({c["name"] for c in categories}) == 90


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_classifiers_are_backbones(tmp_path, name):
    from torchvision import models

    read = saved(getattr(models, name)(weights=None).state_dict(), tmp_path / "imagenet.pth")
    assert read.is_backbone
    assert sorted(read.renamed.left_out) == ["fc.bias", "fc.weight"]
    with pytest.raises(UserError, match="a backbone alone, from torchvision"):
        foreign.convert(read)


def test_detectors_with_backbones_that_are_not_here_are_named(tmp_path):
    theirs = detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
    with pytest.raises(UserError, match="known to no model here: backbone.body.0.0.weight"):
        foreign.convert(saved(theirs.state_dict(), tmp_path / "mobile.pth"))
