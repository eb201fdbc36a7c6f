"""`mrcnn weights`: what a file of weights is, and files of other systems in our form."""

import json
import pickle

import numpy as np
import pytest
from safetensors import safe_open

from tests.commands.conftest import TINY, assignments
from tests.commands.test_bad_input import refused
from tests.models.detectron2_oracle import FOLDER, fill


@pytest.fixture(scope="session")
def detectron2_file(tmp_path_factory):
    """Faster R-CNN of Detectron2 with a buffer that older versions saved."""
    spec = json.loads((FOLDER / "models" / "faster_rcnn_R_50_FPN_3x.json").read_text())
    state = fill().fill_from_json(spec) | {"pixel_mean": np.zeros((3, 1, 1), "f4")}
    path = tmp_path_factory.mktemp("detectron2") / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))
    return path


def test_a_file_of_another_system_is_shown(mrcnn, detectron2_file):
    outcome = mrcnn("weights", "show", detectron2_file)
    assert outcome.status == 0
    for words in ("Detectron2", "faster_rcnn, resnet50, frozen_batch_norm", "bgr, mean 103.53", "80: person, bicycle"):
        assert words in outcome.out
    assert "pixel_mean" in outcome.out
    about = mrcnn("weights", "show", detectron2_file, "--json").json
    assert len(about["classes"]) == 80
    assert {part["part"]: part["tensors"] for part in about["parts"]}["rpn"] == 6
    assert {"name": "rpn.logits.bias", "source": "proposal_generator.rpn_head.objectness_logits.bias", "shape": [3],
            "type": "float32"} in about["tensors"]  # fmt: skip
    assert about["left_out"] == {"pixel_mean": "is computed anew"}


def test_a_run_and_its_state_are_shown(mrcnn, trained):
    assert "mask_rcnn, resnet18, batch_norm" in mrcnn("weights", "show", trained).out
    assert "the state of a run" in mrcnn("weights", "show", trained / "state.safetensors").out
    assert "mask_head.logits.weight" in mrcnn("weights", "show", trained, "--tensors").out


def test_a_converted_file_predicts_what_the_original_does(mrcnn, detectron2_file, shapes, tmp_path):
    outcome = mrcnn("weights", "convert", detectron2_file, "converted.safetensors", "--json")
    assert outcome.status == 0
    assert outcome.json["left_out"] == {"pixel_mean": "is computed anew"}
    with safe_open(tmp_path / "converted.safetensors", framework="pt") as file:
        about = file.metadata()
    assert about["origin"] == "Detectron2"
    assert 'method = "pillow"' in about["config"]
    small = assignments("data.resize.short_side=64", "model.rpn.post_nms_top_n=50", "predict.score_threshold=0.05")
    results = []
    for number, weights in enumerate((detectron2_file, "converted.safetensors")):
        outcome = mrcnn("predict", shapes / "1.png", "--weights", weights, "--out", f"found{number}", *small)
        assert outcome.status == 0
        results.append(json.loads((tmp_path / f"found{number}" / "predictions.json").read_text()))
    assert results[0] == results[1]
    assert len(results[0]) > 5
    assert "converted from Detectron2" in mrcnn("weights", "show", "converted.safetensors").out


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(mrcnn, detectron2_file, trained, tmp_path):
    refused(mrcnn("weights", "convert", trained, "new.safetensors"), "is a checkpoint of mrcnn already")
    refused(mrcnn("weights", "convert", detectron2_file, "new.pth"), "new.pth: checkpoints are .safetensors files")
    outcome = mrcnn("weights", "convert", detectron2_file, "new.safetensors", "--recipe", "mask_rcnn_r50_fpn_3x")
    refused(outcome, "does not fit the model: it lacks mask_head")
    refused(
        mrcnn("weights", "convert", detectron2_file, "gone/new.safetensors"), "gone/new.safetensors: cannot be written"
    )
    assert not list(tmp_path.glob("**/new*"))


def test_training_goes_on_from_a_foreign_file_with_its_own_recipe(mrcnn, detectron2_file, shapes):
    small = (
        "data.resize.short_side=64",
        "train.steps=1",
        "train.batch_size=1",
        "data.workers=0",
        "train.warmup_steps=0",
    )
    data = ("--train", shapes, shapes / "shapes.json")
    outcome = mrcnn("train", "--weights", detectron2_file, *data, "--out", "run", *assignments(*small))
    assert outcome.status == 0, outcome.err
    assert "another number of classes: box_head.logits, box_head.deltas begin anew" in outcome.err
    assert mrcnn("predict", shapes / "1.png", "--weights", "run").status == 0


def test_a_run_starts_from_another_run(mrcnn, trained, shapes):
    data = ("--train", shapes, shapes / "shapes.json")
    settings = assignments(*TINY, "train.steps=1")
    outcome = mrcnn("train", "nuclei_scratch", "--weights", trained, *data, "--out", "run", *settings)
    assert outcome.status == 0
    assert "anew" not in outcome.err
    refused(mrcnn("train", "nuclei_scratch", "--weights", "gone.pth", *data), "gone.pth: no such run or checkpoint")
