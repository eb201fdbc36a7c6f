"""Detectron2's files: what they are is told from their tensors, and they become what our recipes build."""

import json
import pickle
import re

import numpy as np
import pytest
import torch

from mrcnn_cli.config import override, read, recipes, validate
from mrcnn_cli.engine import foreign
from mrcnn_cli.engine.checkpoint import load
from mrcnn_cli.engine.run import RunConfig
from mrcnn_cli.errors import UserError
from mrcnn_cli.models import build_model
from tests.models.detectron2_oracle import FOLDER, fill, inputs

# The record's name -> the shipped recipe that it belongs to.
RECIPES = {
    "faster_rcnn_R_50_FPN_3x": "faster_rcnn_r50_fpn_3x",
    "mask_rcnn_R_50_FPN_3x": "mask_rcnn_r50_fpn_3x",
    "mask_rcnn_R_50_C4_3x": "mask_rcnn_r50_c4_3x",
    "mask_rcnn_R_50_FPN_3x_gn": "mask_rcnn_r50_fpn_3x_gn",
    "mask_rcnn_R_50_FPN_3x_dconv_c3-c5": "mask_rcnn_r50_fpn_3x_dconv",
    "keypoint_rcnn_R_50_FPN_3x": "keypoint_rcnn_r50_fpn_3x",
    "cascade_mask_rcnn_R_50_FPN_3x": "cascade_mask_rcnn_r50_fpn_3x",
    "panoptic_fpn_R_50_3x": "panoptic_fpn_r50_3x",
    "retinanet_R_50_FPN_3x": "retinanet_r50_fpn_3x",
    "rpn_R_50_FPN_1x": "rpn_r50_fpn_1x",
    "fast_rcnn_R_50_FPN_1x": "fast_rcnn_r50_fpn_1x",
}
# What shipped recipes leave to the data.
NUMBERS = {
    "keypoint_rcnn_R_50_FPN_3x": ["model.num_keypoints=17"],
    "panoptic_fpn_R_50_3x": ["model.num_stuff=53"],
}


def spec(name):
    return json.loads((FOLDER / "models" / f"{name}.json").read_text())


def shapes(name):
    """Detectron2's name -> an empty array of the tensor's shape, which costs no memory."""
    return {entry["name"]: np.broadcast_to(np.float32(0), entry["shape"]) for entry in spec(name)["state_dict"]}


def write(path, arrays):
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return path


def recipe_of(path):
    return foreign.convert(foreign.read(path)).config


def narrow(name):
    """The model's tensors with a few channels in place of 64 and more, for files that are small and quickly written."""

    def fewer(length):
        return length // 32 if length >= 64 and length not in (80, 81, 320) else length

    return {key: np.zeros([fewer(n) for n in array.shape], "f4") for key, array in shapes(name).items()}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_that_the_tensors_tell_is_the_shipped_one(tmp_path, monkeypatch, name):
    tensors = {key: torch.empty(array.shape, device="meta") for key, array in shapes(name).items()}
    monkeypatch.setattr(foreign, "read_weights", lambda path: (tensors, {}))
    table = override(read(recipes()[RECIPES[name]]), NUMBERS.get(name, ()))
    told, shipped = recipe_of(tmp_path), validate(RunConfig, table, name)
    assert told.model == shipped.model
    assert told.data.size_divisor == shipped.data.size_divisor
    assert told.data.resize.method == "pillow"
    assert len(told.data.keypoints.names or ()) == (17 if name.startswith("keypoint") else 0)


def test_a_c4_models_region_proposal_network_alone_is_told_though_it_has_three_stages(tmp_path, monkeypatch):
    tensors = {
        key: torch.empty(array.shape, device="meta")
        for key, array in shapes("mask_rcnn_R_50_C4_3x").items()
        if not key.startswith("roi_heads.")
    }
    monkeypatch.setattr(foreign, "read_weights", lambda path: (tensors, {}))
    converted = foreign.convert(foreign.read(tmp_path))
    assert converted.config.model == validate(RunConfig, read(recipes()["rpn_r50_c4_1x"]), "rpn").model
    assert converted.categories == [{"id": 1, "name": "object"}]


