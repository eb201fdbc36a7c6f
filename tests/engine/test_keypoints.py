"""Keypoint R-CNN from the data to the pictures: what a run checks, and what it leaves behind."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.loader import SplitConfig, training_batches
from mrcnn_cli.engine import library
from mrcnn_cli.engine.checkpoint import load
from mrcnn_cli.engine.data_check import Source
from mrcnn_cli.engine.data_view import view_data, view_samples
from mrcnn_cli.engine.evaluate import evaluate
from mrcnn_cli.engine.files import read_rows
from mrcnn_cli.engine.predict import predict_files
from mrcnn_cli.engine.run import prepare, read_config, wanted_keypoints
from mrcnn_cli.errors import UserError
from mrcnn_cli.evaluation import coco

NAMES = ["snout", "left_ear", "right_ear", "tail"]
SMALL = {
    "model.backbone": {"name": "resnet18", "width": 8, "norm": "batch_norm"},
    "model.fpn.channels": 16,
    "model.rpn.post_nms_top_n_train": 50,
    "model.rpn.post_nms_top_n": 20,
    "model.box_head.fc_channels": 32,
    "model.box_head.samples_per_image": 16,
    "model.box_head.detections_per_image": 5,
    "model.keypoint_head.num_conv": 1,
    "model.keypoint_head.conv_channels": 8,
    "data.resize": {"short_side": 96},
    "data.augment.short_sides": [96],
    "data.augment.crop": 96,
    "data.workers": 0,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.warmup_steps": 1,
}


class Mice:
    """Pictures of 96 x 128 pixels with a bright bar each, its ends and sides marked; with masks on demand."""

    def __init__(self, folder, count=4):
        self.folder, self.path = folder, folder / "mice.json"
        category = {"id": 2, "name": "mouse", "keypoints": list(NAMES), "skeleton": [[1, 2], [1, 3], [2, 4], [3, 4]]}
        self.content = {"images": [], "annotations": [], "categories": [category]}
        random = np.random.default_rng(0)
        for number in range(1, count + 1):
            x, y = random.integers(8, 60, 2).tolist()
            picture = np.full((96, 128, 3), 30, np.uint8)
            picture[y : y + 24, x : x + 48] = (200, 180, 160)
            Image.fromarray(picture).save(folder / f"{number}.png")
            self.content["images"].append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 128})
            points = [x + 46, y + 12, 2, x + 40, y + 2, 2, x + 40, y + 21, 1, x + 1, y + 12, 2]
            outline = [x, y, x + 48, y, x + 48, y + 24, x, y + 24]
            annotation = {"id": number, "image_id": number, "category_id": 2, "bbox": [x, y, 48, 24], "area": 1152}
            self.content["annotations"].append({**annotation, "keypoints": points, "segmentation": [outline]})

    @property
    def category(self):
        return self.content["categories"][0]

    def overrides(self, **more):
        self.path.write_text(json.dumps(self.content))
        keys = {f"data.{split}.{key}": str(value) for split in ("train", "val") for key, value in self.split().items()}
        return {**SMALL, **keys, **more}

    def split(self):
        return {"images": self.folder, "annotations": self.path}

    def prepare(self, recipe="keypoint_rcnn_r50_fpn_1x", **more):
        return prepare(read_config(recipe, self.overrides(**more)), self.folder / "run", "cpu")


@pytest.fixture
def mice(tmp_path):
    return Mice(tmp_path)


def test_a_run_takes_names_sides_and_sigmas_from_the_data(mice):
    run = mice.prepare()
    keypoints = run.config.data.keypoints
    assert run.config.model.num_keypoints == 4
    assert keypoints.names == tuple(NAMES)
    assert keypoints.flip_pairs == (("left_ear", "right_ear"),)
    assert keypoints.lines() == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert run.config.evaluate.keypoint_sigmas == (0.05,) * 4
    assert run.warnings == ()
    assert mice.prepare(**{"evaluate.keypoint_sigmas": 0.1}).config.evaluate.keypoint_sigmas == (0.1,) * 4


def test_other_models_pass_keypoints_over(mice):
    mice.content["annotations"][0]["keypoints"] = "faulty"
    overrides = {key: value for key, value in mice.overrides().items() if "keypoint" not in key}
    run = prepare(read_config("faster_rcnn_r50_fpn_1x", overrides), mice.folder / "run", "cpu")
    assert run.train.keypoints is None
    assert run.config.data.keypoints.names is None


def test_a_model_of_boxes_is_evaluated_on_boxes_though_its_data_has_more(mice):
    overrides = {key: value for key, value in mice.overrides(**{"train.steps": 1}).items() if "keypoint" not in key}
    *_, evaluation = library.train("faster_rcnn_lite0_fpn", overrides, out=mice.folder / "run", device="cpu")
    assert evaluation.values["box_ap"] is not None
    assert not {"mask_ap", "keypoint_ap"} & set(evaluation.values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.num_keypoints", 17, r"model.num_keypoints = 17, but .*mice.json has 4 \(snout, .*num_keypoints=4"),
        ("data.keypoints.names", ["a", "b", "c", "d"], "its keypoints .* are not those of the model"),
        ("evaluate.keypoint_sigmas", [0.1, 0.2], "evaluate.keypoint_sigmas: has 2 values, but there are 4 keypoints"),
        ("evaluate.keypoint_sigmas", 0, "evaluate.keypoint_sigmas.*greater than 0"),
        ("data.keypoints.flip_pairs", [["left_ear", "tail_end"]], "flip_pairs has 'tail_end', which is not among"),
    ],
)
def test_a_recipe_that_does_not_fit_the_keypoints_is_refused(mice, key, value, message):
    with pytest.raises(UserError, match=message):
        mice.prepare(**{key: value})


def test_data_without_named_or_labelled_keypoints_is_refused(mice):
    for annotation in mice.content["annotations"]:
        annotation["keypoints"] = [0] * 12
    with pytest.raises(UserError, match="mice.json: no keypoint is labelled; keypoint_rcnn needs annotations"):
        mice.prepare()
    del mice.category["keypoints"]
    with pytest.raises(UserError, match="mice.json: names no keypoints, which keypoint_rcnn needs; give its category"):
        mice.prepare()


def test_masks_are_asked_for_where_the_model_has_them(mice):
    mice.prepare(**{"model.mask_head.num_conv": 1})
    for annotation in mice.content["annotations"]:
        del annotation["segmentation"]
    mice.prepare()
    with pytest.raises(UserError, match="no masks .*which keypoint_rcnn needs; take a recipe of keypoint_rcnn or"):
        mice.prepare(**{"model.mask_head.num_conv": 1})


def test_a_mirror_without_sides_is_warned_of(mice):
    mice.category["keypoints"] = ["a", "b", "c", "d"]
    [warning] = mice.prepare().warnings
    assert warning.startswith("none of the keypoints (a, b, c, d) is a left or right one by its name")
    assert not mice.prepare(**{"data.augment.flip": 0.0}).warnings
    assert not mice.prepare(**{"data.keypoints.flip_pairs": [["b", "c"]]}).warnings


def test_images_without_keypoints_are_not_trained_on_by_the_recipes_for_coco(mice):
    mice.content["annotations"][1]["keypoints"] = [0] * 12  # of an object without a keypoint
    del mice.content["annotations"][3]  # an image without an object
    run = mice.prepare()
    assert run.warnings == (
        "2 of 4 images have fewer than 1 labelled keypoints and are not trained on (data.keypoints.min_labelled)",
    )
    batches = training_batches(run.train, run.config.data, batch_size=2, seed=0, steps=4)
    assert {target.image_id for _, targets in batches for target in targets} == {1, 3}
    everything = mice.prepare(**{"data.keypoints.min_labelled": 0})
    assert everything.warnings == ()
    batches = training_batches(everything.train, everything.config.data, batch_size=2, seed=0, steps=4)
    assert {target.image_id for _, targets in batches for target in targets} == {1, 2, 3, 4}
    with pytest.raises(UserError, match="no image has the 5 labelled keypoints that data.keypoints.min_labelled asks"):
        mice.prepare(**{"data.keypoints.min_labelled": 5})


@pytest.fixture(scope="module", params=["alone", "with masks"])
def trained(request, tmp_path_factory):
    """(the data, the folder of a run of two steps) of the model alone and with masks."""
    mice = Mice(tmp_path_factory.mktemp("mice"))
    more = {"model.mask_head": {"num_conv": 1, "conv_channels": 8}} if request.param == "with masks" else {}
    overrides = mice.overrides(**more, **{"model.box_head.score_threshold": 0.0, "predict.score_threshold": 0.0})
    folder = mice.folder / "run"
    list(library.train("keypoint_rcnn_lite0_fpn", overrides, out=folder, device="cpu"))
    return mice, folder


def test_a_run_writes_the_precision_of_its_keypoints(trained):
    _, folder = trained
    rows = read_rows(folder / "metrics.jsonl")
    steps, [evaluation] = rows[:-1], rows[-1:]
    assert all(row["loss_keypoint"] > 0 for row in steps)
    assert 0 <= evaluation["keypoint_ap"] <= evaluation["keypoint_ap50"] <= 1
    assert evaluation["keypoint_sigmas"] == [0.05] * 4
    assert (folder / "losses.png").is_file()


def test_a_checkpoint_evaluates_as_its_run_did_and_by_other_sigmas(trained):
    mice, folder = trained
    checkpoint = load(folder)
    dataset = Dataset.read(
        mice.folder, mice.path, classes=checkpoint.classes, keypoints=wanted_keypoints(checkpoint.config)
    )
    metrics, results = evaluate(checkpoint.model, checkpoint.config, dataset, checkpoint.device)
    assert metrics["keypoint_ap"] == pytest.approx(read_rows(folder / "metrics.jsonl")[-1]["keypoint_ap"])
    assert ("mask_ap" in metrics) is (checkpoint.config.model.mask_head is not None)
    again = coco.evaluate(json.loads(mice.path.read_text()), results, masks=False, keypoint_sigmas=[0.05] * 4)
    assert again["keypoint_ap"] == pytest.approx(metrics["keypoint_ap"])
    wide = load(folder, overrides=["evaluate.keypoint_sigmas=10"])
    assert evaluate(wide.model, wide.config, dataset, wide.device)[0]["keypoint_ap50"] > metrics["keypoint_ap50"]


def test_predictions_hold_keypoints_in_pixels_of_the_file(trained, tmp_path):
    mice, folder = trained
    checkpoint = load(folder)
    files = sorted(mice.folder.glob("?.png"))
    done = list(predict_files(checkpoint, files, tmp_path / "out"))
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(entries) == sum(len(prediction.detections) for prediction in done) > 0
    first = done[0].detections
    assert first.keypoints.shape == (len(first), 4, 3)
    flat = np.array(entries[0]["keypoints"]).reshape(4, 3)
    np.testing.assert_allclose(flat[:, :2] + 0.5, first.keypoints[0, :, :2], atol=1e-4)
    np.testing.assert_allclose(flat[:, 2], first.keypoints[0, :, 2], rtol=1e-5)
    assert all(len(entry["keypoints"]) == 12 for entry in entries)
    assert all(prediction.overlay.is_file() for prediction in done)


def test_resuming_goes_on_with_the_keypoints_of_the_run(trained):
    _, folder = trained
    config = read_config(folder, ["train.steps=3"])
    assert config.data.keypoints.names == tuple(NAMES)
    assert prepare(config, folder, "cpu").config.model.num_keypoints == 4


def blocks(page):
    """The JSON of a page of `mrcnn data view`: what all share, and each picture's."""
    found = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', page.read_text(), re.S)
    return {name: json.loads(text) for name, text in found}


