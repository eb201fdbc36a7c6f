"""Proposals from the command line: a network that finds them, the file, and Fast R-CNN that reads it."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mrcnn_cli
from mrcnn_cli.__main__ import main
from mrcnn_cli.data.proposals import read_proposals
from tests.commands.conftest import assignments

TINY = (
    'model.backbone={name="resnet18", width=8, norm="batch_norm"}',
    "model.fpn.channels=16",
    "data.resize={scale=1.0}",
    "data.augment={crop=64}",
    "data.workers=0",
    "train.batch_size=2",
    "train.warmup_steps=1",
    "train.steps=2",
)
PROPOSING = (*TINY, "model.anchors.sizes=[[8], [16], [32], [64], [128]]", "model.rpn.post_nms_top_n=200")
GIVEN = (*TINY, "model.box_head.fc_channels=16")


@pytest.fixture(scope="module")
def lone(shapes, tmp_path_factory):
    """The run of a region proposal network."""
    folder = tmp_path_factory.mktemp("lone") / "run"
    data = [word for flag in ("--train", "--val") for word in (flag, str(shapes), str(shapes / "shapes.json"))]
    assert main(["train", "rpn_r50_fpn_1x", *data, "--out", str(folder), *assignments(*PROPOSING)]) == 0
    return folder


@pytest.fixture(scope="module")
def found(shapes, lone, tmp_path_factory):
    """Its proposals for the shapes."""
    path = tmp_path_factory.mktemp("found") / "proposals.safetensors"
    words = ["--data", str(shapes), str(shapes / "shapes.json"), "--weights", str(lone), "--out", str(path)]
    assert main(["proposals", *words]) == 0
    return path


def given(path):
    return assignments(f"data.train.proposals={path}", f"data.val.proposals={path}")


def test_a_network_of_proposals_is_measured_by_recall_alone(mrcnn, lone):
    rows = [json.loads(line) for line in (lone / "metrics.jsonl").read_text().splitlines()]
    assert set(rows[0]) >= {"loss_rpn_objectness", "loss_rpn_box"}
    assert not set(rows[0]) & {"loss_class", "loss_box"}
    metrics = mrcnn("evaluate", lone, "--json").json
    assert metrics == {key: rows[-1][key] for key in metrics}
    assert "box_ap" not in metrics
    assert 0 <= metrics["proposal_ar100"] <= metrics["proposal_ar1000"] <= 1
    assert metrics["objects"] == 8
    shown = mrcnn("evaluate", lone, "--out", "kept").out
    assert [path.name for path in Path("kept").iterdir()] == ["metrics.json"]
    assert "Average recall: 4 images, 8 objects, " in shown
    assert (lone / "losses.png").stat().st_size > 1000


def test_a_network_of_proposals_goes_on_where_it_stopped(mrcnn, shapes, own_data):
    assert mrcnn("train", "rpn_r50_fpn_1x", *own_data, "--out", "run", *assignments(*PROPOSING)).status == 0
    longer = mrcnn("train", "--resume", "run", "--set", "train.steps=3")
    assert longer.status == 0, longer.err
    assert "1: object" in longer.err


def test_what_it_finds_is_drawn_as_objects(mrcnn, shapes, lone):
    outcome = mrcnn("predict", shapes / "1.png", "--weights", lone, "--score", "0", "--json")
    assert outcome.status == 0, outcome.err
    assert set(outcome.json["images"][0]["objects"]) == {"object"}


def test_the_file_holds_each_images_proposals_and_says_what_they_cover(mrcnn, shapes, lone, found):
    proposals = read_proposals(found)
    assert proposals.image_ids.tolist() == [1, 2, 3, 4]
    assert proposals.file_names == ("1.png", "2.png", "3.png", "4.png")
    assert (proposals.sizes == 64).all()
    assert (np.diff(proposals.first) > 0).all()
    assert (np.diff(proposals.first) <= 200).all()
    boxes = proposals.boxes
    assert (boxes >= 0).all()
    assert (boxes <= 64).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert ((proposals.scores > 0) & (proposals.scores < 1)).all()
    words = ["--data", shapes, shapes / "shapes.json", "--weights", lone, "--out", "few/p.safetensors", "--json"]
    few = mrcnn("proposals", *words, "--set", "model.rpn.post_nms_top_n=7").json
    assert few["proposals"] == 28
    assert few["metrics"]["objects"] == 8
    assert read_proposals(Path(few["out"])).first.tolist() == [0, 7, 14, 21, 28]
    whole = mrcnn("evaluate", lone, "--json").json
    assert mrcnn("proposals", *words).json["metrics"] == whole


def test_any_model_with_such_a_network_makes_proposals_for_pictures(mrcnn, shapes, trained, found):
    outcome = mrcnn("proposals", shapes, "--weights", trained, "--json")
    assert outcome.status == 0, outcome.err
    proposals = read_proposals(Path("proposals.safetensors"))
    assert proposals.image_ids.tolist() == [-1] * 4
    assert [proposals.place(9, f"{n}.png") for n in range(1, 5)] == [0, 1, 2, 3]


def test_fast_rcnn_trains_evaluates_and_predicts_on_given_proposals(mrcnn, shapes, own_data, found):
    trained = mrcnn(
        "train", "fast_rcnn_r50_fpn_1x", *own_data, "--out", "run", "--json", *assignments(*GIVEN), *given(found)
    )
    assert trained.status == 0, trained.err
    metrics = trained.json["metrics"]
    assert mrcnn("evaluate", "run", "--json").json == metrics
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {key for key in rows[0] if key.startswith("loss_")} == {"loss_class", "loss_box"}
    predicted = mrcnn("predict", shapes, "--weights", "run", "--proposals", found, "--score", "0", "--json")
    assert predicted.status == 0, predicted.err
    assert sum(sum(image["objects"].values()) for image in predicted.json["images"]) > 0
    missing = mrcnn("predict", shapes, "--weights", "run")
    assert missing.error.startswith("run/best.safetensors: fast_rcnn finds no proposals of its own; make them with")
    model = mrcnn_cli.load("run", device="cpu")
    boxes = read_proposals(found)[0]
    [one] = mrcnn_cli.predict(model, [shapes / "1.png"], 0.0, proposals=[boxes])
    results = json.loads(Path("predictions/predictions.json").read_text())
    first = [entry for entry in results if entry["file_name"].endswith("1.png")]
    assert [entry["score"] for entry in first] == pytest.approx(one.scores.tolist(), abs=1e-6)
    with pytest.raises(mrcnn_cli.UserError, match="proposals of 2 pictures were given for 1"):
        mrcnn_cli.predict(model, [shapes / "1.png"], proposals=[boxes, boxes])
    with pytest.raises(mrcnn_cli.UserError, match=r"must be \[P, 4\], got an array of shape \[4\]"):
        mrcnn_cli.predict(model, [shapes / "1.png"], proposals=[boxes[0]])
    with Image.open(shapes / "1.png") as picture:
        picture.resize((128, 96)).save("1.png")
    larger = mrcnn("predict", "1.png", "--weights", "run", "--proposals", found)
    assert "was made for other images: 1.png was 64 x 64 and is 128 x 96; make the proposals anew" in larger.error
    without = mrcnn("proposals", shapes, "--weights", "run")
    assert "fast_rcnn has no region proposal network" in without.error


def test_fast_rcnn_learns_the_same_from_detectrons_pickle(mrcnn, own_data, found):
    proposals = read_proposals(found)
    parts = [slice(*proposals.first[i : i + 2]) for i in range(4)]
    content = {
        "ids": proposals.image_ids.tolist(),
        "boxes": [proposals.boxes[part] for part in parts],
        "objectness_logits": [proposals.scores[part] for part in parts],
    }
    Path("p.pkl").write_bytes(pickle.dumps(content))
    losses = []
    for path in (found, "p.pkl"):
        words = ["train", "fast_rcnn_r50_fpn_1x", *own_data, "--out", f"run{len(losses)}"]
        assert mrcnn(*words, *assignments(*GIVEN), *given(path)).status == 0
        lines = Path(f"run{len(losses)}/metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line).get("loss") for line in lines])
    assert losses[0] == losses[1]


def test_fast_rcnn_learns_from_pictures_composed_of_several(mrcnn, own_data, found):
    composed = assignments(*GIVEN, "data.augment={crop=64, mosaic=1.0, copy_paste=1.0}")
    trained = mrcnn("train", "fast_rcnn_r50_fpn_1x", *own_data, "--out", "run", *composed, *given(found))
    assert trained.status == 0, trained.err


@pytest.mark.parametrize(
    ("recipe", "pairs", "message"),
    [
        (
            "fast_rcnn_r50_fpn_1x",
            [],
            "data.train.proposals: is missing, and fast_rcnn finds none of its own; make them",
        ),
        (
            "fast_rcnn_r50_fpn_1x",
            ["data.train.proposals={found}"],
            "data.val.proposals: is missing, and fast_rcnn finds none of its own; make them",
        ),
        (
            "faster_rcnn_r50_fpn_1x",
            ["data.train.proposals={found}"],
            "data.train.proposals: faster_rcnn finds its own proposals; leave the key out",
        ),
        ("fast_rcnn_r50_fpn_1x", ["data.train.proposals=nothing"], "nothing: cannot be read: No such file"),
        ("rpn_r50_fpn_1x", ["model.num_classes=2"], "model.num_classes"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(mrcnn, own_data, found, recipe, pairs, message):
    failed = mrcnn("train", recipe, *own_data, *assignments(*(pair.format(found=found) for pair in pairs)))
    assert failed.status == 1
    assert message in failed.error


def test_proposals_that_miss_images_name_them(mrcnn, shapes, own_data, found, lone):
    only = mrcnn("proposals", shapes / "2.png", "--weights", lone, "--out", "only.safetensors")
    assert only.status == 0, only.err
    failed = mrcnn("train", "fast_rcnn_r50_fpn_1x", *own_data, *given("only.safetensors"))
    assert failed.error == (
        f"only.safetensors: has no proposals for 3 of the 4 images of {shapes}/shapes.json: 1.png (id 1), "
        "3.png (id 3), 4.png (id 4); make them with 'mrcnn proposals'"
    )


def test_images_and_data_exclude_each_other(mrcnn, shapes):
    for words in ([], [shapes, "--data", shapes, shapes / "shapes.json"]):
        failed = mrcnn("proposals", *words)
        assert failed.status == 2
        assert "give either IMAGES or --data DIR ANNOTATIONS" in failed.err


def test_proposals_without_images_are_refused(mrcnn, found):
    failed = mrcnn("train", "fast_rcnn_r50_fpn_1x", "--set", f"data.train.proposals={found}")
    assert "data.train: has proposals but no images and annotations: give them too" in failed.error
