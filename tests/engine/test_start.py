"""What of a file of weights training starts from, and what it begins anew."""

import json
import pickle

import pytest
import torch

from mrcnn_cli.engine import start
from mrcnn_cli.engine.checkpoint import write_weights
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.train import train
from mrcnn_cli.errors import UserError
from mrcnn_cli.models import build_model
from tests.engine.conftest import TINY
from tests.models.detectron2_oracle import FOLDER


def tiny_config(**changes):
    return read_config("nuclei_scratch", TINY | {key.replace("__", "."): value for key, value in changes.items()})


def model_of(config, classes, seed):
    torch.manual_seed(seed)
    return build_model(config.model, classes)


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of one class."""
    config = tiny_config()
    path = tmp_path / "weights.safetensors"
    write_weights(path, model_of(config, 1, 0), config, [{"id": 1, "name": "nucleus"}], 7)
    return path


def filled(path, classes, **changes):
    """(the model before, after it was filled, the remarks)."""
    config = tiny_config(train__weights=str(path), **changes)
    model = model_of(config, classes, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return before, model.state_dict(), start.fill(model, config)


def changed(before, after):
    return {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_weights_of_the_same_architecture_are_taken_whole_without_a_word(weights):
    _, after, remarks = filled(weights, 1)
    expected = model_of(tiny_config(), 1, 0).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in expected.items())
    assert remarks == ()


def test_another_number_of_classes_begins_only_the_layers_that_depend_on_it_anew(weights):
    before, after, remarks = filled(weights, 3)
    anew = {"box_head.logits", "box_head.deltas", "mask_head.logits"}
    kept = model_of(tiny_config(), 1, 0).state_dict()
    for name, tensor in after.items():
        expected = before if name.rpartition(".")[0] in anew else kept
        assert torch.equal(tensor, expected[name]), name
    [remark] = remarks
    assert "has another number of classes: box_head.logits, box_head.deltas, mask_head.logits begin anew" in remark


def test_parts_that_the_file_or_the_recipe_lacks_are_named(weights, tmp_path):
    boxes = {"model": {key: value for key, value in tiny_config().model.model_dump().items() if key != "mask_head"}}
    boxes["model"]["name"] = "faster_rcnn"
    config = tiny_config(model=boxes["model"], train__weights=str(weights))
    model = model_of(config, 1, 1)
    [remark] = start.fill(model, config)
    assert "left out, as the recipe has no such part: mask_head" in remark
    write_weights(tmp_path / "boxes.safetensors", model, config, [{"id": 1, "name": "nucleus"}], 0)
    before, after, [remark] = filled(tmp_path / "boxes.safetensors", 1)
    assert "beginning anew, as the file has no such part: mask_head" in remark
    assert not any(name.startswith("mask_head") for name in changed(before, after))


def test_weights_of_another_architecture_name_what_does_not_fit_and_what_would(weights):
    message = (
        r"weights.safetensors: does not fit the recipe: backbone.stem.weight is \[8, 3, 7, 7\], the model needs "
        r"\[16, 3, 7, 7\] \(and \d+ more\); these weights are for model.backbone.width = 8"
    )
    with pytest.raises(UserError, match=message):
        filled(weights, 1, **{"model.backbone.width": 16})
    with pytest.raises(UserError, match=r"it lacks mask_head.convs.1.weight"):
        filled(weights, 1, **{"model.mask_head.num_conv": 2})
    with pytest.raises(UserError, match=r"it has mask_head.convs.0.bias, unknown to the model"):
        filled(weights, 1, **{"model.mask_head.num_conv": 0, "model.mask_head.conv_channels": 16})


def test_pixels_that_the_weights_never_saw_are_pointed_out(weights):
    _, _, [remark] = filled(weights, 1, **{"model.pixels.channels": "bgr"})
    assert """to go on in its way: --set 'model.pixels.channels="rgb"'""" in remark


def test_a_state_to_go_on_with_is_no_weights_to_start_from(tiny, tmp_path):
    list(train(prepare(read_config("nuclei_scratch", {**tiny, "train.steps": 1}), tmp_path / "run", "cpu")))
    with pytest.raises(UserError, match="state.safetensors: holds no weights to start from"):
        filled(tmp_path / "run" / "state.safetensors", 1)


def test_a_recipe_that_wants_weights_is_not_trained_without_any(tiny, tmp_path):
    given = {**tiny, "model.backbone.weights": "given"}
    with pytest.raises(UserError, match=r"model.backbone.weights = 'given': .* --weights FILE"):
        prepare(read_config("nuclei_scratch", given), tmp_path / "run", "cpu")


def test_a_run_starts_from_weights_and_goes_on_without_them(tiny, weights, tmp_path):
    overrides = {**tiny, "train.weights": str(weights), "model.backbone.weights": "given", "train.learning_rate": 1e-9}
    run = prepare(read_config("nuclei_scratch", {**overrides, "train.steps": 1}), tmp_path / "run", "cpu")
    assert start.remarks(run) == ()
    list(train(run))
    expected = model_of(tiny_config(), 1, 0).state_dict()["box_head.fcs.0.weight"]
    from mrcnn_cli.engine.checkpoint import load

    trained = load(tmp_path / "run").model.state_dict()["box_head.fcs.0.weight"]
    torch.testing.assert_close(trained, expected, rtol=0, atol=1e-6)
    weights.unlink()
    more = prepare(read_config(tmp_path / "run", {"train.steps": 2}), tmp_path / "run", "cpu")
    assert [step.step for step in train(more, resume=True) if step.kind == "train"] == [2]


def test_a_recipe_comes_with_the_weights_but_not_the_data_that_they_saw(weights):
    config = start.recipe_of(weights, ["train.steps=3"])
    assert config.train.steps == 3
    assert config.model.backbone.width == 8
    assert config.model.num_classes is None
    assert config.data.classes is None


def backbone_file(path, name, keep=lambda key: True):
    """The backbone alone of one of Detectron2's models, all ones; the fourth stage of a C4 model is its head's."""
    entries = json.loads((FOLDER / "models" / f"{name}.json").read_text())["state_dict"]
    state = {}
    for entry in entries:
        key = entry["name"].removeprefix("backbone.bottom_up.").removeprefix("backbone.").removeprefix("roi_heads.")
        if key.startswith(("stem", "res")) and keep(key):
            state[key] = torch.ones(entry["shape"]).numpy()
    path.write_bytes(pickle.dumps({"model": state, "__author__": "someone"}))
    return path


@pytest.mark.parametrize(
    ("record", "recipe", "filled_parts"),
    [
        ("mask_rcnn_R_50_FPN_3x", "mask_rcnn_r50_fpn_3x", ["backbone.stages.3.2.conv3.weight"]),
        (
            "mask_rcnn_R_50_C4_3x",
            "mask_rcnn_r50_c4_3x",
            ["backbone.stages.2.5.conv3.weight", "box_head.stage.2.conv3.weight"],
        ),
        ("mask_rcnn_R_50_FPN_3x", "mask_rcnn_r50_fpn_3x_dconv", ["backbone.stages.3.2.conv2.weight"]),
        ("mask_rcnn_R_50_FPN_3x", "retinanet_r50_fpn_3x", ["backbone.stages.3.2.conv3.weight"]),
    ],
)
def test_a_backbone_alone_fills_the_backbone(tmp_path, record, recipe, filled_parts):
    config = read_config(recipe, {"train.weights": str(backbone_file(tmp_path / "R-50.pkl", record))})
    model = model_of(config, 2, 0)
    [remark] = start.fill(model, config)
    assert "beginning anew, as the file has no such part: " in remark
    state = model.state_dict()
    assert all(bool((state[name] == 1).all()) for name in filled_parts)
    assert state["backbone.stem.norm.running_mean"].eq(1).all()
    offsets = [tensor for name, tensor in state.items() if ".offset." in name]
    assert all(bool((tensor == 0).all()) for tensor in offsets)
    assert bool(offsets) == ("dconv" in recipe)


def test_a_backbone_that_lacks_a_block_does_not_fit(tmp_path):
    path = backbone_file(tmp_path / "R-50.pkl", "mask_rcnn_R_50_FPN_3x", lambda key: not key.startswith("res4.5"))
    config = read_config("mask_rcnn_r50_fpn_3x", {"train.weights": str(path)})
    with pytest.raises(UserError, match=r"R-50.pkl: does not fit .* it lacks backbone.stages.2.5.conv1.weight"):
        start.fill(model_of(config, 2, 0), config)
