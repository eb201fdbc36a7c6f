"""What people get wrong, through the command line: one clear line and status 1 each."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from tests.commands.conftest import TINY, assignments


def refused(outcome, *words):
    assert outcome.status == 1
    assert outcome.out == ""
    for word in words:
        assert word in outcome.error


@pytest.fixture
def train(mrcnn):
    """`mrcnn train` on these annotations, which are beside their images or not."""

    def call(images, annotations, *words):
        settings = assignments(*TINY, "train.steps=1")
        return mrcnn("train", "nuclei_scratch", "--train", images, annotations, "--out", "run", *settings, *words)

    return call


@pytest.fixture
def truth(shapes):
    return json.loads((shapes / "shapes.json").read_text())


def test_predict_without_any_run_says_what_to_do(mrcnn, shapes):
    refused(mrcnn("predict", shapes), "no trained run below runs/; run 'mrcnn train' first", "--weights")


def test_evaluate_without_any_run_says_what_to_do(mrcnn):
    refused(mrcnn("evaluate"), "no trained run below runs/; run 'mrcnn train' first")


def test_predict_of_a_missing_file_names_it(mrcnn, trained):
    refused(mrcnn("predict", "gone.jpg", "--weights", trained), "gone.jpg: no such file or folder")


def test_predict_of_a_folder_without_images_names_it(mrcnn, trained, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(mrcnn("predict", "empty", "--weights", trained), "empty: no images in this folder")


def test_missing_weights_are_named(mrcnn, shapes):
    refused(mrcnn("predict", shapes, "--weights", "gone"), "gone: no such run or checkpoint; 'mrcnn train' makes one")


def test_a_folder_without_weights_is_named(mrcnn, shapes, tmp_path):
    refused(mrcnn("predict", shapes, "--weights", tmp_path), "no weights in this folder yet")


def test_a_file_that_is_no_checkpoint_is_refused(mrcnn, shapes, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"nothing of the kind" * 100)
    refused(mrcnn("predict", shapes, "--weights", "w.safetensors"), "w.safetensors: not a checkpoint, or damaged")


def test_a_checkpoint_that_was_cut_short_is_refused(mrcnn, trained, tmp_path):
    whole = (trained / "best.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(mrcnn("evaluate", "w.safetensors"), "w.safetensors: not a checkpoint, or damaged")


def test_somebody_elses_safetensors_are_refused(mrcnn, tmp_path):
    safetensors.torch.save_file({"weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    refused(mrcnn("evaluate", "w.safetensors"), "w.safetensors: its tensors (weight, ...) are named as in none of the")


def test_the_state_of_the_optimiser_is_no_checkpoint_to_predict_with(mrcnn, trained, shapes):
    outcome = mrcnn("predict", shapes, "--weights", trained / "state.safetensors")
    refused(outcome, "state.safetensors: holds no weights to predict with", "give best.safetensors")


def test_weights_of_another_class_count_are_refused(mrcnn, trained, tmp_path):
    with safe_open(trained / "best.safetensors", framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    about["categories"] = json.dumps([{"id": number, "name": f"class {number}"} for number in range(1, 6)])
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors", about)
    refused(mrcnn("evaluate", "w.safetensors"), "w.safetensors: does not fit the model", "number of classes")


def test_weights_whose_recipe_is_changed_do_not_fit(mrcnn, trained):
    outcome = mrcnn("evaluate", trained, "--set", "model.box_head.fc_channels=32")
    refused(outcome, "best.safetensors: does not fit the model: box_head")


def test_a_run_of_another_recipe_is_not_gone_on_with(mrcnn, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    outcome = mrcnn("train", "--resume", "run", "--set", "model.fpn.channels=24", "--set", "train.steps=3")
    refused(outcome, "run/state.safetensors: does not fit the recipe beside it")


@pytest.mark.parametrize("verb", ["train", "predict", "evaluate"])
def test_a_folder_that_cannot_be_made_is_named(mrcnn, train, trained, shapes, tmp_path, verb):
    (tmp_path / "file").write_text("in the way")
    if verb == "train":
        outcome = mrcnn(
            *("train", "nuclei_scratch", "--train", shapes, shapes / "shapes.json"),
            *("--out", "file/run", *assignments(*TINY, "train.steps=1")),
        )
    else:
        images = [shapes] if verb == "predict" else []
        named = ["--weights", trained] if verb == "predict" else [trained]
        outcome = mrcnn(verb, *images, *named, "--out", "file/out")
    refused(outcome, "file/", "Not a directory", "--out")


def test_a_missing_annotation_file_is_named(train, shapes):
    refused(train(shapes, "gone.json"), "gone.json")


def test_a_file_that_is_not_json_is_refused(train, shapes, tmp_path):
    (tmp_path / "a.json").write_text("{")
    refused(train(shapes, "a.json"), "a.json", "JSON")


def test_json_that_is_not_coco_is_refused(train, shapes, tmp_path):
    (tmp_path / "a.json").write_text('{"photos": []}')
    refused(train(shapes, "a.json"), "a.json", "COCO")


def test_an_image_that_is_listed_but_absent_is_named(train, truth, shapes, tmp_path):
    truth["images"][2]["file_name"] = "absent.png"
    (tmp_path / "a.json").write_text(json.dumps(truth))
    refused(train(shapes, "a.json"), "absent.png")


def test_annotations_without_objects_leave_nothing_to_learn(train, truth, shapes, tmp_path):
    truth["annotations"] = []
    (tmp_path / "a.json").write_text(json.dumps(truth))
    refused(train(shapes, "a.json"), "a.json: no image has an object to learn from")


def test_an_unknown_category_is_refused(train, truth, shapes, tmp_path):
    truth["annotations"][1]["category_id"] = 99
    (tmp_path / "a.json").write_text(json.dumps(truth))
    refused(train(shapes, "a.json"), "a.json", "99")


def test_an_image_that_is_none_ends_training_with_its_name(train, truth, shapes, tmp_path):
    (tmp_path / "bad.png").write_bytes((shapes / "1.png").read_bytes()[:-60])
    for image in truth["images"]:
        image["file_name"] = "bad.png"
    (tmp_path / "a.json").write_text(json.dumps(truth))
    outcome = train(tmp_path, "a.json")
    assert outcome.status == 1
    assert "bad.png: damaged or cut short" in outcome.error


def test_faulty_boxes_are_left_out_with_a_counted_warning(train, truth, shapes, tmp_path):
    truth["annotations"][0]["bbox"] = [5, 5, 0, 10]
    truth["annotations"][1]["bbox"] = [200, 200, 10, 10]
    (tmp_path / "a.json").write_text(json.dumps(truth))
    outcome = train(shapes, "a.json")
    assert outcome.status == 0
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    zero, outside = warnings
    assert zero.startswith("warning: 1 annotation with a box of zero area left out (first: ")
    assert outside.startswith("warning: 1 annotation with a box outside of its image left out (first: ")


def test_a_recipe_with_another_number_of_classes_than_the_data_is_refused(train, shapes):
    outcome = train(shapes, shapes / "shapes.json", "--set", "model.num_classes=5")
    refused(outcome, "model.num_classes = 5", "has 2 classes (square, disc); leave the key out")


def test_an_unknown_recipe_names_the_closest(mrcnn):
    refused(mrcnn("train", "nucli"), "nucli: no such recipe or file; did you mean 'nuclei'?")


def test_an_unknown_key_names_the_closest(mrcnn):
    refused(mrcnn("train", "nuclei", "--set", "train.bach_size=3"), "unknown key; did you mean 'batch_size'?")


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta"])
def test_a_device_that_is_not_there_is_refused(mrcnn, trained, device):
    refused(mrcnn("evaluate", trained, "--device", device), f"--device {device}: not usable here")


def test_pasting_objects_without_masks_is_refused(train, shapes, truth, tmp_path):
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(truth))
    model = assignments(
        "data.augment.copy_paste=0.5", "model={name='faster_rcnn',backbone={name='resnet18',norm='batch_norm'}}"
    )
    refused(
        train(shapes, tmp_path / "boxes.json", *model), "data.augment.copy_paste", "boxes.json has boxes but no masks"
    )


@pytest.fixture
def decaying(shapes, truth, tmp_path):
    """A copy of the shapes whose third picture is cut short, and their annotations."""
    shutil.copytree(shapes, tmp_path / "decaying")
    (tmp_path / "decaying" / "3.png").write_bytes((shapes / "3.png").read_bytes()[:-60])
    return tmp_path / "decaying"


def test_an_image_that_breaks_mid_epoch_ends_training_with_its_name_and_keeps_what_was_saved(train, decaying, tmp_path):
    settings = assignments("train.steps=4", "train.save_every=1", "train.batch_size=1", "train.seed=1")
    outcome = train(decaying, decaying / "shapes.json", *settings)
    refused(outcome, "3.png: damaged or cut short")
    assert (tmp_path / "run" / "state.safetensors").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_skipped_named_and_counted_only_where_that_is_asked_for(train, decaying, tmp_path, workers):
    (decaying / "1.png").unlink()
    (decaying / "1.png").write_bytes(b"no picture")
    settings = assignments("train.steps=8", "data.skip_broken=true", f"data.workers={workers}")
    outcome = train(decaying, decaying / "shapes.json", *settings)
    assert outcome.status == 0
    said = [line for line in outcome.err.splitlines() if line.startswith("skipped: ")]
    assert len(said) == 2
    assert sum("3.png: damaged or cut short" in line for line in said) == 1
    assert sum("1.png: is not an image" in line for line in said) == 1
    assert said[1].endswith("(2 so far)")
    assert "warning: 2 pictures were skipped, unreadable (data.skip_broken)" in outcome.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["count"] for row in rows if row["kind"] == "skipped"] == [1, 2]
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 9))
