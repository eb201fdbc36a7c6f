"""Detectron's blobs: every name that its networks have, affine channels as frozen norms, and its order of classes."""

import pickle

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from mrcnn_cli.engine import foreign
from mrcnn_cli.engine.checkpoint import load
from mrcnn_cli.models.backbones.resnet import DEPTHS
from tests.engine.foreign.test_pickles import Python2Pickler

RANDOM = np.random.default_rng(0)


def layer(blobs, name, *shape, bias=True):
    blobs[f"{name}_w"] = 0.01 * RANDOM.standard_normal(shape, dtype=np.float32)
    if bias:
        blobs[f"{name}_b"] = np.zeros(shape[0], np.float32)


def affine(blobs, name, channels):
    blobs[f"{name}_bn_s"] = RANDOM.uniform(0.5, 1, channels).astype(np.float32)
    blobs[f"{name}_bn_b"] = RANDOM.uniform(-0.1, 0.1, channels).astype(np.float32)


def resnet(blobs, stages=(2, 3, 4, 5)):
    layer(blobs, "conv1", 64, 3, 7, 7)
    affine(blobs, "res_conv1", 64)
    inputs = 64
    for stage in stages:
        width = 64 * 2 ** (stage - 2)
        inputs = width if stage == 2 else 2 * width
        for block in range(DEPTHS["resnet50"][0][stage - 2]):
            name = f"res{stage}_{block}"
            sizes = {"branch2a": (width, inputs, 1, 1), "branch2b": (width, width, 3, 3)}
            sizes["branch2c"] = (4 * width, width, 1, 1)
            if block == 0:
                sizes["branch1"] = (4 * width, inputs, 1, 1)
            for branch, shape in sizes.items():
                layer(blobs, f"{name}_{branch}", *shape, bias=False)
                affine(blobs, f"{name}_{branch}", shape[0])
            inputs = 4 * width


def mask_rcnn_fpn(classes=80):
    """The blobs of e2e_mask_rcnn_R-50-FPN, with the optimiser's."""
    blobs = {}
    resnet(blobs)
    for stage, block in ((2, 2), (3, 3), (4, 5), (5, 2)):
        lateral = "" if stage == 5 else "_lateral"
        layer(blobs, f"fpn_inner_res{stage}_{block}_sum{lateral}", 256, 64 * 2**stage, 1, 1)
        layer(blobs, f"fpn_res{stage}_{block}_sum", 256, 256, 3, 3)
    layer(blobs, "conv_rpn_fpn2", 256, 256, 3, 3)
    layer(blobs, "rpn_cls_logits_fpn2", 3, 256, 1, 1)
    layer(blobs, "rpn_bbox_pred_fpn2", 12, 256, 1, 1)
    layer(blobs, "fc6", 1024, 256 * 49)
    layer(blobs, "fc7", 1024, 1024)
    layer(blobs, "cls_score", classes + 1, 1024)
    layer(blobs, "bbox_pred", 4 * (classes + 1), 1024)
    for index in range(1, 5):
        layer(blobs, f"_[mask]_fcn{index}", 256, 256, 3, 3)
    layer(blobs, "conv5_mask", 256, 256, 2, 2)
    layer(blobs, "mask_fcn_logits", classes + 1, 256, 1, 1)
    blobs["fc6_w_momentum"] = np.zeros(1, np.float32)
    return blobs


def mask_rcnn_c4(classes=80):
    blobs = {}
    resnet(blobs)
    layer(blobs, "conv_rpn", 1024, 1024, 3, 3)
    layer(blobs, "rpn_cls_logits", 15, 1024, 1, 1)
    layer(blobs, "rpn_bbox_pred", 60, 1024, 1, 1)
    layer(blobs, "cls_score", classes + 1, 2048)
    layer(blobs, "bbox_pred", 4 * (classes + 1), 2048)
    layer(blobs, "conv5_mask", 2048, 256, 2, 2)
    blobs["conv5_mask_b"] = np.zeros(256, np.float32)
    layer(blobs, "mask_fcn_logits", classes + 1, 256, 1, 1)
    return blobs


def write(path, blobs):
    """As Detectron wrote it, under Python 2."""
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump({"blobs": blobs, "cfg": "MODEL:\n  TYPE: generalized_rcnn\n"})
    return path