# Ours -> Detectron2's, of a cascade with convolutions in its heads.
THEIRS = {
    r"backbone\.stem\.": "backbone.bottom_up.stem.conv1.",
    r"backbone\.stages\.(\d)\.(.*)conv2\.offset": lambda m: f"backbone.bottom_up.res{int(m[1]) + 2}.{m[2]}conv2_offset",
    r"backbone\.stages\.(\d)": lambda m: f"backbone.bottom_up.res{int(m[1]) + 2}",
    r"fpn\.(lateral|output)s\.(\d)": lambda m: f"backbone.fpn_{m[1]}{int(m[2]) + 2}",
    r"rpn\.convs\.0": "proposal_generator.rpn_head.conv",
    r"rpn\.logits": "proposal_generator.rpn_head.objectness_logits",
    r"rpn\.deltas": "proposal_generator.rpn_head.anchor_deltas",
    r"box_heads\.(\d)\.(conv|fc)s\.(\d)": lambda m: f"roi_heads.box_head.{m[1]}.{m[2]}{int(m[3]) + 1}",
    r"box_heads\.(\d)\.logits": r"roi_heads.box_predictor.\1.cls_score",
    r"box_heads\.(\d)\.deltas": r"roi_heads.box_predictor.\1.bbox_pred",
    r"mask_head\.convs\.(\d)": lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}",
    r"mask_head\.upsample": "roi_heads.mask_head.deconv",
    r"mask_head\.logits": "roi_heads.mask_head.predictor",
}


def test_the_largest_model_of_the_zoo_which_no_record_has_is_told_as_it_is_shipped(tmp_path, monkeypatch):
    name = "cascade_mask_rcnn_x152_32x8d_fpn_in5k_gn_dconv"
    shipped = validate(RunConfig, read(recipes()[name]), name)
    with torch.device("meta"):
        ours = build_model(shipped.model, 80).state_dict()
    tensors = {}
    for key, tensor in ours.items():
        pattern, theirs = next(item for item in THEIRS.items() if re.match(item[0], key))
        tensors[re.sub(f"^{pattern}", theirs, key)] = tensor
    assert len(tensors) == len(ours)
    assert tensors["backbone.bottom_up.res4.35.conv2.weight"].shape == (1024, 32, 3, 3)
    assert tensors["roi_heads.box_head.2.conv4.norm.weight"].shape == (256,)
    assert tensors["backbone.bottom_up.res3.0.conv2_offset.bias"].shape == (18,)
    monkeypatch.setattr(foreign, "read_weights", lambda path: (tensors, {}))
    read_file = foreign.read(tmp_path)
    assert not read_file.renamed.unknown
    assert foreign.convert(read_file).config.model == shipped.model


@pytest.fixture(scope="module")
def mask_rcnn(tmp_path_factory):
    """A model zoo file as people have it."""
    arrays = fill().fill_from_json(spec("mask_rcnn_R_50_FPN_3x"))
    return write(tmp_path_factory.mktemp("zoo") / "model_final_f10217.pkl", arrays)


def test_a_file_of_the_model_zoo_gives_its_detections(mask_rcnn):
    from mrcnn_cli.engine.evaluate import predict_batch
    from mrcnn_cli.structures import ImageBatch

    checkpoint = load(mask_rcnn)
    assert checkpoint.origin == "Detectron2"
    assert checkpoint.classes[:2] == ("person", "bicycle")
    assert checkpoint.category_ids[-1] == 90
    record = np.load(FOLDER / "models" / "mask_rcnn_R_50_FPN_3x.npz")
    pixels = torch.from_numpy(inputs()["img0_bgr"][..., ::-1].copy()).permute(2, 0, 1)
    size = tuple(inputs()["img0_original_hw"].tolist())
    [found] = predict_batch(checkpoint.model, ImageBatch.collate([pixels], [size]), checkpoint.device)
    order = np.argsort(-record["img0/post/scores"])[:5]
    assert found.labels[:5].tolist() == record["img0/post/classes"][order].tolist()
    np.testing.assert_allclose(found.scores[:5], record["img0/post/scores"][order], atol=1e-3)
    np.testing.assert_allclose(found.boxes[:5], record["img0/post/boxes"][order], atol=0.02)


def test_pth_files_of_its_trainer_are_the_same(mask_rcnn, tmp_path):
    arrays = pickle.loads(mask_rcnn.read_bytes())["model"]
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"model": tensors, "iteration": 269999, "optimizer": {"state": {}}}, tmp_path / "model_final.pth")
    first, second = foreign.read(mask_rcnn).tensors, foreign.read(tmp_path / "model_final.pth").tensors
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_boxes_of_one_class_are_not_taken_for_class_agnostic_ones(tmp_path):
    arrays = narrow("faster_rcnn_R_50_FPN_3x")
    for part in ("weight", "bias"):
        key = f"roi_heads.box_predictor.cls_score.{part}"
        arrays[key] = arrays[key][:2]
        key = f"roi_heads.box_predictor.bbox_pred.{part}"
        arrays[key] = arrays[key][:4]
    model = foreign.convert(foreign.read(write(tmp_path / "one.pkl", arrays)), ["model.backbone.width=8"]).config.model
    assert not model.box_head.class_agnostic


