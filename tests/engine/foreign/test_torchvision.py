"""torchvision's files: every version of its names, and what its weights take for granted."""

import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision, whose files these are, is not installed")

from mrcnn_cli.engine import foreign
from mrcnn_cli.engine.checkpoint import load_weights
from mrcnn_cli.errors import UserError
from mrcnn_cli.models.backbones import build_backbone
from mrcnn_cli.models.backbones.mobilenet import MobileNetConfig
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


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_large", "vgg16"]
)
def test_classifiers_are_backbones(tmp_path, name):
    from torchvision import models

    read = saved(getattr(models, name)(weights=None).state_dict(), tmp_path / "imagenet.pth")
    assert read.is_backbone
    assert not read.renamed.unknown
    classifier = "fc." if name.startswith("res") else ("classifier.", "features.18.")
    assert all(theirs.startswith(classifier) for theirs in read.renamed.left_out)
    with pytest.raises(UserError, match="a backbone alone, from torchvision"):
        foreign.convert(read)


@pytest.mark.parametrize(("name", "layers"), [("mobilenet_v2", (1, 5, 12, 17)), ("mobilenet_v3_large", (1, 3, 12, 16))])
def test_a_light_classifier_s_maps_are_torchvisions(tmp_path, name, layers):
    from torchvision import models

    theirs = getattr(models, name)(weights=None)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean)
    theirs.eval()
    tensors = saved(theirs.state_dict(), tmp_path / "imagenet.pth").tensors
    eps = 1e-3 if name == "mobilenet_v3_large" else 1e-5
    ours = build_backbone(MobileNetConfig(name=name, taps=layers, norm_eps=eps)).eval()
    load_weights(ours, {key.removeprefix("backbone."): tensor for key, tensor in tensors.items()}, name)
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        found, number = dict(zip(layers, ours(x), strict=True)), 0
        for number, layer in enumerate(theirs.features[: layers[-1] + 1]):
            x = layer(x)
            if number in found:
                torch.testing.assert_close(found[number], x, rtol=1e-4, atol=1e-5 * x.std().item())


def test_detectors_with_backbones_that_are_not_here_are_named(tmp_path):
    theirs = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(UserError, match="known to no model here: backbone.features"):
        foreign.convert(saved(theirs.state_dict(), tmp_path / "lite.pth"))