def test_every_blob_of_a_mask_rcnn_finds_its_place(tmp_path):
    blobs = mask_rcnn_fpn()
    path = write(tmp_path / "model_final.pkl", blobs)
    checkpoint = load(path)
    assert checkpoint.origin == "Detectron"
    assert checkpoint.left_out == {
        "fc6_w_momentum": "is of the optimiser",
        "conv1_b": "is without effect before a norm",
    }
    assert checkpoint.config.model.pixels.mean == (102.9801, 115.9465, 122.7717)
    assert checkpoint.config.model.backbone.norm == "frozen_batch_norm"
    assert checkpoint.config.model.backbone.stride_in_1x1
    assert checkpoint.classes[0] == "person"
    state = checkpoint.model.state_dict()
    scores = torch.from_numpy(blobs["cls_score_w"])
    assert torch.equal(state["box_head.logits.weight"], torch.cat([scores[1:], scores[:1]]))
    assert torch.equal(state["box_head.deltas.weight"], torch.from_numpy(blobs["bbox_pred_w"][4:]))
    assert torch.equal(state["mask_head.logits.weight"], torch.from_numpy(blobs["mask_fcn_logits_w"][1:]))


def test_affine_channels_are_norms_that_scale_and_shift_alike(tmp_path):
    blobs = mask_rcnn_fpn()
    model = load(write(tmp_path / "model_final.pkl", blobs)).model
    x = torch.randn(1, 512, 3, 3)
    scale, shift = (torch.from_numpy(blobs[f"res5_2_branch2c_bn_{part}"])[:, None, None] for part in "sb")
    expected = conv2d(x, torch.from_numpy(blobs["res5_2_branch2c_w"])) * scale + shift
    layer_of_ours = model.backbone.stages[3][2].conv3
    with torch.inference_mode():
        torch.testing.assert_close(layer_of_ours(x), expected.relu(), rtol=1e-4, atol=1e-6)


def test_the_c4_form_keeps_its_last_stage_in_the_head_and_its_anchors_in_order(tmp_path):
    blobs = mask_rcnn_c4()
    checkpoint = load(write(tmp_path / "model_final.pkl", blobs))
    assert checkpoint.config.model.box_head.stage
    assert checkpoint.config.data.size_divisor == 0
    state = checkpoint.model.state_dict()
    assert torch.equal(state["box_head.stage.0.conv1.weight"], torch.from_numpy(blobs["res5_0_branch2a_w"]))
    # Detectron's anchors: ratio by ratio, five sizes each; ours: size by size, three ratios each.
    for size, ratio in ((0, 0), (1, 0), (0, 1), (4, 2)):
        theirs, ours = ratio * 5 + size, size * 3 + ratio
        assert torch.equal(state["rpn.logits.weight"][ours], torch.from_numpy(blobs["rpn_cls_logits_w"][theirs]))
        boxes = torch.from_numpy(blobs["rpn_bbox_pred_w"][4 * theirs : 4 * theirs + 4])
        assert torch.equal(state["rpn.deltas.weight"][4 * ours : 4 * ours + 4], boxes)


@pytest.mark.parametrize("wrapped", [True, False])
def test_imagenet_backbones_of_msra_are_backbones(tmp_path, wrapped):
    blobs = {}
    resnet(blobs)
    layer(blobs, "pred", 1000, 2048)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs} if wrapped else blobs))
    read = foreign.read(path)
    assert read.is_backbone
    assert set(read.renamed.left_out) == {"conv1_b", "pred_w", "pred_b"}
    assert not read.renamed.unknown
    told = foreign.told_recipe(read)["model"]
    assert told["backbone"]["name"] == "resnet50"
    assert told["pixels"]["channels"] == "bgr"


def test_group_norms_and_retinanet_have_names_too(tmp_path):
    blobs = {}
    resnet(blobs)
    for stage, block in ((3, 3), (4, 5), (5, 2)):
        lateral = "" if stage == 5 else "_lateral"
        layer(blobs, f"fpn_inner_res{stage}_{block}_sum{lateral}", 256, 64 * 2**stage, 1, 1)
        layer(blobs, f"fpn_res{stage}_{block}_sum", 256, 256, 3, 3)
    layer(blobs, "fpn_6", 256, 2048, 3, 3)
    layer(blobs, "fpn_7", 256, 256, 3, 3)
    for index in range(4):
        layer(blobs, f"retnet_cls_conv_n{index}_fpn3", 256, 256, 3, 3)
        layer(blobs, f"retnet_bbox_conv_n{index}_fpn3", 256, 256, 3, 3)
    layer(blobs, "retnet_cls_pred_fpn3", 9 * 80, 256, 3, 3)
    layer(blobs, "retnet_bbox_pred_fpn3", 36, 256, 3, 3)
    checkpoint = load(write(tmp_path / "retinanet.pkl", blobs))
    assert checkpoint.config.model.name == "retinanet"
    assert len(checkpoint.classes) == 80
    norms = {"res2_0_branch2a_gn_s": np.ones(64, "f4"), "res2_0_branch2a_gn_b": np.ones(64, "f4")}
    names = set(foreign.read(write(tmp_path / "gn.pkl", norms)).tensors)
    assert names == {"backbone.stages.0.0.conv1.norm.weight", "backbone.stages.0.0.conv1.norm.bias"}