def test_more_than_one_convolution_in_the_rpn_is_counted(tmp_path):
    arrays = narrow("mask_rcnn_R_50_FPN_3x")
    for part in ("weight", "bias"):
        hidden = arrays.pop(f"proposal_generator.rpn_head.conv.{part}")
        arrays |= {f"proposal_generator.rpn_head.conv.conv{i}.{part}": hidden for i in range(2)}
    read_file = foreign.read(write(tmp_path / "two.pkl", arrays))
    assert not read_file.renamed.unknown
    assert foreign.convert(read_file, ["model.backbone.width=8", "model.fpn.channels=8"]).config.model.rpn.num_conv == 2


def test_buffers_that_older_versions_saved_are_listed_not_used(tmp_path):
    arrays = narrow("faster_rcnn_R_50_FPN_3x")
    old = {
        "pixel_mean": np.zeros((3, 1, 1), "f4"),
        "proposal_generator.anchor_generator.cell_anchors.0": np.zeros((3, 4), "f4"),
    }
    renamed = foreign.read(write(tmp_path / "old.pkl", arrays | old)).renamed
    assert renamed.left_out.keys() == old.keys()
    assert not renamed.unknown


def test_parts_that_no_model_here_has_are_named(tmp_path):
    arrays = narrow("mask_rcnn_R_50_FPN_3x") | {"roi_heads.mask_head.point_head.fc1.weight": np.zeros((2, 2), "f4")}
    with pytest.raises(UserError, match=r"point.pkl: from Detectron2, but 1 of its .*: roi_heads.mask_head.point_head"):
        load(write(tmp_path / "point.pkl", arrays))


def test_a_backbone_alone_is_no_model_to_predict_with(tmp_path):
    arrays = {"stem.conv1.weight": np.zeros((64, 3, 7, 7), "f4"), "res2.0.conv1.weight": np.zeros((64, 64, 1, 1), "f4")}
    with pytest.raises(UserError, match=r"R-50.pkl: a backbone alone, from Detectron2; train with it: mrcnn train"):
        load(write(tmp_path / "R-50.pkl", arrays))


def test_a_file_of_no_known_system_is_named_with_those_that_are(tmp_path):
    with pytest.raises(UserError, match=r"yolo.pkl: its tensors \(0.conv, ...\) are named .* read: Detectron2"):
        load(write(tmp_path / "yolo.pkl", {"model.0.conv": np.zeros(3)}))


def test_classes_can_be_named(mask_rcnn):
    names = [f"thing {number}" for number in range(80)]
    checkpoint = load(mask_rcnn, overrides=[f"data.classes={json.dumps(names)}"])
    assert checkpoint.classes == tuple(names)
    with pytest.raises(UserError, match="has 80 classes, but data.classes names 2"):
        load(mask_rcnn, overrides=["data.classes=['a', 'b']"])


def test_a_recipe_that_does_not_fit_names_the_tensor_in_both_systems(mask_rcnn):
    with pytest.raises(UserError, match=r"does not fit .*box_head.fcs.0.weight \(roi_heads.box_head.fc1.weight\)"):
        load(mask_rcnn, overrides=["model.box_head.fc_channels=512"])
    with pytest.raises(UserError, match=r"it has mask_head.convs.0.bias \(.*mask_fcn1.bias\), unknown"):
        load(mask_rcnn, recipe="faster_rcnn_r50_fpn_3x")


def test_a_panoptic_model_brings_the_classes_of_its_stuff(tmp_path):
    arrays = narrow("panoptic_fpn_R_50_3x")
    tiny = ["model.backbone.width=8", "model.fpn.channels=8", "model.semantic_head.conv_channels=8"]
    categories = foreign.convert(foreign.read(write(tmp_path / "panoptic.pkl", arrays)), tiny).categories
    assert [c["name"] for c in categories if c["isthing"]][:2] == ["person", "bicycle"]
    stuff = [c for c in categories if not c["isthing"]]
    assert (len(stuff), stuff[0], stuff[-1]["id"]) == (53, {"id": 92, "name": "banner", "isthing": 0}, 200)
    few = {key: array[:3] if "sem_seg_head.predictor" in key else array for key, array in arrays.items()}
    read_file = foreign.read(write(tmp_path / "few.pkl", few))
    assert [c["name"] for c in foreign.convert(read_file, tiny).categories[80:]] == ["stuff 1", "stuff 2"]
    named = foreign.convert(read_file, [*tiny, "data.stuff=['sky', 'sea']"]).categories[80:]
    assert [(c["id"], c["name"]) for c in named] == [(91, "sky"), (92, "sea")]
    with pytest.raises(UserError, match="has 2 classes of stuff, but data.stuff names 1"):
        foreign.convert(read_file, [*tiny, "data.stuff=['sky']"])
