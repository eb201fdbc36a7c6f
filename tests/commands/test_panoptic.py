"""A panoptic model from the command line: trained on two steps of pictures of 64 x 80, evaluated, shown."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrcnn_cli.__main__ import main
from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.panoptic import read_ids
from mrcnn_cli.engine import library
from mrcnn_cli.evaluation.panoptic import PanopticQuality
from tests import panoptic_shapes
from tests.commands.conftest import assignments

# A network of milliseconds; with thresholds so low that what has learnt nothing finds something.
TINY = (
    'model.backbone={name="resnet18", width=8, norm="batch_norm"}',
    "model.fpn.channels=16",
    "model.rpn.post_nms_top_n=20",
    "model.box_head.fc_channels=32",
    "model.box_head.score_threshold=0.0",
    "model.box_head.detections_per_image=5",
    "model.mask_head.conv_channels=16",
    "model.semantic_head.conv_channels=16",
    "model.merging={score_threshold=0.1, min_stuff_area=20}",
    "data.resize.scale=1.0",
    "data.augment={crop=64}",
    "data.workers=0",
    "train.batch_size=2",
    "train.warmup_steps=1",
    "train.steps=2",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return panoptic_shapes.write(tmp_path_factory.mktemp("panoptic"), 4)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["panoptic_fpn_r50_3x", "--train", *data, "--val", *data, "--out", folder, *assignments(*TINY)]
    assert main(["train", *map(str, words)]) == 0
    return folder


def test_training_writes_its_losses_and_panoptic_quality(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss_semantic"] > 0 for row in rows if row["kind"] == "train")
    assert {"pq", "sq_things", "rq_stuff", "mask_ap", "box_ap"} <= set(rows[-1])
    assert set(rows[-1]["classes"]) == {"square", "disc", "sky", "grass"}
    checkpoint = library.load(trained, "cpu")
    assert checkpoint.classes == ("square", "disc")
    assert checkpoint.stuff_classes == ("sky", "grass")
    assert checkpoint.config.model.num_stuff == 2


def test_evaluation_shows_panoptic_quality_of_all_of_things_and_of_stuff(mrcnn, trained):
    outcome = mrcnn("evaluate", trained)
    assert outcome.status == 0
    lines = [line.split() for line in outcome.out.splitlines()]
    first = lines.index(["PQ", "SQ", "RQ", "classes"])
    assert [line[0] for line in lines[first + 1 : first + 4]] == ["all", "things", "stuff"]
    last = lines.index(["class", "box", "AP", "mask", "AP", "PQ", "SQ", "RQ"])
    assert [line[:3] for line in lines[last + 1 :] if line[0] in ("sky", "grass")] == [
        ["sky", "-", "-"],
        ["grass", "-", "-"],
    ]


def test_what_evaluation_writes_gives_the_same_quality_when_read_again(mrcnn, trained, data):
    metrics = mrcnn("evaluate", trained, "--out", "found", "--json").json
    content = json.loads(Path("found/panoptic.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["square", "disc", "sky", "grass"]
    truth = Dataset.read(*data)
    quality = PanopticQuality(truth.categories)
    for index, entry in enumerate(content["annotations"]):
        ids = read_ids(Path("found/panoptic") / entry["file_name"])
        for segment in entry["segments_info"]:
            inside = ids == segment["id"]
            assert segment["area"] == inside.sum()
            x, y, width, height = segment["bbox"]
            assert inside[y : y + height, x : x + width].sum() == inside.sum()
        quality.add(*truth.panoptic_truth(index), ids, entry["segments_info"])
    again = quality.metrics()
    assert {key: metrics[key] for key in again if key != "classes"} == {
        key: value for key, value in again.items() if key != "classes"
    }
    assert sum(len(entry["segments_info"]) for entry in content["annotations"]) > 0


def test_prediction_draws_segments_and_writes_them(mrcnn, trained, data):
    outcome = mrcnn("predict", data[0], "--weights", trained, "--score", "0")
    assert outcome.status == 0
    assert outcome.err.endswith("segments     predictions/panoptic.json, predictions/panoptic/\n")
    content = json.loads(Path("predictions/panoptic.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [str(data[0] / f"{n}.png") for n in range(1, 5)]
    for entry in content["annotations"]:
        ids = read_ids(Path("predictions/panoptic") / entry["file_name"])
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in entry["segments_info"]}
        drawn = np.asarray(Image.open(Path("predictions") / entry["file_name"]))
        assert drawn.shape[1] > 80  # the overlay, enlarged
    assert (Path("predictions") / "overview.png").is_file()


def test_a_higher_score_leaves_things_out_of_the_segments_too(mrcnn, trained, data):
    mrcnn("predict", data[0], "--weights", trained, "--score", "0.99")
    content = json.loads(Path("predictions/panoptic.json").read_text())
    segments = [segment for entry in content["annotations"] for segment in entry["segments_info"]]
    assert all(segment["score"] >= 0.99 for segment in segments if segment["isthing"])


def test_objects_alone_are_not_enough_to_train_on(mrcnn, data, tmp_path):
    (tmp_path / "objects.json").write_text(json.dumps(Dataset.read(*data).coco()))
    words = ["panoptic_fpn_r50_3x", "--train", data[0], "objects.json", "--out", "run", *assignments(*TINY)]
    outcome = mrcnn("train", *words)
    assert outcome.status == 1
    assert "objects.json: has objects but no stuff, which panoptic_fpn needs" in outcome.error


def test_a_number_of_classes_of_stuff_must_be_the_datas(mrcnn, data):
    words = ["panoptic_fpn_r50_3x", "--train", *data, "--out", "run", *assignments(*TINY, "model.num_stuff=53")]
    outcome = mrcnn("train", *words)
    assert outcome.status == 1
    assert "model.num_stuff = 53, but" in outcome.error
    assert "has 2 classes of stuff (sky, grass); leave the key out" in outcome.error


def test_label_maps_beside_objects_train_too(mrcnn, data, tmp_path):
    dataset = Dataset.read(*data)
    (tmp_path / "maps").mkdir()
    for index, record in enumerate(dataset.images):
        Image.fromarray(dataset.objects(index).semantic).save(tmp_path / "maps" / record.file_name)
    (tmp_path / "objects.json").write_text(json.dumps(dataset.coco()))
    maps = assignments("data.train.semantic=maps", 'data.stuff=["sky", "grass"]')
    words = ["--train", data[0], "objects.json", "--val", *data, "--out", "run", *assignments(*TINY), *maps]
    assert mrcnn("train", "panoptic_fpn_r50_3x", *words).status == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["pq"] is not None
    assert mrcnn("evaluate", "run", "--json").json["pq"] == rows[-1]["pq"]


def test_things_of_panoptic_data_train_a_mask_rcnn(mrcnn, data):
    plain = [word for word in TINY if not word.startswith(("model.semantic_head", "model.merging"))]
    words = ["mask_rcnn_r50_fpn_3x", "--train", *data, "--val", *data, "--out", "run", *assignments(*plain)]
    assert mrcnn("train", *words).status == 0
    assert "mask_ap" in json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert mrcnn("evaluate", "run").status == 0
    outcome = mrcnn("predict", data[0], "--weights", "run", "--score", "0")
    assert outcome.status == 0
    assert "segments" not in outcome.err
    assert not Path("predictions/panoptic.json").exists()