def test_the_page_of_a_data_set_shows_its_keypoints_and_those_of_predictions(mice, tmp_path):
    mice.content["annotations"][2]["keypoints"] = "faulty"
    mice.overrides()
    annotation = mice.content["annotations"][0]
    x, y = annotation["keypoints"][:2]
    entry = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
    keypoints = [x, y, 0.9, x, y, 0.01, x, y, 0.5, x, y, float("nan")]
    found = {**entry, "file_name": "1.png", "score": 0.9, "keypoints": keypoints}
    (tmp_path / "found.json").write_text(json.dumps([found]))
    source = Source("mice", {"val": SplitConfig(**mice.split())})
    view_data(source, tmp_path / "page.html", limit=10, predictions=tmp_path / "found.json", workers=0)
    page = blocks(tmp_path / "page.html")
    assert page["index"]["keypoints"] == NAMES
    assert page["index"]["lines"] == [[0, 1], [0, 2], [1, 3], [2, 3]]
    assert page["image-0"]["objects"][0][-1][0] == [x + 0.5, y + 0.5]
    assert page["image-0"]["predictions"][0][-1] == [[x + 0.5, y + 0.5], None, [x + 0.5, y + 0.5], None]
    assert page["image-2"]["objects"][0][-1] == []


def test_the_page_of_training_samples_shows_them_as_the_network_learns_them(mice, tmp_path):
    config = read_config("keypoint_rcnn_r50_fpn_1x", mice.overrides(**{"data.augment.flip": 1.0}))
    source = Source("mice", {"train": SplitConfig(**mice.split())})
    view_samples(source, tmp_path / "page.html", config, "some recipe", count=2)
    sample = blocks(tmp_path / "page.html")["image-0"]["objects"][0]
    left, right = sample[-1][1], sample[-1][2]
    assert left[1] > right[1]  # below, where the right one was
