"""MMDetection's names, as published: every tensor of its models finds a place, and the classes are kept."""

import pytest
import torch

from mrcnn_cli.engine import foreign
from mrcnn_cli.engine.checkpoint import load
from mrcnn_cli.errors import UserError
from mrcnn_cli.models.backbones.resnet import DEPTHS


def layer(state, name, *shape, bias=True):
    state[f"{name}.weight"] = 0.01 * torch.randn(shape)
    if bias:
        state[f"{name}.bias"] = torch.zeros(shape[0])


def norm(state, name, channels):
    for part, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        state[f"{name}.{part}"] = torch.full((channels,), value)
    state[f"{name}.num_batches_tracked"] = torch.tensor(0)


def resnet(state):
    layer(state, "backbone.conv1", 64, 3, 7, 7, bias=False)
    norm(state, "backbone.bn1", 64)
    for stage in range(4):
        width = 64 * 2**stage
        inputs = width if stage == 0 else 2 * width
        for block in range(DEPTHS["resnet50"][0][stage]):
            name = f"backbone.layer{stage + 1}.{block}"
            shapes = (width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)
            for index, shape in enumerate(shapes, start=1):
                layer(state, f"{name}.conv{index}", *shape, bias=False)
                norm(state, f"{name}.bn{index}", shape[0])
            if block == 0:
                layer(state, f"{name}.downsample.0", 4 * width, inputs, 1, 1, bias=False)
                norm(state, f"{name}.downsample.1", 4 * width)
            inputs = 4 * width


def pyramid(state, channels, outputs):
    for level, inputs in enumerate(channels):
        layer(state, f"neck.lateral_convs.{level}.conv", 256, inputs, 1, 1)
    for level, inputs in enumerate(outputs):
        layer(state, f"neck.fpn_convs.{level}.conv", 256, inputs, 3, 3)


def mask_rcnn(classes):
    torch.manual_seed(0)
    state = {}
    resnet(state)
    pyramid(state, (256, 512, 1024, 2048), (256,) * 4)
    layer(state, "rpn_head.rpn_conv", 256, 256, 3, 3)
    layer(state, "rpn_head.rpn_cls", 3, 256, 1, 1)
    layer(state, "rpn_head.rpn_reg", 12, 256, 1, 1)
    layer(state, "roi_head.bbox_head.shared_fcs.0", 1024, 12544)
    layer(state, "roi_head.bbox_head.shared_fcs.1", 1024, 1024)
    layer(state, "roi_head.bbox_head.fc_cls", classes + 1, 1024)
    layer(state, "roi_head.bbox_head.fc_reg", 4 * classes, 1024)
    for index in range(4):
        layer(state, f"roi_head.mask_head.convs.{index}.conv", 256, 256, 3, 3)
    layer(state, "roi_head.mask_head.upsample", 256, 256, 2, 2)
    layer(state, "roi_head.mask_head.conv_logits", classes, 256, 1, 1)
    return state


@pytest.mark.parametrize(
    "meta", [{"CLASSES": ("cat", "dog", "yak")}, {"dataset_meta": {"classes": ["cat", "dog", "yak"]}, "epoch": 12}]
)
def test_every_tensor_of_a_mask_rcnn_finds_its_place_and_the_classes_are_kept(tmp_path, meta):
    state = mask_rcnn(3)
    torch.save({"state_dict": state, "meta": meta}, tmp_path / "epoch_12.pth")
    checkpoint = load(tmp_path / "epoch_12.pth")
    assert checkpoint.origin == "MMDetection"
    assert checkpoint.classes == ("cat", "dog", "yak")
    assert checkpoint.config.model.name == "mask_rcnn"
    ours = checkpoint.model.state_dict()
    assert torch.equal(ours["box_head.logits.weight"], state["roi_head.bbox_head.fc_cls.weight"])
    assert torch.equal(ours["backbone.stages.1.0.shortcut.weight"], state["backbone.layer2.0.downsample.0.weight"])
    assert torch.equal(ours["fpn.outputs.3.weight"], state["neck.fpn_convs.3.conv.weight"])


def test_retinanets_extra_levels_and_order_of_anchors_are_ours(tmp_path):
    torch.manual_seed(0)
    state, classes = {}, 80
    resnet(state)
    pyramid(state, (512, 1024, 2048), (256, 256, 256, 2048, 256))
    for index in range(4):
        layer(state, f"bbox_head.cls_convs.{index}.conv", 256, 256, 3, 3)
        layer(state, f"bbox_head.reg_convs.{index}.conv", 256, 256, 3, 3)
    layer(state, "bbox_head.retina_cls", 9 * classes, 256, 3, 3)
    layer(state, "bbox_head.retina_reg", 36, 256, 3, 3)
    torch.save({"state_dict": state}, tmp_path / "retinanet.pth")
    checkpoint = load(tmp_path / "retinanet.pth")
    assert checkpoint.config.model.fpn.top == "backbone_convs"
    assert checkpoint.classes[0] == "person"
    ours = checkpoint.model.state_dict()
    assert torch.equal(ours["fpn.tops.1.weight"], state["neck.fpn_convs.4.conv.weight"])
    for size, ratio in ((0, 0), (2, 0), (1, 2)):  # theirs: ratio by ratio, three sizes each
        there, here = ratio * 3 + size, size * 3 + ratio
        for name, theirs, rows in (("deltas", "reg", 4), ("logits", "cls", classes)):
            expected = state[f"bbox_head.retina_{theirs}.weight"][rows * there : rows * (there + 1)]
            assert torch.equal(ours[f"retina_head.{name}.weight"][rows * here : rows * (here + 1)], expected)


def test_deformable_convolutions_and_group_norms_have_names_too(tmp_path):
    state = {
        "backbone.layer2.0.conv2.conv_offset.weight": torch.zeros(18, 128, 3, 3),
        "backbone.layer2.0.gn2.weight": torch.ones(128),
        "neck.lateral_convs.0.gn.weight": torch.ones(256),
        "roi_head.bbox_head.shared_convs.0.bn.weight": torch.ones(256),
    }
    torch.save(state, tmp_path / "parts.pth")
    assert list(foreign.read(tmp_path / "parts.pth").tensors) == [
        "backbone.stages.1.0.conv2.offset.weight",
        "backbone.stages.1.0.conv2.norm.weight",
        "fpn.laterals.0.norm.weight",
        "box_head.convs.0.norm.weight",
    ]


@pytest.mark.parametrize("meta", [None, "a text", ["a", "list"], {"CLASSES": None}, {"dataset_meta": "text"}])
def test_whatever_a_file_says_of_itself_it_is_read(tmp_path, meta):
    torch.save({"state_dict": mask_rcnn(3), "meta": meta}, tmp_path / "epoch_12.pth")
    converted = foreign.convert(foreign.read(tmp_path / "epoch_12.pth"))
    assert [category["name"] for category in converted.categories] == ["class 1", "class 2", "class 3"]


def test_a_recipe_for_weights_without_classes_is_refused(tmp_path):
    state = {name: tensor for name, tensor in mask_rcnn(3).items() if "fc_cls" not in name}
    torch.save(state, tmp_path / "headless.pth")
    with pytest.raises(UserError, match="from MMDetection, but no layer tells its number of classes"):
        foreign.convert(foreign.read(tmp_path / "headless.pth"), recipe="mask_rcnn_r50_fpn_3x")
